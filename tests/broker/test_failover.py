"""The watch and the relay of a Redis whose primary moves."""

from __future__ import annotations

from functools import partial

import pytest
import structlog
import trio
from trio.testing import MockClock

from tangram.broker.external import ExternalBroker
from tangram.broker.relay import relay_url
from tangram.primary.locator import FOLLOW_EVERY
from tangram.redis_url import parse_redis_url
from tests.broker.fakes import FakeRedis, healthy
from tests.primary.fakes import bulks


class Group:
    """Two Redis and a sentinel, on real sockets."""

    def __init__(self) -> None:
        self.epoch = 1
        self.primary = 0
        self.roles = [b"master", b"master"]
        self.nodes = [FakeRedis(partial(self._answer, me)) for me in range(2)]
        self.ports: list[int] = []
        self.url = ""
        self.questions = 0

    async def start(self, nursery: trio.Nursery) -> None:
        self.ports = [await nursery.start(node.run) for node in self.nodes]
        port = await nursery.start(FakeRedis(self._guide).run)
        self.url = f"redis+sentinel://app:pw@127.0.0.1:{port}/3?master=m&client_name=x"

    def move(self) -> None:
        """Name the other one as the primary; the old one goes on as before."""
        self.epoch, self.primary = self.epoch + 1, 1 - self.primary

    def _answer(self, me: int, words: list[bytes]) -> bytes | None:
        if words[0] == b"ROLE":
            return bulks(self.roles[me])
        return b"+%d\r\n" % me if words[0] == b"WHO" else healthy(words)

    def _guide(self, words: list[bytes]) -> bytes:
        if words[1] == b"GET-MASTER-ADDR-BY-NAME":
            self.questions += 1
            return bulks("127.0.0.1", self.ports[self.primary])
        return bulks("config-epoch", self.epoch) if words[1] == b"MASTER" else b"*0\r\n"


async def until(condition: object) -> None:
    assert callable(condition)
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await trio.sleep(0.05)


async def ask(stream: trio.abc.Stream) -> bytes:
    """Return the answer of the Redis at the other end of the relay; empty once it is closed."""
    try:
        await stream.send_all(b"*1\r\n$3\r\nWHO\r\n")
        return bytes(await stream.receive_some())
    except trio.BrokenResourceError:
        return b""


@pytest.fixture
async def group(nursery: trio.Nursery) -> Group:
    made = Group()
    await made.start(nursery)
    return made


async def test_the_watch_and_the_clients_of_plugins_follow_a_primary_that_keeps_its_connections(
    nursery: trio.Nursery, autojump_clock: MockClock, group: Group
) -> None:
    """The old primary answers as before; its clients are sent to the new one, at the same URL."""
    changes: list[bool] = []
    broker = ExternalBroker(group.url, on_change=changes.append)
    with structlog.testing.capture_logs() as logs:
        url = await nursery.start(broker.run)
        place = parse_redis_url(url)
        assert (place.host, place.db, place.username, place.password) == ("127.0.0.1", 3, "app", "pw")
        assert place.options == {"client_name": "x"}
        await until(lambda: broker.statistics().up)
        client = await trio.open_tcp_stream(place.host, place.port)
        assert await ask(client) == b"+0\r\n"

        group.move()
        await trio.sleep(2 * FOLLOW_EVERY)
        assert await ask(client) == b""
        await client.aclose()
        async with await trio.open_tcp_stream(place.host, place.port) as again:
            assert await ask(again) == b"+1\r\n"

    assert changes == [True, False, True]
    [lost] = [entry for entry in logs if entry["event"] == "redis lost"]
    assert lost["cause"] == f"the primary is now 127.0.0.1:{group.ports[1]}"
    assert [entry["primary"] for entry in logs if entry["event"] == "redis found"] == [
        f"127.0.0.1:{port}" for port in group.ports
    ]
    nursery.cancel_scope.cancel()


async def test_connections_of_plugins_ask_no_sentinel_while_the_primary_is_watched(
    nursery: trio.Nursery, autojump_clock: MockClock, group: Group
) -> None:
    """A plugin may connect for each request: the watch knows the primary."""
    broker = ExternalBroker(group.url)
    place = parse_redis_url(await nursery.start(broker.run))
    await until(lambda: broker.statistics().up)
    asked = group.questions
    for _ in range(3):
        async with await trio.open_tcp_stream(place.host, place.port) as client:
            assert await ask(client) == b"+0\r\n"

    assert group.questions == asked
    nursery.cancel_scope.cancel()


async def test_a_replica_that_is_named_as_the_primary_is_away(
    nursery: trio.Nursery, autojump_clock: MockClock, group: Group
) -> None:
    """It is asked again until it is the primary."""
    group.roles[0] = b"slave"
    broker = ExternalBroker(group.url)
    await nursery.start(broker.run)
    await until(lambda: broker.statistics().last_error)
    assert "is a 'slave'" in str(broker.statistics().last_error)

    group.roles[0] = b"master"
    await until(lambda: broker.statistics().up)
    nursery.cancel_scope.cancel()


async def test_a_client_is_closed_while_no_primary_is_known(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """It sees a closed connection, as from a Redis that is away, and the relay goes on."""
    broker = ExternalBroker("redis+sentinel://127.0.0.1:1/?master=m")
    place = parse_redis_url(await nursery.start(broker.run))
    for _ in range(2):
        async with await trio.open_tcp_stream(place.host, place.port) as client:
            assert await ask(client) == b""
    assert str(broker.statistics().last_error).startswith("no sentinel knows the primary: 127.0.0.1:1: ")
    nursery.cancel_scope.cancel()


def test_the_url_of_a_relay_has_no_options_of_tls_and_sentinels() -> None:
    """The relay speaks TLS itself; account and other options are for the client."""
    address = parse_redis_url("rediss+sentinel://u%40:p%2F@h/?master=m&ssl_ca_certs=/ca.pem&protocol=3")

    assert relay_url(address, 5) == "redis://u%40:p%2F@127.0.0.1:5/0?protocol=3"
    assert relay_url(parse_redis_url("redis+cluster://h"), 5) == "redis://127.0.0.1:5/0"
