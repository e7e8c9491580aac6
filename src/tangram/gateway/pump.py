"""Write the messages of an outbox to a socket, directly from the hub's delivery.

1. The outbox calls ``wake``, which sends the whole backlog at once in one non-blocking write. No task waits
   for messages, and nothing is scheduled for a client that keeps up. While nothing waits the outbox has the
   socket's ``send`` as its ``express``, for broadcasts.
2. A broadcast is framed once: the frame is stored in the message, which all members share.
3. There is one writer: while the socket takes no more, one task writes the rest, and new messages stay in
   the outbox, which has the bound, the disconnect and the conflation. Pongs and close frames go the same way.
4. Nothing here raises into the hub: a connection that cannot be written to is closed, which its reader
   notices.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import attrs
import structlog
import trio
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from tangram.channels.disconnects import GONE, OVERLOAD
from tangram.channels.frames import TEXT, Encoded, Run
from tangram.channels.outbox import Outbox

__all__ = ["Pump", "PumpStatistics", "Wire", "frame", "join"]

log = structlog.get_logger("tangram.http")

CLOSE_TIME: Final = 2.0
"""Seconds for a client to take the rest and to answer the close frame, once its connection is to end."""

MAX_CONTROL: Final = 65536
"""Bytes of pongs that may wait for a client that sends pings and does not read; more ends the connection."""

NEVER: Final = float("inf")

_NOTHING: Final = Outbox(lambda: None)
"""The outbox of a pump before ``attach``: always empty."""

_wait_writable = trio.lowlevel.wait_writable
_now = trio.current_time


class Wire(Protocol):
    """The connection under a pump."""

    sock: socket.socket
    read_deadline: float
    write_deadline: float
    closed: bool

    def abort(self) -> None:
        """Close the socket, and wake the tasks that wait for it."""


@attrs.define
class PumpStatistics:
    """The counters of an engine, shared by all its pumps."""

    writes: int = 0
    """Non-blocking writes, without those of ``express``."""
    messages: int = 0
    """Messages handed to sockets by them."""
    blocked: int = 0
    """Writes of which the socket took only a part."""


def frame(item: Encoded) -> bytes:
    """Return the frame of a message, and store it in ``item.wire``.

    It is unmasked, as a server sends it (RFC 6455, section 5.2).
    """
    item.wire = wire = b"".join((_head(item), *item.parts))
    return wire


def _head(item: Encoded) -> bytes:
    size = item.size
    first = 0x80 | item.opcode
    if size < 126:
        return bytes((first, size))
    if size < 65536:
        return bytes((first, 126, size >> 8, size & 0xFF))
    return bytes((first, 127)) + size.to_bytes(8, "big")


def join(run: Run) -> bytes:
    """Return the frames of a run in one piece, and store them in ``run.wire``."""
    if run.only is not None:
        run.wire = wire = run.only.wire or frame(run.only)
    elif run.texts is None:
        run.wire = wire = b"".join([item.wire or frame(item) for item in run.items])
    else:
        run.wire = wire = b"".join(
            [
                b"\x81%c%b" % (size, text)
                if (size := len(text)) < 126
                else b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), text)
                if size < 65536
                else b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), text)
                for text in run.texts
            ]
        )
    return wire


class Pump:
    """The writer of one WebSocket."""

    __slots__ = (
        "_control",
        "_credit",
        "_express",
        "_outbox",
        "_rest",
        "_spawn",
        "_statistics",
        "connection",
        "end_at",
        "protocol",
        "write_timeout",
    )

    def __init__(
        self,
        connection: Wire,
        protocol: ServerProtocol,
        *,
        spawn: Callable[[Callable[[], Awaitable[None]]], None],
        write_timeout: float,
        statistics: PumpStatistics,
    ) -> None:
        """Make a pump.

        Args:
            connection: the socket and its deadlines.
            protocol: the state of the WebSocket, which also compresses if that was negotiated.
            spawn: starts a task beside the connection's own, for the time that the socket takes no more.
            write_timeout: seconds within which the client must take something.
            statistics: the counters of the engine.
        """
        self.connection = connection
        self.protocol = protocol
        self.write_timeout = write_timeout
        self._outbox = _NOTHING
        # Compressed frames differ for each connection.
        self._express = None if protocol.extensions else connection.sock.send
        self.end_at = NEVER
        """The time at which the connection ends at the latest; set once it is to end."""
        self._spawn = spawn
        self._statistics = statistics
        self._control = b""
        self._rest: memoryview | None = None
        self._credit = 0

    def attach(self, outbox: Outbox) -> None:
        """Set the outbox to empty; from now on ``wake`` sends."""
        self._outbox = outbox
        outbox.resume, outbox.join = self._resume, join
        outbox.express_parts = self._send_parts
        self.flush()

    def wake(self) -> None:
        """Send all messages of the outbox, unless an earlier write is unfinished."""
        if self._rest is None:
            if not self._outbox.corked and self._send_all():
                self._spawn(self._write_rest)
        elif self._outbox.disconnect is not None:
            self._begin_end()
            self.connection.write_deadline = min(self.connection.write_deadline, self.end_at)

    def flush(self) -> None:
        """Send everything that waits in one write; it never blocks and never raises."""
        # With an ``express`` the outbox is open and has nothing that waits.
        nothing = self._outbox.express is not None and not self._control
        if not nothing and self._rest is None and self._send_all():
            self._spawn(self._write_rest)

    def _send_all(self) -> bool:
        """Try one write of everything, and return whether a rest is left."""
        connection = self.connection
        if connection.closed:
            return False
        data, credit = self._collect()
        if not data:
            self._allow_express()
            return False
        self._statistics.writes += 1
        try:
            sent = connection.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            connection.abort()
            return False
        if sent == len(data):
            if credit:
                self._outbox.written(credit)
            self._allow_express()
            return False
        self._keep_rest(data, sent, credit)
        return True

    def _allow_express(self) -> None:
        """Let broadcasts go directly to the socket, because nothing waits."""
        outbox = self._outbox
        if (
            outbox is not _NOTHING
            and outbox.disconnect is None
            and not len(outbox)
            and self.protocol.state is OPEN
        ):
            outbox.express = self._express

    def _send_parts(self, item: Encoded) -> int:
        """Send a large message without joining its parts; return how many bytes are left."""
        head = _head(item)
        return len(head) + item.size - self.connection.sock.sendmsg((head, *item.parts))

    def _resume(self, wire: bytes, sent: int, size: int) -> None:
        """Send the rest of a broadcast, of which ``express`` has taken ``sent`` bytes."""
        self._keep_rest(wire, sent, size)
        self._spawn(self._write_rest)

    def _keep_rest(self, data: bytes, sent: int, credit: int) -> None:
        self._outbox.express = None
        self._statistics.blocked += 1
        self._credit = credit
        self._rest = memoryview(data)[sent:]
        self._written(sent)
        self.connection.write_deadline = min(_now() + self.write_timeout, self.end_at)

    def control(self, frames: list[bytes]) -> None:
        """Add control frames (pongs, the answer to a close frame), to be sent before the outbox."""
        self._control += b"".join(frames)
        if len(self._control) > MAX_CONTROL:
            self._outbox.close(OVERLOAD)
            self.connection.abort()

    def ping(self) -> None:
        """Send a ping, to find out whether the client is still there."""
        if self.protocol.state is OPEN:
            self.protocol.send_ping(b"")
            self.control(self.protocol.data_to_send())
            self.flush()

    def _collect(self) -> tuple[bytes, int]:
        """Return everything that waits, framed, and its payload bytes for ``Outbox.written``."""
        data, self._control = self._control, b""
        outbox = self._outbox
        credit = 0
        items = outbox.take_all()
        count = items.length if type(items) is Run else len(items)
        if count and self.protocol.state is OPEN:
            self._statistics.messages += count
            if self.protocol.extensions:
                data += self._compress(items)
                credit = sum(item.size for item in items)
            elif type(items) is Run:
                wire = items.wire or join(items)
                data, credit = data + wire if data else wire, items.size
            elif count == 1 and not data:
                item = items[0]
                data, credit = item.wire or frame(item), item.size
            else:
                parts = [data]
                for item in items:
                    parts.append(item.wire or frame(item))
                    credit += item.size
                data = b"".join(parts)
        if outbox.disconnect is not None:
            self._begin_end()
            if self.protocol.state is OPEN and outbox.disconnect != GONE:
                self.protocol.send_close(outbox.disconnect.code, outbox.disconnect.reason)
                data += b"".join(self.protocol.data_to_send())
        return data, credit

    def _compress(self, items: Sequence[Encoded]) -> bytes:
        for item in items:
            if item.opcode == TEXT:
                self.protocol.send_text(item.data)
            else:
                self.protocol.send_binary(item.data)
        return b"".join(self.protocol.data_to_send())

    def _begin_end(self) -> None:
        """Give the connection CLOSE_TIME from now on, if that has not begun."""
        if self.end_at == NEVER:
            self.end_at = _now() + CLOSE_TIME
            self.connection.read_deadline = self.end_at

    def _written(self, size: int) -> None:
        """Credit the outbox for bytes that have left, before the rest of the write is out."""
        credit = min(size, self._credit)
        if credit:
            self._credit -= credit
            self._outbox.written(credit)

    async def _write_rest(self) -> None:
        connection = self.connection
        try:
            while self._rest is not None and not connection.closed:
                # The deadline begins again at each step: it is the time to take something, not everything.
                connection.write_deadline = min(_now() + self.write_timeout, self.end_at)
                await _wait_writable(connection.sock)
                try:
                    sent = connection.sock.send(self._rest)
                except BlockingIOError:
                    continue
                self._rest = self._rest[sent:]
                self._written(sent if self._rest else self._credit)
                if not self._rest:
                    self._rest = None
                    connection.write_deadline = NEVER
                    self._send_all()  # messages that came meanwhile; this task writes their rest, too
        except (OSError, trio.ClosedResourceError):
            connection.abort()
        except trio.Cancelled:
            connection.abort()  # half a frame may be out, so that nothing can follow it
            raise
