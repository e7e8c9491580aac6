"""Servers on sentinels, on a cluster, and with an account of few rights over TLS and sockets."""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
import redis
import trio

import tangram
from tangram.client import Channel, fetch_token
from tangram.compat.core.redis import Subscriber
from tangram.compat.plugin import Plugin as ExistingPlugin
from tangram.compat.state import BackendState as ExistingState
from tangram.errors import BrokerUnavailable
from tangram.primary.answers import SLOT
from tangram.testing import RealBroker, RunningTangram, open_broker, open_tangram
from tangram.testing.run.redis_groups import RealCluster, RedisTls, ask, open_cluster, open_sentinels
from tests.broker.fakes import CERT, server_context
from tests.machine_slack import open_lateness

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"
HISTORY = [{"topics": "kept:*", "size": 500, "ttl": 60}]
FLOWS_WITHIN: Final = 10.0
"""Seconds from the death of a primary until messages of all kinds flow again: the promise of the pages. The
time in which the machine let nothing run does not count."""
PATIENCE: Final = 60.0
"""Seconds until a test gives up: a busy machine runs seven servers and this process in turn."""


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest) -> RedisTls | None:
    """Return nothing, and then TLS with certificates of both sides, where a server of the system has TLS."""
    if request.param == "plain":
        return None
    return RedisTls(request.getfixturevalue("system_redis"), CERT, CERT.with_name("key.pem"))


class Traffic:
    """Plugins of both kinds that publish without a pause, and the messages that arrive."""

    def __init__(self) -> None:
        self.native = tangram.Plugin()
        self.native.name = "native"
        self.existing = ExistingPlugin()
        self.existing.name = "existing"
        self.received: set[str] = set()
        self.number = 0
        """The number that was published last, or is being published."""
        self.accepted: list[int] = []
        """Numbers that the bus took for the topic with a history."""
        self.beats: list[int] = []
        """Numbers that the browser received."""
        self.native.register_service()(self.publish)
        self.existing.register_service()(self.listen)
        self.existing.register_service()(self.publish_existing)

    async def publish(self, state: tangram.BackendState) -> None:
        """Publish to browsers and write keys, natively."""
        while True:
            number = self.number = self.number + 1
            with suppress(BrokerUnavailable):
                await state.publish("to:kept:map:beat", number)
                self.accepted.append(number)
                await state.redis_client.set(f"key-{number % 50}", number)
                await state.publish("from:flow:native", "native")
            await trio.sleep(0.01)

    async def listen(self, state: ExistingState) -> None:
        """Subscribe as existing plugins do, with the URL that they find."""
        received = self.received

        class Hearing(Subscriber[None]):
            async def message_handler(self, event: str, payload: str, pattern: str, state: Any) -> None:
                received.add(payload)

        subscriber = Hearing("hearing", state.config.core.redis_url, ["from:flow:*"], None)
        await subscriber.subscribe()
        try:
            await asyncio.Future()
        finally:
            await subscriber.cleanup()

    async def publish_existing(self, state: ExistingState) -> None:
        """Publish and write keys through the existing plugins' client."""
        while True:
            await state.redis_client.set("existing", "1")
            await state.redis_client.publish("from:flow:existing", "existing")
            await asyncio.sleep(0.01)

    async def flows(self, server: RunningTangram, channel: Channel) -> None:
        """Wait until messages of both kinds of plugins, and browsers' messages, arrive anew.

        Messages that are on their way already do not count, and neither do those that came before the first
        new one: another primary may have taken them.
        """
        before, anew = self.number, False
        with trio.fail_after(PATIENCE):
            async for event in channel:
                if event.name != "beat":
                    continue
                self.beats.append(int(event.payload))
                if not anew and self.beats[-1] > before:
                    anew = True
                    self.received.clear()
                elif anew and self.received >= {"native", "existing"}:
                    break
            client = redis.Redis.from_url(server.redis_url)
            assert await trio.to_thread.run_sync(client.ping)
            await trio.to_thread.run_sync(client.close)

    def missing(self) -> list[int]:
        """Return the accepted numbers that the browser did not receive between its first and its last one."""
        received = set(self.beats)
        return [one for one in self.accepted if self.beats[0] < one < self.beats[-1] and one not in received]


