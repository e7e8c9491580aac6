"""One connection of the native engine: one task, one socket, requests one after the other.

1. The application runs in the connection's own task: no nursery, no timer and no parser belongs to a
   connection that waits. Deadlines are two numbers, which the engine looks at every half second.
2. Reading and writing go straight to the socket; the event loop is asked only when the socket is not ready.
3. Whatever the client does ends here: a broken request is answered and the connection closed after what it
   had sent was taken (a close with unread bytes would be a reset, and the answer lost).
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Final, Protocol

import trio

from tangram.http.engine import ClientGone, PeerAddress
from tangram.http.native.exchange import Exchange
from tangram.http.native.head import BadHead, parse_head, premature_fault
from tangram.http.native.response import simple_response

if TYPE_CHECKING:
    from tangram.http.native.server import NativeServer

__all__ = ["HttpConnection", "Upgraded"]

NEVER: Final = float("inf")

READ_SIZE: Final = 65536
"""Bytes taken from the socket at once."""

LINGER_TIME: Final = 2.0
"""Seconds for which bytes are still taken, and dropped, after the last answer."""

LINGER_BYTES: Final = 1024 * 1024
"""Bytes dropped at most after the last answer: a larger body that was refused ends in a reset."""

_wait_readable = trio.lowlevel.wait_readable
_wait_writable = trio.lowlevel.wait_writable
_now = trio.current_time


class Upgraded(Protocol):
    """What a connection has become: a WebSocket."""

    def say_goodbye(self, code: int) -> None:
        """Begin the closing handshake."""

    def tick(self, now: float) -> None:
        """Half a second has passed: is a ping due?"""


class HttpConnection:
    """One client's connection until it ends or becomes a WebSocket."""

    __slots__ = (
        "_writing",
        "adopted",
        "buffer",
        "client",
        "closed",
        "eof",
        "exchange",
        "read_deadline",
        "reading",
        "server",
        "server_address",
        "sock",
        "upgraded",
        "write_deadline",
    )

    def __init__(self, server: NativeServer, sock: socket.socket, address: PeerAddress) -> None:
        self.server = server
        self.sock = sock
        self.client: tuple[str, int] = (address[0], address[1])
        self.server_address: tuple[str, int] | None = None
        self.buffer = b""
        self.read_deadline = NEVER
        self.write_deadline = NEVER
        self.closed = False
        self.eof = False
        self.reading = False
        self.exchange: Exchange | None = None
        self.upgraded: Upgraded | None = None
        self.adopted = False
        """Another task carries it on."""
        self._writing: trio.Event | None = None

    # What the engine asks of it.

    def drain(self) -> None:
        """Nothing to do: each response asks the engine whether the connection may be kept."""

    def close_idle(self) -> None:
        """Close, unless a request is in hand or has just arrived."""
        if self.exchange is None and self.upgraded is None and not self.buffer:
            try:
                waiting = self.sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                waiting = b""
            except OSError:
                waiting = b""
            if not waiting:
                self.abort()

    def say_goodbye(self, code: int) -> None:
        """Tell a WebSocket to go."""
        if self.upgraded is not None:
            self.upgraded.say_goodbye(code)

    def abort(self) -> None:
        """Close the socket; whoever waits for it is woken by an error."""
        if not self.closed:
            self.closed = True
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()

    def expire(self, now: float) -> None:
        """A deadline has passed: end what was too slow."""
        if self.write_deadline <= now:
            self.server.engine.stalled += 1
        elif self.exchange is None and self.buffer:
            self.server.engine.rejected += 1
            with contextlib.suppress(OSError):
                self.sock.send(simple_response(408, "the request took too long", close=True))
        self.abort()

    # The socket.

    async def read(self, timeout: float) -> bytes:
        """What has come; empty when the client sends no more, has gone, or took longer than ``timeout``."""
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
        """Send all of it. Raises ClientGone. Does not give way to other tasks if the socket takes it at
        once.
        """
        if self._writing is not None:
            await self._wait_turn()
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise ClientGone("the client has gone") from error
        if sent != len(data):
            await self._write_rest(memoryview(data)[sent:])

    async def _wait_turn(self) -> None:
        while self._writing is not None:
            await self._writing.wait()

    async def _write_rest(self, rest: memoryview) -> None:
        done = self._writing = trio.Event()
        try:
            while rest and not self.closed:
                # Anew at each step: the client has this long to take something, not everything.
                self.write_deadline = _now() + self.server.settings.write_timeout
                await _wait_writable(self.sock)
                with contextlib.suppress(BlockingIOError):
                    rest = rest[self.sock.send(rest) :]
        except (OSError, trio.ClosedResourceError) as error:
            raise ClientGone("the client has gone") from error
        except trio.Cancelled:
            self.abort()  # half a message is out: nothing can follow it
            raise
        finally:
            self.write_deadline = NEVER
            self._writing = None
            done.set()
        if rest:
            raise ClientGone("the connection was closed while it was written to")

    # Requests.

    async def run(self) -> None:
        """Serve requests until the connection ends."""
        try:
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.server_address = self.sock.getsockname()[:2]
            while await self._serve_one():
                pass
        except BadHead as error:
            await self.reject(error)
        except ClientGone:
            pass
        finally:
            if not self.adopted:
                self.abort()

    async def _serve_one(self) -> bool:
        end = self.buffer.find(b"\r\n\r\n")
        if end >= 0:
            await trio.lowlevel.checkpoint()  # pipelined: the others get their turn between two requests
        else:
            end = await self._read_head()
            if end < 0:
                return False
        settings = self.server.settings
        if end > settings.max_header_bytes:
            raise BadHead(431, f"the request's head is larger than {settings.max_header_bytes} bytes")
        end += 4
        request = parse_head(self.buffer[:end], settings.max_headers)
        self.buffer = self.buffer[end:]
        if request.length > settings.max_body > 0:
            raise BadHead(413, f"the body is larger than {settings.max_body} bytes")
        if request.websocket:
            await self.server.upgrade(self, request)
            return False
        exchange = self.exchange = Exchange(self, request)
        keep = await exchange.run()
        if not keep or self.reading or self.closed:
            await self._finish(exchange)
            return False
        self.exchange = None
        return not self.eof or bool(self.buffer)

    async def _read_head(self) -> int:
        """Wait for a whole head; answers where its empty line begins, or -1 when the connection has ended."""
        settings = self.server.settings
        timeout = settings.idle_timeout
        started = 0.0
        while True:
            if self.buffer:
                fault = premature_fault(self.buffer)
                if fault is not None:
                    raise fault
                if len(self.buffer) > settings.max_header_bytes:
                    raise BadHead(431, f"the request's head is larger than {settings.max_header_bytes} bytes")
                started = started or _now()
                timeout = max(0.0, started + settings.header_timeout - _now())
            data = await self.read(timeout)
            if not data:
                return -1
            self.buffer = self.buffer + data if self.buffer else data
            end = self.buffer.find(b"\r\n\r\n")
            if end >= 0:
                return end

    # The end.

    async def reject(self, error: BadHead) -> None:
        """Answer a request that cannot be read, and close."""
        self.server.engine.rejected += 1
        self.buffer = b""
        with contextlib.suppress(ClientGone):
            await self.write(simple_response(error.status, error.reason, close=True, extra=error.extra))
            await self.linger()

    async def _finish(self, exchange: Exchange) -> None:
        if exchange.unread and not self.closed and not self.reading:
            await self.linger()

    async def linger(self) -> None:
        """Close our side, and take what the client still sends for a moment: a reset would eat our answer."""
        self.buffer = b""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return
        until = _now() + LINGER_TIME
        taken = 0
        while taken < LINGER_BYTES:
            data = await self.read(max(0.0, until - _now()))
            if not data:
                return
            taken += len(data)
