"""The byte stream of one client: a socket, a buffer, and two deadlines.

1. Reading and writing go straight to the socket; the event loop is asked only when the socket is not ready.
2. Deadlines are two numbers, which the server checks every half second. A waiting connection costs no timer.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Final

import trio

from tangram.http.engine import ClientGone, PeerAddress
from tangram.readiness import Readiness

__all__ = ["NEVER", "READ_SIZE", "ClientStream"]

NEVER: Final = float("inf")
"""A deadline or a timeout that does not exist."""

READ_SIZE: Final = 65536
"""Bytes taken from the socket at once."""

JOIN_BYTES: Final = 65536
"""A body up to this size is copied behind its head, which is cheaper than two writes."""

LINGER_TIME: Final = 2.0
"""Seconds for which bytes are still read, and dropped, after the last answer."""

LINGER_BYTES: Final = 1024 * 1024
"""Bytes read and dropped after the last answer: a refused body that is larger ends in a reset."""

_MORE_FOLLOWS: Final[int] = getattr(socket, "MSG_MORE", 0)
"""A flag of ``send``: the kernel keeps the bytes back until others follow, where it has the flag."""

_wait_readable = trio.lowlevel.wait_readable
_wait_writable = trio.lowlevel.wait_writable
_now = trio.current_time


class ClientStream:
    """A client's socket with the state that reading and writing need."""

    __slots__ = (
        "buffer",
        "client",
        "closed",
        "eof",
        "read_deadline",
        "readiness",
        "reading",
        "server_address",
        "sock",
        "write_deadline",
        "write_timeout",
        "writing",
    )

    def __init__(self, sock: socket.socket, address: PeerAddress, write_timeout: float) -> None:
        """Wrap a socket.

        Args:
            sock: the connected, non-blocking socket.
            address: the peer's address.
            write_timeout: seconds in which the client must take at least some bytes of a write.
        """
        self.sock = sock
        self.client: tuple[str, int] = (address[0], address[1])
        """Host and port of the client."""
        self.server_address: tuple[str, int] | None = None
        """Host and port on which the client connected."""
        self.write_timeout = write_timeout
        self.buffer = b""
        """Bytes that were read and not used yet."""
        self.read_deadline = NEVER
        self.write_deadline = NEVER
        self.closed = False
        """Whether we have closed the socket."""
        self.eof = False
        """Whether the client sends no more."""
        self.reading = False
        """Whether a task waits in ``read``."""
        self.readiness: Readiness | None = None
        """Serves the socket, once it is that of a channel's WebSocket."""
        self.writing: trio.Event | None = None
        """Set when the write that waits for the client has ended; None if none waits."""

    def open(self) -> None:
        """Set the socket's options, and learn on which address the client connected."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.server_address = self.sock.getsockname()[:2]

    def abort(self) -> None:
        """Close the socket; a task that waits for it gets an error."""
        if not self.closed:
            self.closed = True
            if self.readiness is not None:
                self.readiness.forget(self.sock)
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()

    def peek(self) -> bool:
        """Return whether unread bytes wait in the socket. Does not block."""
        try:
            return bool(self.sock.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    async def read(self, timeout: float) -> bytes:
        """Return the next bytes, or ``b""`` if there will be none.

        There are none once the client sends no more or has gone, and after ``timeout`` seconds.
        """
        self.reading = True
        if timeout is not NEVER:
            self.read_deadline = _now() + timeout
        try:
            while not self.closed and not self.eof:
                await _wait_readable(self.sock)
                try:
                    data = self.sock.recv(READ_SIZE)
                except BlockingIOError:
                    continue
                if data:
                    return data
                self.eof = True
        except (OSError, trio.ClosedResourceError):
            self.eof = True
        finally:
            self.reading = False
            self.read_deadline = NEVER
        return b""

    async def write(self, data: bytes | memoryview) -> None:
        """Send all of ``data``.

        Other tasks do not run in between if the socket takes everything at once.

        Raises:
            ClientGone: the client has closed the connection, or did not read in time.
        """
        if self.writing is not None:
            await self._wait_turn()
        rest = self.write_nowait(data)
        if rest is not None:
            await self.write_rest(rest)

    def write_nowait(self, data: bytes | memoryview, flags: int = 0) -> memoryview | None:
        """Send as much as the socket takes at once; return the rest, for ``write_rest``, or None.

        To be called while no other write waits: see ``writing``. ``flags`` are those of ``send``.

        Raises:
            ClientGone: the client has closed the connection.
        """
        try:
            sent = self.sock.send(data, flags)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise ClientGone("the client has gone") from error
        return None if sent == len(data) else memoryview(data)[sent:]

    async def write_joined(self, head: bytes, body: bytes) -> None:
        """Send a head and the body behind it, without a copy of a large body.

        Raises:
            ClientGone: the client has closed the connection, or did not read in time.
        """
        if len(body) <= JOIN_BYTES:
            await self.write(head + body)
            return
        if self.writing is not None:
            await self._wait_turn()
        # The kernel takes a large body alone for a seventh less than as one of two buffers of a sendmsg.
        rest = self.write_nowait(head, _MORE_FOLLOWS)
        if rest is not None:
            await self.write_rest(memoryview(bytes(rest) + body))
        elif rest := self.write_nowait(body):
            await self.write_rest(rest)

    async def _wait_turn(self) -> None:
        while self.writing is not None:
            await self.writing.wait()

    async def write_rest(self, rest: memoryview) -> None:
        """Send the rest of a write, as fast as the client reads.

        Raises:
            ClientGone: the client has closed the connection, or did not read in time.
        """
        done = self.writing = trio.Event()
        try:
            while rest and not self.closed:
                # Set anew at each step: the client has this long to take some bytes, not all of them.
                self.write_deadline = _now() + self.write_timeout
                await _wait_writable(self.sock)
                with contextlib.suppress(BlockingIOError):
                    rest = rest[self.sock.send(rest) :]
        except (OSError, trio.ClosedResourceError) as error:
            raise ClientGone("the client has gone") from error
        except trio.Cancelled:
            self.abort()  # half of a message was sent: nothing can follow it
            raise
        finally:
            self.write_deadline = NEVER
            self.writing = None
            done.set()
        if rest:
            raise ClientGone("the connection was closed while it was written to")

    async def linger(self) -> None:
        """Close our side, and drop the bytes that the client still sends for a moment.

        A close with unread bytes would be a reset, and the client would lose our last answer.
        """
        self.buffer = b""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return
        until = _now() + LINGER_TIME
        dropped = 0
        while dropped < LINGER_BYTES:
            data = await self.read(max(0.0, until - _now()))
            if not data:
                return
            dropped += len(data)