async def fail_over(traffic: Traffic, url: str, kill_primary: Callable[[], None]) -> None:
    """Kill the primary under load, and check that all traffic comes back, and that the loss is told."""
    config = {
        "core": {"redis_url": url},
        "channel": {"history": HISTORY},
        # A failover that takes longer than a lease ends the placed plugin, until the lease is over.
        "cluster": {"lease_ttl": 3.0},
    }
    async with (
        open_tangram([traffic.native, traffic.existing], config) as server,
        server.open_socket() as browser,
    ):
        channel = await join(server, browser)
        await traffic.flows(server, channel)
        joins, plugins_url = channel.joins, server.redis_url
        with open_lateness() as lateness:
            kill_primary()
            began = trio.current_time()
            await traffic.flows(server, channel)
            took = trio.current_time() - began
        assert took <= FLOWS_WITHIN + lateness.total

        assert server.redis_url == plugins_url, "the URL of plugins stays"
        assert traffic.beats == sorted(set(traffic.beats)), "no message comes twice or out of order"
        assert channel.joins > joins
        assert (channel.recovered, channel.reason) == (False, "epoch"), "the browser learns of the loss"
        missing = traffic.missing()
        before, after = gap(traffic.beats)
        assert all(before < one < after for one in missing), "messages are lost in the failover alone"
        events = [str(record.get("event")) for record in server.logs]
        assert {"redis connection lost", "redis connection restored", "redis lost"} <= set(events)
        assert not [one for one in server.events if one.kind == "quarantined"]


def gap(numbers: list[int]) -> tuple[int, int]:
    """Return the two neighbours that are furthest apart."""
    return max(pairwise(numbers), key=lambda pair: pair[1] - pair[0])


async def test_sentinels_fail_over_under_load(tmp_path: Path, tls: RedisTls | None) -> None:
    """Every connection follows the sentinels to the new primary, also over TLS; no plugin has crashed."""
    with open_sentinels(tmp_path, tls=tls) as group:
        old = group.primary()
        await fail_over(Traffic(), group.url, old.kill)

        assert group.primary() is not old


# redis-py does not close nodes of a cluster that it replaces. The server closes their sockets when the plugin
# ends, and Python warns about the objects.
@pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. <function (ClusterNode|AbstractConnection)\."
    ":pytest.PytestUnraisableExceptionWarning"
)
async def test_a_replica_of_a_cluster_takes_over_under_load(tmp_path: Path, tls: RedisTls | None) -> None:
    """The primary of the server's slot dies; its replica gets the slot, the messages and the keys."""
    with open_cluster(tmp_path, replicas=1, tls=tls) as cluster:
        old = cluster.owner(SLOT)
        await fail_over(Traffic(), cluster.url, old.kill)

        new = cluster.owner(SLOT)
        assert new in cluster.nodes[3:]
        assert cluster.ask(new, "EXISTS", "{tangram}:history") == 1
    gc.collect()


async def test_a_cluster_carries_messages_histories_and_keys(tmp_path: Path) -> None:
    """Keys of every slot are reached, and the server follows its own slot to another node."""
    traffic = Traffic()
    with open_cluster(tmp_path) as cluster:
        assert ask(cluster.nodes[0].port, "CLUSTER", "KEYSLOT", "{tangram}:history") == SLOT
        config = {"core": {"redis_url": cluster.url}, "channel": {"history": HISTORY}}
        async with (
            open_tangram([traffic.native, traffic.existing], config) as server,
            server.open_socket() as browser,
        ):
            channel = await join(server, browser)
            await traffic.flows(server, channel)
            await in_every_slot(cluster)
            state = server.server.tree.incarnation.require_state()  # type: ignore[union-attr]
            assert (await state.history("kept:map", limit=1)).events
            await messages_of_every_node(cluster, traffic)

            old = cluster.owner(SLOT)
            other = next(node for node in cluster.nodes if node is not old)
            await trio.to_thread.run_sync(cluster.move, SLOT, other)
            await traffic.flows(server, channel)
            assert (await state.history("kept:map", limit=1)).events
            assert ask(other.port, "EXISTS", "{tangram}:history") == 1


async def in_every_slot(cluster: RealCluster) -> None:
    """Check that the plugins' keys are on all nodes."""
    with trio.fail_after(PATIENCE):
        while not all(ask(node.port, "DBSIZE") for node in cluster.nodes):  # noqa: ASYNC110 - Redis tells of no event
            await trio.sleep(0.05)


