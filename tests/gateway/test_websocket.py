from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import pytest
import trio
import trio.testing

from tangram.channels import disconnects
from tangram.channels.disconnects import Disconnect
from tangram.channels.frames import BINARY, TEXT, Encoded
from tangram.channels.policy import ConnectInfo
from tangram.gateway.admission import Admission
from tangram.gateway.channels import Channels
from tangram.gateway.session import Frame
from tangram.gateway.websocket import CLOSE_TIMEOUT, serve_websocket
from tests.channels.fakes import FakeBus, Settings
from tests.gateway.test_channels import token
from tests.http.serving import make_channels

INFO = ConnectInfo("127.0.0.1")


class FakeConnection:
    """A WebSocket in memory; hooks raise or hang at each of its awaits."""

    def __init__(self) -> None:
        self.say, self._incoming = trio.open_memory_channel[bytes | str](100)
        self.sent: list[bytes] = []
        self.closed: list[Disconnect] = []
        self.writers = 0
        self.on_send: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self.on_close: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint

    async def receive(self) -> Frame:
        data = await self._incoming.receive()
        return TEXT if isinstance(data, str) else BINARY, data

    async def send(self, item: Encoded) -> None:
        self.writers += 1
        assert self.writers == 1, "two writers"
        try:
            await self.on_send()
            assert not self.closed, "sent after the close frame"
            self.sent.append(item.data)
        finally:
            self.writers -= 1

    async def close(self, disconnect: Disconnect) -> None:
        assert self.writers == 0, "two writers"
        await self.on_close()
        assert not self.closed, "closed twice"
        self.closed.append(disconnect)


async def broken() -> None:
    await trio.lowlevel.checkpoint()
    raise OSError("broken pipe")


def frame(*fields: object) -> str:
    return msgspec.json.encode(fields).decode()


def join(topic: str = "obs", ref: str = "1") -> str:
    return frame(ref, ref, topic, "phx_join", {"token": token(topic)})


def open_channels(**settings: int) -> Channels:
    return make_channels(FakeBus(), Settings(**settings))  # type: ignore[arg-type]


async def run(channels: Channels, connection: FakeConnection) -> Disconnect:
    return await serve_websocket(channels, connection, INFO, Admission(None, None))


