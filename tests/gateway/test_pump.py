"""The way out of one WebSocket."""

from __future__ import annotations

import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock as Clock
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from tangram.channels.codec import encode_acknowledgements
from tangram.channels.disconnects import OVERLOAD, RESTART
from tangram.channels.frames import BINARY, TEXT, Encoded, ReplyTo, Run
from tangram.channels.hub import Hub
from tangram.channels.outbox import LARGE, Outbox, put_run_all
from tangram.gateway.pump import CLOSE_TIME, MAX_CONTROL, Pump, PumpStatistics, frame, join


@attrs.define
class FakeWire:
    """A socket pair with small buffers: ``peer`` is the client's end."""

    sock: socket.socket
    peer: socket.socket
    read_deadline: float = float("inf")
    write_deadline: float = float("inf")
    closed: bool = False

    def abort(self) -> None:
        if not self.closed:
            self.closed = True
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()

    def read(self, size: int = 1 << 20) -> bytes:
        """Return the bytes that the client can read now."""
        data = b""
        try:
            while len(data) < size:
                chunk = self.peer.recv(size - len(data))
                if not chunk:
                    break
                data += chunk
        except BlockingIOError:
            pass
        return data


@attrs.define
class Rig:
    wire: FakeWire
    pump: Pump
    outbox: Outbox
    statistics: PumpStatistics

    async def read_all(self) -> bytes:
        """Read until nothing more comes."""
        data = b""
        while True:
            await trio.testing.wait_all_tasks_blocked(0.01)
            chunk = self.wire.read()
            if not chunk:
                return data
            data += chunk


@asynccontextmanager
async def open_rig(**settings: Any) -> AsyncIterator[Rig]:
    ours, peer = socket.socketpair()
    for end in (ours, peer):
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    wire = FakeWire(ours, peer)
    statistics = PumpStatistics()
    async with trio.open_nursery() as nursery:

        def spawn(run: Callable[[], Awaitable[None]]) -> None:
            nursery.start_soon(run)

        protocol = ServerProtocol(state=OPEN)
        pump = Pump(wire, protocol, spawn=spawn, write_timeout=10.0, statistics=statistics)
        outbox = Outbox(pump.wake, **settings)
        pump.attach(outbox)
        try:
            yield Rig(wire, pump, outbox, statistics)
        finally:
            nursery.cancel_scope.cancel()
            wire.abort()
            peer.close()


@given(st.sampled_from([TEXT, BINARY]), st.sampled_from([0, 1, 125, 126, 127, 65535, 65536, 70000]))
def test_frames_as_the_library_does(opcode: int, size: int) -> None:
    """A frame of every kind of length equals that of ``websockets``."""
    item = Encoded(opcode, b"x" * size)

    assert frame(item) == Frame(Opcode(opcode), item.data).serialize(mask=False)
    assert item.wire == frame(item)


async def test_message_leaves_at_once() -> None:
    """When ``put`` returns, the message is in the socket, and no task has run."""
    async with open_rig() as rig:
        rig.outbox.put(Encoded(TEXT, b"hello"))

        assert rig.wire.read() == b"\x81\x05hello"
        assert rig.outbox.pending == 0


async def test_broadcast_is_framed_once() -> None:
    """Every member's pump sends the very bytes that the first one framed."""
    item = Encoded(TEXT, b"news")
    async with open_rig() as first, open_rig() as second:
        first.outbox.put(item)
        wire = item.wire
        second.outbox.put(item)

        assert item.wire is wire
        assert second.wire.read() == wire


async def test_backlog_goes_in_one_write() -> None:
    """The whole backlog is sent in one write."""
    async with open_rig() as rig:
        items = [Encoded(TEXT, b"%d" % number) for number in range(20)]
        rig.outbox.corked = True
        for item in items:
            rig.outbox.put(item)
        rig.outbox.corked = False
        rig.pump.flush()

        assert rig.statistics.writes == 1
        assert rig.statistics.messages == 20
        assert rig.wire.read() == b"".join(frame(item) for item in items)


async def test_the_rest_follows_when_the_socket_is_writable(clock: Clock) -> None:
    """The rest of a blocked write follows in order, and the outbox is credited for all of it."""
    async with open_rig(max_backlog=1 << 20) as rig:
        items = [Encoded(BINARY, bytes([number]) * 5000) for number in range(60)]
        for item in items:
            rig.outbox.put(item)
        assert rig.statistics.blocked == 1
        assert rig.outbox.pending > 0

        assert await rig.read_all() == b"".join(frame(item) for item in items)
        assert rig.outbox.pending == 0