async def messages_of_every_node(cluster: RealCluster, traffic: Traffic) -> None:
    """Check that messages arrive that other programs publish at any node.

    The nodes pass messages on to each other at most once, and not while one of them opens its link to another
    anew: it does so where an answer takes longer than half of the nodes' timeout. So each is published until
    it arrives.
    """
    missing = {str(node.port) for node in cluster.nodes}
    with trio.fail_after(PATIENCE):
        while missing:
            for port in missing:
                ask(int(port), "PUBLISH", "from:flow:x", port)
            await trio.sleep(0.05)
            missing -= traffic.received


def documented_rights() -> list[str]:
    """Return the rights of the account in the page, with the topics of this test."""
    page = (DOCS / "nodes.md").read_text(encoding="utf-8")
    found = re.search(r"^user tangram on >secret (.+?)^```", page, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1].replace("\\\n", " ").replace("flights:*", "kept:*").split()


async def join(server: RunningTangram, browser: Any) -> Channel:
    """Join the topic of the test, which has a history."""
    token = await fetch_token(server.url, "kept:map")
    channel: Channel = await browser.join("kept:map", token=token.token, recover=True)
    return channel


async def works_with(url: str) -> None:
    """Check messages with a history and plain ones, keys of plugins, and that Redis refused nothing."""
    config = {"core": {"redis_url": url}, "channel": {"history": HISTORY}, "cluster": {"node": "one"}}
    async with open_tangram([], config) as server, server.open_socket() as browser:
        tree = server.server.tree
        assert tree is not None
        state = tree.incarnation.require_state()
        channel = await join(server, browser)
        with trio.fail_after(PATIENCE):
            assert (await state.publish("to:kept:map:one", 1)).position
            await state.redis_client.set("app:key", "1")
            assert await state.redis_client.get("app:key") == b"1"
            client = redis.Redis.from_url(server.redis_url)
            await trio.to_thread.run_sync(client.publish, "to:kept:map:two", "2")
            await trio.to_thread.run_sync(client.close)
            names: list[str] = []
            async for event in channel:
                names.append(event.name)
                if len(names) == 2:
                    break
            while len((await state.history("kept:map")).events) < 2:  # noqa: ASYNC110 - the recorder is another client
                await trio.sleep(0.05)
        assert names == ["one", "two"]
        refused = [one for one in server.logs if "NOPERM" in str(one) or "not probed" in str(one)]
        assert refused == []


@contextmanager
def open_account(folder: Path) -> Iterator[RealBroker]:
    """Run a Redis with the documented account alone, on a port and a Unix socket."""
    with open_broker("--unixsocket", str(folder / "redis.sock")) as broker:
        ask(
            broker.port,
            "ACL",
            "SETUSER",
            "tangram",
            "on",
            ">secret",
            *documented_rights(),
            "~app:*",
            "+get",
            "+set",
        )
        ask(broker.port, "ACL", "SETUSER", "default", "off")
        yield broker


async def test_the_documented_rights_are_enough_over_a_socket_and_over_tls(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """The account serves histories and all else; over TLS both sides show certificates."""
    with open_account(tmp_path) as broker:
        await works_with(f"unix://tangram:secret@{tmp_path}/redis.sock")

        async def serve(client: trio.SocketStream) -> None:
            secured = trio.SSLStream(client, server_context(of_clients=True), server_side=True)
            await pass_on(secured, await trio.open_tcp_stream("127.0.0.1", broker.port))

        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        files = f"ssl_ca_certs={CERT}&ssl_certfile={CERT}&ssl_keyfile={CERT.with_name('key.pem')}"
        await works_with(f"rediss://tangram:secret@127.0.0.1:{port}?{files}&protocol=3")
        nursery.cancel_scope.cancel()


async def pass_on(one: trio.abc.Stream, other: trio.abc.Stream) -> None:
    """Pass bytes between two streams until one closes."""
    async with trio.open_nursery() as nursery:

        async def copy(source: trio.abc.Stream, target: trio.abc.Stream) -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while data := await source.receive_some(65536):
                    await target.send_all(data)
            nursery.cancel_scope.cancel()

        nursery.start_soon(copy, one, other)
        nursery.start_soon(copy, other, one)
    with trio.move_on_after(1, shield=True):
        await trio.aclose_forcefully(one)
        await trio.aclose_forcefully(other)