async def test_frames_are_answered_until_the_client_goes(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Frames are answered; when the client goes, its topics are left and no close is sent."""
    channels = open_channels()
    connection = FakeConnection()
    nursery.start_soon(run, channels, connection)
    await connection.say.send(join())
    await trio.testing.wait_all_tasks_blocked()
    assert b'"ok"' in connection.sent[0]
    await connection.say.aclose()
    await trio.testing.wait_all_tasks_blocked()

    assert connection.closed == []
    assert channels.statistics().connections == 0
    assert channels.statistics().hub.members == 0


@pytest.mark.parametrize("disconnect", [disconnects.RESTART, disconnects.SHUTDOWN, disconnects.IDLE])
async def test_waiting_messages_are_sent_before_the_close_frame(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, disconnect: Disconnect
) -> None:
    """The backlog is sent, then the close frame with the code that is returned."""
    channels = open_channels()
    connection = FakeConnection()
    ends: list[Disconnect] = []

    async def note() -> None:
        ends.append(await run(channels, connection))

    nursery.start_soon(note)
    await connection.say.send(join())
    await trio.testing.wait_all_tasks_blocked()
    channels.hub.deliver([(b"to:obs:e", b"[1]")])
    await channels.drain(disconnect)

    assert connection.sent[-1] == b'[null,null,"obs","e",[1]]'
    assert connection.closed == ends == [disconnect]


async def test_a_crash_closes_with_1011(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the server ends the connection with a code after which clients reconnect."""
    channels = open_channels()
    connection = FakeConnection()

    def crash(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(channels.hub, "reply", crash)
    await connection.say.send(frame(None, "1", "phoenix", "heartbeat", {}))

    assert await run(channels, connection) == disconnects.CRASH
    assert connection.closed == [disconnects.CRASH]


async def test_cancellation_sends_a_close_frame(autojump_clock: trio.testing.MockClock) -> None:
    """When an engine stops, the client still gets the close reason, within a limit."""
    channels = open_channels()
    connection = FakeConnection()
    with trio.move_on_after(1):
        await run(channels, connection)

    assert connection.closed == [disconnects.RESTART]
    assert channels.statistics().connections == 0


async def test_a_client_that_takes_no_close_frame_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    """Neither a stuck write nor a stuck close delays a stop."""
    channels = open_channels()
    connection = FakeConnection()
    connection.on_send = connection.on_close = trio.sleep_forever
    await connection.say.send(join())
    with trio.move_on_after(1):
        await run(channels, connection)

    assert trio.current_time() == pytest.approx(1 + CLOSE_TIMEOUT)


async def test_a_client_that_does_not_read_is_given_up(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Its outbox overflows, its write gets a deadline, and it ends as overload."""
    channels = open_channels(max_backlog=1000)
    slow, fast = FakeConnection(), FakeConnection()
    slow.on_send = trio.sleep_forever
    ends: list[Disconnect] = []

    async def note() -> None:
        ends.append(await run(channels, slow))

    nursery.start_soon(note)
    nursery.start_soon(run, channels, fast)
    for connection in (slow, fast):
        await connection.say.send(join())
    await trio.testing.wait_all_tasks_blocked()
    for _ in range(10):
        channels.hub.deliver([(b"to:obs:e", b"[%b]" % (b"1" * 200))])
        await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(3 * CLOSE_TIMEOUT)

    assert ends == [disconnects.OVERLOAD]
    assert slow.closed == [disconnects.OVERLOAD]
    assert len(fast.sent) == 11
    await fast.say.aclose()


async def test_a_broken_connection_ends_without_a_close_frame(autojump_clock: trio.testing.MockClock) -> None:
    """A write that fails ends the connection."""
    channels = open_channels()
    connection = FakeConnection()
    connection.on_send = connection.on_close = broken
    await connection.say.send(join())

    assert await run(channels, connection) == disconnects.GONE
    assert channels.statistics().hub.members == 0


async def test_a_message_over_the_bound_closes_with_1009(autojump_clock: trio.testing.MockClock) -> None:
    """A message over the bound ends the connection."""
    channels = open_channels(max_message=1024)
    connection = FakeConnection()
    await connection.say.send(b"x" * 1025)

    assert await run(channels, connection) == disconnects.TOO_BIG
    assert connection.closed == [disconnects.TOO_BIG]


class Backpressure:
    """A bus without room until the test makes some."""

    def __init__(self) -> None:
        self.room = trio.Event()

    @property
    def congested(self) -> bool:
        return not self.room.is_set()

    async def wait_uncongested(self) -> None:
        await self.room.wait()


async def test_nothing_is_read_while_the_bus_is_congested(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Nothing is taken from a client while the bus has enough to do, and all of it afterwards."""
    backpressure = Backpressure()
    connection = FakeConnection()
    nursery.start_soon(run, make_channels(FakeBus(), backpressure=lambda: backpressure), connection)
    await connection.say.send(join())
    await trio.testing.wait_all_tasks_blocked()
    assert connection.sent == []
    backpressure.room.set()
    await trio.testing.wait_all_tasks_blocked()

    assert b'"ok"' in connection.sent[0]


async def test_a_push_that_finds_a_full_bus_waits_for_room(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """A bus that fills while a client is silent takes the client's next push once it has room again."""
    bus, backpressure, connection = FakeBus(), Backpressure(), FakeConnection()
    backpressure.room.set()
    nursery.start_soon(run, make_channels(bus, backpressure=lambda: backpressure), connection)
    await connection.say.send(join())
    await trio.testing.wait_all_tasks_blocked()
    backpressure.room = trio.Event()
    await connection.say.send(frame("1", "2", "obs", "wave", {}))
    await trio.testing.wait_all_tasks_blocked()
    assert bus.payloads("from:obs:wave") == []
    backpressure.room.set()
    await trio.testing.wait_all_tasks_blocked()

    assert bus.payloads("from:obs:wave") == [b"{}"]
