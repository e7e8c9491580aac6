"""The watch on an external Redis."""

from collections.abc import Mapping
from urllib.parse import urlencode

import pytest
import structlog
import trio
from trio.testing import MockClock

from tangram.broker.external import ExternalBroker
from tangram.bus.resp import open_link
from tangram.errors import BrokerUnavailable
from tangram.redis_url import local_redis_url, parse_redis_url
from tangram.testing import open_broker
from tests.broker.fakes import CERT, FakeRedis, healthy, server_context


async def until(condition: object) -> None:
    assert callable(condition)
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await trio.sleep(0.05)


async def test_the_watch_reports_losses_and_returns(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """It reports its start at once, and never ends by itself."""
    changes: list[bool] = []
    with trio.socket.socket() as sock:
        await sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    broker = ExternalBroker(f"redis://:hunter2@127.0.0.1:{port}", on_change=changes.append)
    with structlog.testing.capture_logs() as logs:
        url = await nursery.start(broker.run)
        assert url == f"redis://:hunter2@127.0.0.1:{port}"
        await until(lambda: broker.statistics().last_error)
        assert not broker.statistics().up

        for _ in range(2):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as redis:
                    await redis.start(FakeRedis().run, port)
                    await until(lambda: broker.statistics().up)
                    assert broker.statistics().version == "valkey 9.9"
                    scope.cancel()
            await until(lambda: not broker.statistics().up)

    assert changes == [True, False, True, False]
    assert broker.statistics().starts == 2
    events = [entry["event"] for entry in logs]
    assert events == ["redis lost", "redis found", "redis lost", "redis found", "redis lost"]
    assert logs[0]["cause"].endswith("connection refused")
    assert "hunter2" not in repr(logs) + repr(broker.statistics())
    nursery.cancel_scope.cancel()


async def test_a_long_outage_is_logged_once_a_minute(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """The first line is a warning of its own."""
    with trio.socket.socket() as sock:
        await sock.bind(("127.0.0.1", 0))
        broker = ExternalBroker(local_redis_url(sock.getsockname()[1]))
        with structlog.testing.capture_logs() as logs:
            await nursery.start(broker.run)
            await trio.sleep(200)

    assert [entry["event"] for entry in logs] == ["redis lost", *["redis still away"] * 3]
    nursery.cancel_scope.cancel()


async def test_a_hanging_redis_counts_as_away(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """Pings find a Redis that keeps the connection and does not answer."""
    hangs = False
    redis = FakeRedis(lambda words: b"" if hangs else healthy(words))
    port = await nursery.start(redis.run)
    broker = ExternalBroker(local_redis_url(port))
    await nursery.start(broker.run)
    await until(lambda: broker.statistics().up)

    hangs = True
    await until(lambda: not broker.statistics().up)

    assert broker.statistics().last_error == "no answer within 2 s"
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("refused", [{b"INFO"}, {b"INFO", b"PING"}])
async def test_a_refused_command_counts_as_an_answer(
    nursery: trio.Nursery, autojump_clock: MockClock, refused: set[bytes]
) -> None:
    """An account without the right to PING or INFO has an unknown version, and is up."""

    def answer(words: list[bytes]) -> bytes | None:
        if words[0] in refused:
            return b"-NOPERM User app has no permissions to run the command\r\n"
        return healthy(words)

    redis = FakeRedis(answer)
    broker = ExternalBroker(local_redis_url(await nursery.start(redis.run)))
    await nursery.start(broker.run)
    await trio.sleep(30)

    seen = broker.statistics()
    assert (seen.up, seen.starts, seen.version, seen.last_error) == (True, 1, None, None)
    assert redis.commands.count([b"PING"]) > 3
    nursery.cancel_scope.cancel()


OWN_CA = {"ssl_ca_certs": str(CERT)}
CLIENT = {"ssl_certfile": str(CERT), "ssl_keyfile": str(CERT.with_name("key.pem"))}


@pytest.mark.parametrize(
    ("options", "of_clients", "up"),
    [
        ({}, False, False),
        (OWN_CA, False, True),
        ({"ssl_cert_reqs": "none"}, False, True),
        (OWN_CA, True, False),
        (OWN_CA | CLIENT, True, True),
        ({"ssl_ca_certs": "/nowhere/ca.pem"}, False, False),
    ],
    ids=["unknown-ca", "own-ca", "unverified", "no-client-certificate", "client-certificate", "no-such-file"],
)
async def test_watch_and_bus_read_tls_options_alike(
    nursery: trio.Nursery,
    autojump_clock: MockClock,
    options: Mapping[str, str],
    of_clients: bool,
    up: bool,
) -> None:
    """Both accept and refuse the same servers."""
    port = await nursery.start(FakeRedis(tls=server_context(of_clients=of_clients)).run)
    url = f"rediss://127.0.0.1:{port}?{urlencode(options)}"
    broker = ExternalBroker(url)
    await nursery.start(broker.run)
    await until(lambda: broker.statistics().up or broker.statistics().last_error)

    assert broker.statistics().up is up
    assert await connects(url) is up
    nursery.cancel_scope.cancel()


async def connects(url: str) -> bool:
    try:
        async with open_link(parse_redis_url(url), timeout=30):
            return True
    except (OSError, trio.BrokenResourceError, BrokerUnavailable):
        return False  # TLS 1.3: the server refuses a client certificate after the handshake


@pytest.mark.slow
async def test_an_account_without_info_is_no_outage(nursery: trio.Nursery) -> None:
    """A real Redis refuses INFO to the account; the watch reports it as up, without a version."""
    with open_broker("--user", "app", "on", ">pw", "~*", "&*", "+@all", "-info") as redis:
        broker = ExternalBroker(redis.url.replace("redis://", "redis://app:pw@"))
        await nursery.start(broker.run)
        with trio.fail_after(60):
            await until(lambda: broker.statistics().up)

        assert broker.statistics().version is None
        nursery.cancel_scope.cancel()


async def test_a_service_without_info_is_no_outage(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """Managed services rename or remove the command."""

    def answer(words: list[bytes]) -> bytes | None:
        return b"-ERR unknown command 'INFO'\r\n" if words[0] == b"INFO" else healthy(words)

    broker = ExternalBroker(local_redis_url(await nursery.start(FakeRedis(answer).run)))
    await nursery.start(broker.run)
    await trio.sleep(30)

    seen = broker.statistics()
    assert (seen.up, seen.starts, seen.version) == (True, 1, None)
    nursery.cancel_scope.cancel()
