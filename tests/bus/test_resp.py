"""One connection to Redis."""

import resource
from pathlib import Path

import pytest
import trio
import trio.testing

from tangram.bus import resp
from tangram.bus.resp import (
    CONNECT_TIMEOUT,
    PING_EVERY,
    PING_TIMEOUT,
    Link,
    describe,
    dial_socket,
    open_link,
)
from tangram.bus.sockets import PlainStream
from tangram.errors import BrokerUnavailable
from tangram.redis_url import RedisAddress, parse_redis_url
from tests.bus.fakes import URL, FakeRedis


async def test_a_server_without_a_greeting_costs_the_connect_timeout(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis
) -> None:
    """The connection is closed after that."""
    fake.mute.add(b"*")
    began = trio.current_time()
    with pytest.raises(BrokerUnavailable, match="did not answer within 2 s"):
        async with open_link(parse_redis_url(URL), dial=fake.dial):
            pass

    assert trio.current_time() - began == pytest.approx(CONNECT_TIMEOUT)
    assert await fake.connections[0].stream.receive_some(1) == b""


async def watched(link: Link, pings: list[float]) -> None:
    async def read(link: Link) -> None:
        while True:
            await link.receive()

    await link.share(read, lambda link: link.watch(lambda: pings.append(trio.current_time())))


async def test_a_half_open_connection_is_pinged_and_ended(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis
) -> None:
    """A connection without an answer to a ping ends."""
    pings: list[float] = []
    began = trio.current_time()
    async with open_link(parse_redis_url(URL), dial=fake.dial) as link:
        await watched(link, pings)

    assert trio.current_time() - began == pytest.approx(PING_EVERY + PING_TIMEOUT)
    assert pings == [pytest.approx(began + PING_EVERY)]
    assert "did not answer a ping" in link.cause


async def test_no_ping_is_sent_during_traffic(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """Any received bytes show that Redis is alive."""
    pings: list[float] = []
    async with open_link(parse_redis_url(URL), dial=fake.dial) as link:
        nursery.start_soon(watched, link, pings)
        for _ in range(50):
            await trio.sleep(PING_EVERY * 0.9)
            await fake.connections[0].stream.send_all(b"+x\r\n")

        assert pings == []
        assert link.cause == ""


async def test_a_blocked_process_does_not_blame_redis(mock_clock: trio.testing.MockClock) -> None:
    """If this process was blocked past the deadline, an answer in the socket counts."""

    async def read(link: Link) -> None:
        while True:
            await link.receive()

    for _ in range(12):  # which of two ready tasks runs first is a matter of luck
        ours, _theirs = trio.testing.memory_stream_pair()
        receives = ours.receive_stream
        assert isinstance(receives, trio.testing.MemoryReceiveStream)
        link = Link(ours)
        async with trio.open_nursery() as nursery:
            pinged = trio.Event()
            nursery.start_soon(link.share, read, lambda link, pinged=pinged: link.watch(pinged.set))
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(PING_EVERY)
            await pinged.wait()
            await trio.testing.wait_all_tasks_blocked()
            # A plugin blocks the loop: the answer comes and the deadline passes before any task runs again.
            receives.put_data(b"+PONG\r\n")
            mock_clock.jump(resp.PING_TIMEOUT)
            for _ in range(9):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

        assert link.cause == ""


def test_the_cause_is_the_operating_systems_reason() -> None:
    """It is found however deeply the exception is wrapped."""
    refused = ConnectionRefusedError(111, "Connection refused")
    wrapped = OSError("all attempts to connect failed")
    wrapped.__cause__ = ExceptionGroup("x", [refused])

    assert describe(wrapped) == "connection refused"
    assert describe(BrokerUnavailable("redis closed the connection")) == "redis closed the connection"
    assert describe(trio.BrokenResourceError()) == "BrokenResourceError"


async def test_a_cancelled_dial_leaves_no_stream_open() -> None:
    """This holds also if several dials have succeeded."""
    pairs = [trio.testing.memory_stream_pair() for _ in range(3)]
    with trio.CancelScope() as scope:
        scope.cancel()
        await resp._close_all([ours for ours, _ in pairs])

    assert [await theirs.receive_some(1) for _, theirs in pairs] == [b""] * 3


@pytest.mark.parametrize("host", ["redis..internal", "\N{SNOWMAN}.example"])
async def test_an_invalid_host_name_counts_as_an_outage(host: str) -> None:
    """A name that cannot be looked up raises ``BrokerUnavailable``."""
    with pytest.raises(BrokerUnavailable, match="is not a valid host name"):
        async with open_link(RedisAddress(url=f"redis://{host}", host=host), dial=dial_socket):
            pytest.fail("entered")


async def test_buffers_take_no_memory_before_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a connection that has received a large message holds the pages for one."""
    monkeypatch.setattr(resp, "RECEIVE_BUFFER", 64 * 1024 * 1024)

    class Plain(PlainStream):
        def __init__(self) -> None: ...

    before = resident()
    links = [Link(Plain()) for _ in range(4)]

    assert resident() - before < 64 * 1024 * 1024
    del links


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
