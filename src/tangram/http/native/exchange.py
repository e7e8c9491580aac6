"""One request and its response, as ASGI sees them.

1. ``receive`` and ``send`` let no other task run if the bytes are at hand or the socket takes them: a pass
   through the event loop costs a fifth of a request. A streamed response lets others run after each piece.
2. A response whose body is at hand is sent in one write.
3. ``http.disconnect`` is reported when the client has gone, or to a ``receive`` that is called after the
   response is complete. A complete response never ends a ``receive`` that already waits: quart-trio would
   cancel the end of its own response.
4. The next request on the connection is read only if this one has ended cleanly.
"""

from __future__ import annotations

import contextlib
import time
from typing import Final

import structlog
import trio

from tangram.asgi import Fields, Message, Scope
from tangram.groups import all_leaves_are
from tangram.http.access_log import log_access
from tangram.http.engine import ClientGone, failures_of, has_hung_up
from tangram.http.native.body import ChunkedBody, LengthBody
from tangram.http.native.head import CHUNKED, RejectedRequest, RequestHead
from tangram.http.native.host import Host
from tangram.http.native.response import (
    BadResponse,
    Framing,
    build_head,
    build_whole_head,
    header_lines,
    simple_response,
)
from tangram.http.native.stream import JOIN_BYTES, NEVER, ClientStream
from tangram.http.pending import PendingItem
from tangram.turns import ClientTurns

__all__ = ["AHEAD_BYTES", "Exchange", "reject"]

log = structlog.get_logger("tangram.http")

AHEAD_BYTES: Final = 65536
"""Bytes of later requests that are read while an application waits for ``http.disconnect``."""

SKIP_BYTES: Final = 65536
"""An unread body of at most so many bytes is skipped to keep the connection; a larger one ends it."""

SKIP_TIME: Final = 2.0
"""Seconds for each read of such a body."""

SMALL_BODY: Final = 4096
"""A body up to this size that has arrived with its head is taken at once, and not counted as an unfinished
one: the connection itself takes more memory.
"""

HANG_UP_INTERVAL: Final = 1.0
"""Seconds between two checks for a client that has gone, once no more is read ahead."""

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_ASGI: Final = {"version": "3.0", "spec_version": "2.4"}


