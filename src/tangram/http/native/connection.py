"""One connection of the native engine: one task, one socket, requests one after the other.

1. The application runs in the connection's own task: a waiting connection has no nursery, no timer and no
   parser.
2. The client's errors end here. A broken request is answered, and the connection is closed after the bytes
   that the client had sent were read (a close with unread bytes would be a reset, and the answer lost).
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from tangram.http.engine import ClientGone
from tangram.http.native.exchange import Exchange, reject
from tangram.http.native.head import HeadReader, RejectedRequest, RequestHead, premature_fault
from tangram.http.native.host import Host, Upgraded
from tangram.http.native.response import simple_response
from tangram.http.native.stream import ClientStream
from tangram.turns import ClientTurns

__all__ = ["HttpConnection"]

FREE_PIPELINED: Final = 16
"""Pipelined requests in a row that are served one in each pass of the loop; later ones wait for a turn."""

_TOO_LARGE: Final = "the request's head is larger than {} bytes"

_now = trio.current_time


class HttpConnection:
    """One client's connection until it ends or becomes a WebSocket."""

    __slots__ = (
        "_heads",
        "_pipelined",
        "_turns",
        "_upgrade",
        "adopted",
        "exchange",
        "host",
        "requested",
        "stream",
        "upgraded",
    )

    def __init__(
        self,
        host: Host,
        stream: ClientStream,
        upgrade: Callable[[HttpConnection, RequestHead], Awaitable[None]],
    ) -> None:
        """Prepare a connection.

        Args:
            host: the server.
            stream: the client's socket.
            upgrade: serves the connection as a WebSocket, given the request that asked for it.
        """
        self.host = host
        self.stream = stream
        self._upgrade = upgrade
        self._heads = HeadReader()
        self._pipelined = 0
        self._turns: ClientTurns | None = None
        self.exchange: Exchange | None = None
        """The request in hand."""
        self.upgraded: Upgraded | None = None
        self.requested = False
        """Whether the head of a request has arrived."""
        self.adopted = False
        """Whether another task serves the connection to its end."""

    # Called by the engine.

    def drain(self) -> None:
        """Do nothing: each response asks the engine whether the connection may be kept."""

    def close_idle(self) -> None:
        """Close, unless a request is in hand or has just arrived."""
        stream = self.stream
        if self.exchange is None and self.upgraded is None and not stream.buffer and not stream.peek():
            stream.abort()

    def start_close(self, code: int) -> bool:
        """Begin to close a WebSocket; return False if the connection may still become one."""
        return self.upgraded is not None and self.upgraded.start_close(code)

    def has_requested(self) -> bool:
        """Return whether the client has sent at least one request."""
        return self.requested

    def abort(self) -> None:
        """Close the socket; a task that waits for it gets an error."""
        self.stream.abort()

    def tick(self, now: float) -> None:
        """Close the connection if a deadline has passed; let a WebSocket send its ping."""
        stream = self.stream
        if stream.read_deadline <= now or stream.write_deadline <= now:
            self._expire(now)
        elif self.upgraded is not None:
            self.upgraded.tick(now)

    def _expire(self, now: float) -> None:
        stream = self.stream
        engine, address = self.host.engine, stream.client[0]
        if stream.write_deadline <= now:
            engine.stalled += 1
            engine.log_client("client does not read", address)
        elif stream.buffer if self.exchange is None else self.exchange.is_late:
            engine.rejected += 1
            engine.log_client("request took too long", address)
            with contextlib.suppress(OSError):
                stream.sock.send(simple_response(408, "the request took too long", close=True))
        stream.abort()

    # Requests.

    async def run(self) -> None:
        """Serve requests until the connection ends."""
        try:
            self.stream.open()
            while await self._serve_one():
                pass
        except RejectedRequest as error:
            await reject(self.host, self.stream, error)
        except ClientGone:
            pass
        finally:
            if not self.adopted:
                self.stream.abort()

    async def _serve_one(self) -> bool:
        """Serve the next request; return whether another one may follow."""
        host, stream = self.host, self.stream
        settings = host.settings
        pipelined = stream.buffer
        if not pipelined:
            # Nearly always one read brings the whole head.
            self._pipelined = 0
            stream.buffer = await stream.read(settings.idle_timeout)
            if not stream.buffer:
                return False
        skipped = self._skip_empty_line()
        end = stream.buffer.find(b"\r\n\r\n")
        if end < 0:
            self._pipelined = 0
            end = await self._read_head(skipped=skipped)
            if end < 0:
                return False
        elif pipelined:
            await self._wait_pipelined()
        if end > settings.max_header_bytes:
            raise RejectedRequest(431, _TOO_LARGE.format(settings.max_header_bytes))
        end += 4
        request = self._heads.read(stream.buffer, end, settings.max_headers)
        self.requested = True
        stream.buffer = stream.buffer[end:]
        if request.websocket:
            self._heads = HeadReader()  # a WebSocket may stay for hours: it needs no memory of its requests
            await self._upgrade(self, request)
            return False
        exchange = self.exchange = Exchange(host, stream, request)
        keep = await exchange.run()
        if not keep or stream.reading or stream.closed:
            if exchange.unread and not stream.closed and not stream.reading:
                await stream.linger()
            return False
        self.exchange = None
        return not stream.eof or bool(stream.buffer)

    async def _wait_pipelined(self) -> None:
        """Let other connections run between two pipelined requests."""
        self._pipelined += 1
        if self._pipelined < FREE_PIPELINED:
            await trio.lowlevel.checkpoint()
            return
        if self._turns is None:
            self._turns = self.host.engine.turns.client(lambda: self.stream.client[0])
        await self._turns.wait()

    def _skip_empty_line(self) -> bool:
        """Drop one empty line before a request; return whether there was one.

        Some clients send a line break behind a body. RFC 9112, section 2.2, asks for one to be ignored; with
        any number of them a client could keep the connection busy without sending a request.
        """
        stream = self.stream
        if not stream.buffer.startswith(b"\r\n"):
            return False
        stream.buffer = stream.buffer[2:]
        return True

    async def _read_head(self, *, skipped: bool) -> int:
        """Wait for a whole head; return the offset of its empty line, or -1 at the end.

        ``skipped``: whether an empty line before the request was already dropped.
        """
        stream, settings = self.stream, self.host.settings
        timeout = settings.idle_timeout
        started = 0.0
        while True:
            if stream.buffer:
                fault = premature_fault(stream.buffer)
                if fault is not None and (skipped or stream.buffer != b"\r"):
                    raise fault
                if len(stream.buffer) > settings.max_header_bytes:
                    raise RejectedRequest(431, _TOO_LARGE.format(settings.max_header_bytes))
                started = started or _now()
                timeout = max(0.0, started + settings.header_timeout - _now())
            data = await stream.read(timeout)
            if not data:
                return -1
            stream.buffer = stream.buffer + data if stream.buffer else data
            skipped = skipped or self._skip_empty_line()
            end = stream.buffer.find(b"\r\n\r\n")
            if end >= 0:
                return end