async def test_room_comes_back_while_a_slow_client_reads(clock: Clock) -> None:
    """Bytes that have left no longer count, before the whole rest is out."""
    async with open_rig(max_backlog=1 << 20) as rig:
        rig.outbox.put(Encoded(BINARY, b"x" * 500_000))
        before = rig.outbox.pending
        rig.wire.read(30_000)
        await trio.testing.wait_all_tasks_blocked(0.01)

        assert 0 < rig.outbox.pending < before


async def test_an_overflow_sends_its_close_code(clock: Clock) -> None:
    """A client too far behind gets the started write, then the close frame of the overflow."""
    async with open_rig(max_backlog=20_000) as rig:
        for _ in range(40):
            rig.outbox.put(Encoded(BINARY, b"x" * 5000))
        assert rig.outbox.disconnect is OVERLOAD
        data = await rig.read_all()

        assert data.endswith(b"\x88\x10\x03\xf5too far behind")


async def test_overflow_of_a_client_that_does_not_read_has_a_deadline(clock: Clock) -> None:
    """A dropped client that does not read has CLOSE_TIME."""
    async with open_rig(max_backlog=20_000) as rig:
        for _ in range(40):
            rig.outbox.put(Encoded(BINARY, b"x" * 5000))

        assert rig.wire.write_deadline <= trio.current_time() + CLOSE_TIME


@pytest.mark.slow
async def test_a_client_that_does_not_read_has_the_write_timeout(clock: Clock) -> None:
    """While the socket takes nothing there is a deadline, which starts anew after each part."""
    async with open_rig(max_backlog=1 << 20) as rig:
        rig.outbox.put(Encoded(BINARY, b"x" * 500_000))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert rig.wire.write_deadline == pytest.approx(trio.current_time() + 10.0, abs=0.1)
        await trio.sleep(7.0)
        rig.wire.read(30_000)
        await trio.testing.wait_all_tasks_blocked(0.01)

        assert rig.wire.write_deadline == pytest.approx(trio.current_time() + 10.0, abs=0.1)
        await rig.read_all()
        assert rig.wire.write_deadline == float("inf")


async def test_conflation_while_blocked(clock: Clock) -> None:
    """Of messages with one key only the newest waits behind a blocked socket."""
    async with open_rig(max_backlog=1 << 20) as rig:
        rig.outbox.put(Encoded(BINARY, b"x" * 500_000))
        for number in range(100):
            rig.outbox.put(Encoded(TEXT, b"state %d" % number, key="state"))
        data = await rig.read_all()

        assert data.endswith(frame(Encoded(TEXT, b"state 99")))
        assert data.count(b"state") == 1


async def test_one_writer_only(clock: Clock) -> None:
    """Messages put while the rest is being written come after it, whole."""
    async with open_rig(max_backlog=1 << 20) as rig:
        expected = b""
        got = b""
        for number in range(200):
            item = Encoded(BINARY, bytes([number % 256]) * 3000)
            expected += frame(item)
            rig.outbox.put(item)
            rig.pump.flush()
            if number % 7 == 0:
                await trio.testing.wait_all_tasks_blocked(0.0)
                got += rig.wire.read(9000)
        got += await rig.read_all()

        assert got == expected


async def test_close_frame_comes_after_waiting_messages() -> None:
    """The close frame follows the messages that were put before it."""
    async with open_rig() as rig:
        rig.outbox.corked = True
        rig.outbox.put(Encoded(TEXT, b"last"))
        rig.outbox.close(RESTART)
        rig.outbox.corked = False
        rig.pump.flush()

        assert rig.wire.read() == b"\x81\x04last\x88\x09\x03\xf4restart"


async def test_replies_to_pushes_leave_at_once_unless_they_are_corked() -> None:
    """With nothing that waits they pass by the outbox; those of one read go together, behind what waits."""
    to = [ReplyTo("1", str(ref), "t") for ref in range(3)]
    frames = [frame(Encoded(TEXT, encode_acknowledgements([one])[0])) for one in to]
    async with open_rig() as rig:
        Hub.acknowledge(rig.outbox, to[:1])
        assert rig.wire.read() == frames[0]
        assert (rig.statistics.writes, rig.outbox.pending) == (0, 0)

        rig.outbox.corked = True
        Hub.acknowledge(rig.outbox, to[1:2])
        Hub.acknowledge(rig.outbox, to[2:])
        assert rig.wire.read() == b""
        rig.pump.control([b"pong"])
        rig.outbox.corked = False
        rig.pump.flush()

        assert rig.wire.read() == b"pong" + frames[1] + frames[2]
        assert rig.statistics.writes == 1
        rig.pump.flush()
        assert rig.statistics.writes == 1


