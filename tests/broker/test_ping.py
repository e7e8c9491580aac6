"""Asking a Redis whether it is alive."""

import pytest
import trio

from tangram.broker.ping import open_probe, ping
from tangram.errors import BrokerUnavailable
from tangram.redis_url import local_redis_url, parse_redis_url
from tests.broker.fakes import FakeRedis, healthy


async def test_ping_logs_in_and_accepts_pong(nursery: trio.Nursery) -> None:
    """AUTH comes before PING."""
    redis = FakeRedis()
    port = await nursery.start(redis.run)

    await ping(local_redis_url(port), 5)
    await ping(f"redis://u:p%20w@127.0.0.1:{port}/0", 5)

    assert redis.commands == [[b"PING"], [b"AUTH", b"u", b"p w"], [b"PING"]]


async def test_info_is_read_as_a_table(nursery: trio.Nursery) -> None:
    """The section has one entry per line."""
    port = await nursery.start(FakeRedis().run)

    async with open_probe(parse_redis_url(local_redis_url(port))) as probe:
        info = await probe.info()

    assert info == {"server_name": "valkey", "valkey_version": "9.9", "process_id": "1"}


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (b"-NOAUTH Authentication required.\r\n", "NOAUTH"),
        (b"-LOADING\r\n", "LOADING"),
        (b"+HELLO\r\n", "expected PONG, got b'HELLO'"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "Protocol"),
        (None, "closed"),
    ],
)
async def test_other_answers_are_an_outage_with_a_cause(
    nursery: trio.Nursery, answer: bytes | None, cause: str
) -> None:
    """The password is hidden."""
    redis = FakeRedis(lambda words: healthy(words) if words[0] == b"AUTH" else answer)
    port = await nursery.start(redis.run)

    with pytest.raises(BrokerUnavailable, match=cause) as raised:
        await ping(f"redis://:hunter2@127.0.0.1:{port}", 5)
    assert "hunter2" not in str(raised.value)


async def test_a_silent_redis_costs_the_deadline(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """The ping raises after it."""
    port = await nursery.start(FakeRedis(lambda _words: b"").run)

    with pytest.raises(BrokerUnavailable, match=r"did not answer within 0.3 s"):
        await ping(local_redis_url(port), 0.3)
    assert trio.current_time() == pytest.approx(0.3)


async def test_a_missing_redis_is_described_in_a_few_words(tmp_path: object) -> None:
    """Refused connections, missing sockets and other URLs are described."""
    with trio.socket.socket() as sock:
        await sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        with pytest.raises(BrokerUnavailable, match="connection refused"):
            await ping(local_redis_url(port), 5)
    with pytest.raises(BrokerUnavailable, match="no such file"):
        await ping(f"unix://{tmp_path}/none.sock", 5)
    with pytest.raises(BrokerUnavailable, match="begins with redis://"):
        await ping("http://x", 5)
    with pytest.raises(BrokerUnavailable):
        await ping(f"redis://{'x' * 70}.invalid", 5)