class Exchange:
    """The application's ``receive`` for one request, and as a callable its ``send``."""

    # Defaults of the class: most requests change few of them.
    _body: LengthBody | ChunkedBody | None = None
    """The reader of a body that has not arrived with its head."""
    _whole: bytes = b""
    """A body that has."""
    _limit = 0
    _pending: PendingItem | None = None
    _turns: ClientTurns | None = None
    _waited = 0.0
    _late = False
    _continue = False
    _asked = False
    _received = 0
    _status = 0
    _head: object = ()
    _framing: Framing | None = None
    _left = 0
    complete = False
    """Whether the whole response was passed to the socket."""
    over = False
    """Whether the application may send no more."""
    sent = 0

    def __init__(self, host: Host, stream: ClientStream, request: RequestHead) -> None:
        self._host = host
        self._stream = stream
        self.request = request
        self._scope: Scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": request.version,
            "method": request.method,
            "scheme": "http",
            "path": request.path,
            "raw_path": request.raw_path,
            "query_string": request.query,
            "root_path": "",
            "headers": request.headers,
            "client": stream.client,
            "server": stream.server_address,
            "extensions": {},
        }
        if request.length:
            self._begin_body(request)

    def _begin_body(self, request: RequestHead) -> None:
        engine, stream, length = self._host.engine, self._stream, request.length
        limit = self._limit = engine.max_body(self._scope)
        if 0 < length <= SMALL_BODY and length <= len(stream.buffer) and (length <= limit or not limit):
            self._whole, stream.buffer = stream.buffer[:length], stream.buffer[length:]
            return
        self._body = ChunkedBody() if length == CHUNKED else LengthBody(length)
        self._pending = engine.pending.item(self._address, self._drop_body)
        self._continue = request.expects_continue

    @property
    def status(self) -> int:
        """The status of the response, 0 before its start; for the application's own counts."""
        return self._status

    @property
    def unread(self) -> bool:
        """Whether the client may still be sending its body."""
        return self._body is not None and not self._body.done

    @property
    def is_late(self) -> bool:
        """Whether the body has used up its time, and nothing of an answer has been sent."""
        return self._late and self._framing is None and not self.over

    async def run(self) -> bool:
        """Call the application; return whether the connection can carry another request."""
        host = self._host
        if self.request.length > self._limit > 0:
            await self._reject(self._too_large())
            return False
        host.engine.requests += 1
        began = time.perf_counter() if host.settings.access_log else 0.0
        try:
            await host.app(self._scope, self.receive, self)
        except BaseException as error:
            rest = failures_of(error)
            if rest is None or not isinstance(rest, Exception):
                raise
            self._failed(rest)
        finally:
            if self._pending is not None:
                self._pending.update(0)
        if not self.complete:
            await self._complete()
        self.over = True
        if host.settings.access_log:
            seconds = time.perf_counter() - began
            log_access(host.engine, self._scope, status=self._status, sent=self.sent, seconds=seconds)
        framing = self._framing
        if framing is None or framing.close or not self.complete or self._stream.closed:
            return False
        return self._body is None or self._body.done or await self._skip()

    # Called by the application.

    async def receive(self) -> Message:
        """Return the next piece of the body; after its end, wait until the client has gone."""
        body = self._body
        if body is None:
            if not self._asked:
                self._asked = True
                return {"type": "http.request", "body": self._whole, "more_body": False}
        elif not body.done and not self.over:
            return await self._read_body(body)
        elif not self._asked:  # an empty chunked body
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        return await self._wait_gone()

    async def _read_body(self, body: LengthBody | ChunkedBody) -> Message:
        stream = self._stream
        while True:
            if body.more:
                await self._wait_turn()
            if stream.buffer:
                self._continue = False  # the client did not wait for our consent
                try:
                    data, stream.buffer = body.feed(stream.buffer)
                except RejectedRequest as error:
                    return await self._reject(error)
                self._received += len(data)
                self._count_pending()
                if self._received > self._limit > 0:
                    return await self._reject(self._too_large())
                if data or body.done:
                    self._asked = body.done
                    return {"type": "http.request", "body": data, "more_body": not body.done}
            if self._continue:
                self._continue = False
                if self._framing is None:
                    await stream.write(_CONTINUE)
            more = await self._read_more()
            if not more:
                return await self._cut_short()
            stream.buffer += more

    async def _cut_short(self) -> Message:
        """End a request whose body stays incomplete."""
        if self._stream.eof and self._framing is None:
            return await self._reject(RejectedRequest(400, "the body is incomplete"))
        return {"type": "http.disconnect"}

    async def _wait_turn(self) -> None:
        """Wait until it is this client's turn to have more tiny chunks read."""
        if self._turns is None:
            self._turns = self._host.engine.turns.client(self._address)
        await self._turns.wait()

    async def _read_more(self) -> bytes:
        """Read a part of the body, within the time for a pause and the time for the whole body.

        Only the time in which the application waits for bytes counts.
        """
        left = max(0.0, self._host.engine.pending.time_for(self._received) - self._waited)
        pause = self._host.settings.idle_timeout
        self._late = left < pause
        began = trio.current_time()
        data = await self._stream.read(min(pause, left))
        self._waited += trio.current_time() - began
        return data

    def _count_pending(self) -> None:
        """Report the bytes of the body, which the application holds until it has answered.

        A route that accepts larger bodies than the server's default is taken to store them elsewhere.
        """
        assert self._pending is not None
        size, usual = self._received, self._host.settings.max_body
        self._pending.update(min(size, usual) if usual else size)

    def _address(self) -> str:
        return self._host.engine.address_of(self._scope)

    def _drop_body(self) -> None:
        """Close the connection because the unfinished bodies of all clients are too many."""
        if self._framing is None and not self.over:
            with contextlib.suppress(OSError):
                self._stream.sock.send(simple_response(503, "too many unfinished requests", close=True))
        self.over = True
        self._stream.abort()

    def _too_large(self) -> RejectedRequest:
        return RejectedRequest(413, f"the body is larger than {self._limit} bytes")

    async def _reject(self, error: RejectedRequest) -> Message:
        """Answer for the application, if that is still possible, and close the connection.

        For the application the client has gone.
        """
        if not self.over and self._framing is None:
            error.extra += header_lines(self._host.engine.headers_of_error(self._scope))
            await reject(self._host, self._stream, error)
        self.over = True
        self._stream.abort()
        return {"type": "http.disconnect"}

    async def _wait_gone(self) -> Message:
        stream = self._stream
        while not (self.over or self.complete or stream.closed or stream.eof):
            if len(stream.buffer) >= AHEAD_BYTES:
                # Enough is read ahead: look for the end of the connection without reading.
                if has_hung_up(stream.sock):
                    break
                await trio.sleep(HANG_UP_INTERVAL)
                continue
            data = await stream.read(NEVER)
            stream.buffer += data
        await trio.lowlevel.checkpoint()
        return {"type": "http.disconnect"}

    async def answer(self, status: int, fields: Fields, body: bytes) -> None:
        """Send a whole response that has a body; see ``tangram.asgi.WholeSend``.

        Raises:
            ClientGone: the client has closed the connection.
            BadResponse: a response was begun before, or the fields cannot be part of one.
        """
        stream, request = self._stream, self.request
        if self.over or stream.closed:
            raise ClientGone("the client has gone")
        if self._status:
            raise BadResponse("the response has already started")
        self._status = status
        keep_alive = request.keep_alive and not self._host.engine.draining and not self._must_close()
        framing = self._framing = build_whole_head(
            status, fields, len(body), version=request.version, keep_alive=keep_alive
        )
        if request.method == "HEAD":
            body = b""
        self.sent = len(body)
        if stream.writing is not None or len(body) > JOIN_BYTES:
            await stream.write_joined(framing.head, body)
        elif rest := stream.write_nowait(framing.head + body):
            await stream.write_rest(rest)
        self.complete = True

    async def __call__(self, message: Message) -> None:
        """Send the response's start, then its body in pieces: ASGI's ``send``.

        Raises:
            ClientGone: the client has closed the connection.
            BadResponse: the message does not belong here, or cannot be a response.
        """
        kind = message["type"]
        if kind == "http.response.start":
            if self._status:
                raise BadResponse("the response has already started")
            self._status = int(message["status"])
            self._head = message.get("headers", ())
            return
        if kind != "http.response.body":
            raise BadResponse(f"unexpected message {kind!r}")
        if self.over or self._stream.closed:
            raise ClientGone("the client has gone")
        if self.complete:
            raise BadResponse("the response is already complete")
        if not self._status:
            raise BadResponse("a body before the response's start")
        body = message.get("body", b"")
        more = message.get("more_body", False)
        if self._framing is None:
            await self._send_first(body, more=more)
        else:
            await self._send_piece(body, more=more)
        if more:
            await trio.lowlevel.checkpoint()
        else:
            self.complete = True

    async def _send_first(self, body: bytes, *, more: bool) -> None:
        """Send the head, with the first piece of the body."""
        stream, request = self._stream, self.request
        framing = build_head(
            self._status,
            self._head,  # type: ignore[arg-type]  # the application's, checked by build_head
            whole=-1 if more else len(body),
            bodiless=request.method == "HEAD" or self._status == 304,
            version=request.version,
            keep_alive=request.keep_alive and not self._host.engine.draining and not self._must_close(),
        )
        self._left = framing.length
        data = self._frame(framing, body, more=more)
        self._framing = framing
        await stream.write_joined(framing.head, data)

    def _must_close(self) -> bool:
        """Return whether the connection will end because of an unread body."""
        body = self._body
        if body is None or body.done:
            return False
        if self._continue or isinstance(body, ChunkedBody):
            return True
        return body.left - len(self._stream.buffer) > SKIP_BYTES

    async def _send_piece(self, body: bytes, *, more: bool) -> None:
        assert self._framing is not None
        data = self._frame(self._framing, body, more=more)
        if data:
            await self._stream.write(data)

    def _frame(self, framing: Framing, body: bytes, *, more: bool) -> bytes:
        """Return the bytes that carry a piece of the body."""
        size = len(body)
        self.sent += size
        if framing.length > 0:
            self._left -= size
            if self._left < 0 or (self._left and not more):
                raise BadResponse("the body is not as long as its content-length")
            return body
        if framing.length == 0:  # HEAD and the like; an empty body
            if size and self.request.method != "HEAD" and self._status not in {204, 304}:
                raise BadResponse("the body is longer than its content-length")
            return b""
        if framing.length == CHUNKED:
            data = b"%x\r\n%b\r\n" % (size, body) if size else b""
            return data if more else data + b"0\r\n\r\n"
        return body

    # The end.

    def _failed(self, error: Exception) -> None:
        if self.over or all_leaves_are(error, ClientGone):
            return
        self._host.engine.failed += 1
        log.error("application failed", path=self.request.path, exc_info=error)

    async def _complete(self) -> None:
        """End an incomplete response: by 500 if nothing was sent, else by closing."""
        stream = self._stream
        if self._framing is None and not self.over and not stream.closed:
            extra = header_lines(self._host.engine.headers_of_error(self._scope))
            await stream.write(simple_response(500, "internal server error", close=True, extra=extra))
            self._status = 500
        self.over = True

    async def _skip(self) -> bool:
        """Read a small unread body to its end; return whether another request can follow."""
        body, stream = self._body, self._stream
        assert body is not None
        if self._continue or stream.reading or (isinstance(body, LengthBody) and body.left > SKIP_BYTES):
            return False
        taken = 0
        while True:
            try:
                data, stream.buffer = body.feed(stream.buffer)
            except RejectedRequest:
                return False  # a second answer would be taken for the answer to the next request
            taken += len(data)
            if body.done or taken > SKIP_BYTES:
                return body.done
            if body.more:
                await self._wait_turn()
                continue
            more = await stream.read(SKIP_TIME)
            if not more:
                return False
            stream.buffer += more


async def reject(host: Host, stream: ClientStream, error: RejectedRequest) -> None:
    """Answer a request that cannot be read, and close our side of the connection."""
    host.engine.rejected += 1
    host.engine.log_client("request rejected", stream.client[0], status=error.status, reason=error.reason)
    stream.buffer = b""
    with contextlib.suppress(ClientGone):
        await stream.write(simple_response(error.status, error.reason, close=True, extra=error.extra))
        await stream.linger()