async def test_corked_answers_go_together() -> None:
    """While the frames of one read are handled nothing is written; then all replies at once."""
    async with open_rig() as rig:
        rig.outbox.corked = True
        rig.outbox.put(Encoded(TEXT, b"1"))
        rig.outbox.put(Encoded(TEXT, b"2"))
        assert rig.wire.read() == b""
        rig.pump.control([b"pong"])
        rig.outbox.corked = False
        rig.pump.flush()

        assert rig.wire.read() == b"pong\x81\x011\x81\x012"
        assert rig.statistics.writes == 1


@pytest.mark.parametrize("how", ["closed", "gone"])
async def test_nothing_is_raised_into_the_hub(how: str) -> None:
    """A connection that cannot be written to is closed, and put does not raise."""
    async with open_rig() as rig:
        if how == "closed":
            rig.wire.abort()
        else:
            rig.wire.peer.close()
        rig.outbox.put(Encoded(TEXT, b"hello"))
        rig.outbox.put(Encoded(TEXT, b"hello"))

        assert rig.wire.closed


async def test_pongs_for_a_client_that_does_not_read_are_bounded(clock: Clock) -> None:
    """A client that sends pings and reads nothing is closed before its pongs fill the memory."""
    async with open_rig(max_backlog=1 << 20) as rig:
        rig.outbox.put(Encoded(BINARY, b"x" * 500_000))
        for _ in range(MAX_CONTROL // 100 + 1):
            rig.pump.control([b"p" * 100])

        assert rig.wire.closed


async def test_a_run_is_joined_once_for_all() -> None:
    """Messages of one delivery leave in one write, and the members share the joined frames."""
    run = Run([Encoded(TEXT, b"one"), Encoded(BINARY, b"two")])
    async with open_rig() as one, open_rig() as other:
        one.outbox.put_run(run)
        wire = run.wire
        other.outbox.put_run(run)

        assert one.wire.read() == other.wire.read() == frame(run[0]) + frame(run[1])
        assert wire is not None
        assert run.wire is wire
        assert one.statistics.writes == 1
        assert one.statistics.messages == 2
        assert one.outbox.pending == 0


async def test_a_run_of_texts_is_framed_as_its_messages_are() -> None:
    """Texts without ``Encoded`` objects have the same frames, at every size of a length."""
    texts = [b"x" * size for size in (0, 1, 125, 126, 65535, 65536)]
    run = Run(texts=texts)
    assert join(run) == b"".join(frame(Encoded(TEXT, text)) for text in texts)

    assert [item.data for item in run] == texts
    assert [item.opcode for item in run] == [TEXT] * len(texts)
    assert (run.length, len(run), run.size, run.first) == (6, 6, sum(map(len, texts)), 0)
    assert run[1].data == b"x"


def broadcast(rigs: list[Rig], *data: bytes) -> bytes:
    """Put a run into all outboxes, and return its frames."""
    items = [Encoded(BINARY, each) for each in data]
    put_run_all([rig.outbox for rig in rigs], Run(items))
    return b"".join(frame(item) for item in items)


async def test_a_broadcast_goes_directly_to_sockets_of_idle_clients(clock: Clock) -> None:
    """It is framed once, and all get the same bytes past their outboxes."""
    async with open_rig() as first, open_rig() as second, open_rig() as third:
        rigs = [first, second, third]
        expected = broadcast(rigs, b"one", b"two") + broadcast(rigs, b"three")

        assert [rig.wire.read() for rig in rigs] == [expected] * 3
        assert [rig.statistics.writes for rig in rigs] == [0, 0, 0]
        assert [rig.outbox.pending for rig in rigs] == [0, 0, 0]


async def test_a_broadcast_does_not_overtake(clock: Clock) -> None:
    """Replies that are corked, and the rest of a blocked write, leave before a later broadcast."""
    async with (
        open_rig() as first,
        open_rig(max_backlog=1 << 20) as corked,
        open_rig(max_backlog=1 << 20) as slow,
    ):
        corked.outbox.corked = True
        reply = Encoded(TEXT, b"reply")
        corked.outbox.put(reply)
        large = Encoded(BINARY, b"x" * 300_000)
        slow.outbox.put(large)
        news = broadcast([first, corked, slow], b"news")
        assert corked.wire.read() == b""
        corked.outbox.corked = False
        corked.pump.flush()

        assert corked.wire.read() == frame(reply) + news
        assert await slow.read_all() == frame(large) + news
        later = broadcast([first, corked, slow], b"later")
        assert corked.wire.read() == slow.wire.read() == later
        assert corked.statistics.writes == 1


async def test_a_broadcast_that_is_taken_in_part_goes_on(clock: Clock) -> None:
    """The rest counts as pending, is bounded, and is sent in order."""
    async with open_rig() as first, open_rig(max_backlog=100_000) as slow:
        expected = broadcast([first, slow], b"x" * 500_000)
        assert slow.statistics.blocked == 1
        assert 0 < slow.outbox.pending <= 500_000
        expected += broadcast([first, slow], b"y" * 50_000)
        assert slow.outbox.disconnect is None
        assert await slow.read_all() == expected
        assert slow.outbox.pending == 0

        broadcast([first, slow], b"x" * 500_000)
        broadcast([first, slow], b"y" * 150_000)
        assert slow.outbox.disconnect is OVERLOAD


@pytest.mark.parametrize("room", [1 << 20, 8192])
async def test_a_large_message_to_one_client_is_sent_without_a_copy(clock: Clock, room: int) -> None:
    """Its parts go to the socket as they are; if that takes only some bytes, the rest follows."""
    async with open_rig() as rig:
        rig.wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
        item = Encoded(TEXT, b"[1,", b"x" * LARGE, b"]")
        run = Run([item])

        put_run_all([rig.outbox], run)

        if room > LARGE:
            assert (run.wire, item.wire, rig.outbox.pending) == (None, None, 0)
        else:
            assert rig.outbox.pending > 0
        small = Encoded(TEXT, b"after")
        put_run_all([rig.outbox], Run([small]))
        assert await rig.read_all() == frame(item) + frame(small)
        assert rig.outbox.pending == 0
        assert rig.outbox.express is not None


@pytest.mark.parametrize("how", ["blocked", "gone", "written to"])
async def test_a_large_message_waits_like_others(clock: Clock, how: str) -> None:
    """It neither overtakes nor raises."""
    async with open_rig() as rig:
        filler = Encoded(TEXT, b"y" * LARGE)
        if how == "blocked":
            while rig.wire.sock.send(b"z"):
                if rig.outbox.express is None or not writable(rig.wire.sock):
                    break
        elif how == "gone":
            rig.wire.peer.close()
        else:
            put_run_all([rig.outbox], Run([filler]))
            assert rig.outbox.express is None
        item = Encoded(TEXT, b"x" * LARGE)

        put_run_all([rig.outbox], Run([item]))

        if how == "gone":
            assert rig.wire.closed
            return
        got = await rig.read_all()
        assert got.lstrip(b"z") == (frame(filler) if how == "written to" else b"") + frame(item)


def writable(sock: socket.socket) -> bool:
    """Return whether a socket takes bytes now."""
    return bool(select.select([], [sock], [], 0)[1])


async def test_a_run_beyond_the_bound_is_put_message_by_message(clock: Clock) -> None:
    """A direct write must not let more wait behind the first message than the bound allows."""
    async with open_rig(max_backlog=1 << 22) as first, open_rig(max_backlog=10_000) as slow:
        broadcast([first, slow], b"x" * 300_000, b"y" * 300_000)

        assert slow.outbox.disconnect is OVERLOAD


@pytest.mark.parametrize("how", ["closed", "gone", "closing"])
async def test_a_broadcast_to_a_client_that_has_gone_raises_nothing(how: str) -> None:
    """The connection is closed, or takes no more messages."""
    async with open_rig() as first, open_rig() as other:
        if how == "closed":
            other.wire.abort()
        elif how == "gone":
            other.wire.peer.close()
        else:
            other.outbox.close(RESTART)
            other.wire.read()
        for _ in range(3):
            broadcast([first, other], b"hello")

        assert other.wire.closed or other.wire.read() == b""
        assert first.wire.read() == 3 * frame(Encoded(BINARY, b"hello"))


async def test_a_compressed_connection_gets_no_shared_frames() -> None:
    """Its frames are made by its own protocol."""
    async with open_rig() as rig:
        protocol = ServerProtocol(state=OPEN)
        protocol.extensions = [object()]  # type: ignore[list-item]
        pump = Pump(rig.wire, protocol, spawn=lambda _run: None, write_timeout=1.0, statistics=rig.statistics)
        outbox = Outbox(pump.wake)
        pump.attach(outbox)

        assert outbox.express is None
        assert rig.outbox.express is not None
