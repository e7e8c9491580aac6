"""One request and its response, as ASGI sees them.

1. ``receive`` and ``send`` do not give way to other tasks where the bytes are at hand or the socket takes
   them: a pass through the event loop costs a fifth of a request. A streamed response gives way after each
   piece.
2. A response whose body is at hand goes out in one write.
3. ``http.disconnect`` is told when the client has gone, or to whoever asks after the response is complete;
   never to end somebody's wait because a response is complete: quart-trio would cancel the tail of its own
   response.
4. Whatever the application does, the next request on the connection is read only if this one has ended
   cleanly.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog
import trio

from tangram.asgi import Message, Scope
from tangram.groups import all_leaves_are
from tangram.http.engine import ClientGone, failures_of, has_hung_up
from tangram.http.native.body import ChunkedBody, LengthBody
from tangram.http.native.head import CHUNKED, BadHead, RequestHead
from tangram.http.native.response import BadResponse, Framing, build_head, simple_response

if TYPE_CHECKING:
    from tangram.http.native.connection import HttpConnection

__all__ = ["AHEAD_BYTES", "Exchange"]

log = structlog.get_logger("tangram.http")

AHEAD_BYTES = 65536
"""Bytes of later requests that are kept while an application waits to hear whether its client is still
there.
"""

SKIP_BYTES = 65536
"""An unread body of at most so many bytes is skipped to keep the connection; a larger one ends it."""

SKIP_TIME = 2.0
"""Seconds for each read of that."""

JOIN_BYTES = 65536
"""A body up to this size is copied behind its head, so that both go out in one write."""

NEVER = float("inf")

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_ASGI = {"version": "3.0", "spec_version": "2.4"}


class Exchange:
    """The application's ``receive`` and ``send`` for one request."""

    __slots__ = (
        "_asked",
        "_body",
        "_continue",
        "_framing",
        "_head",
        "_left",
        "_received",
        "_status",
        "complete",
        "connection",
        "over",
        "request",
        "sent",
    )

    def __init__(self, connection: HttpConnection, request: RequestHead) -> None:
        self.connection = connection
        self.request = request
        self._body: LengthBody | ChunkedBody | None = None
        if request.length:
            self._body = ChunkedBody() if request.length == CHUNKED else LengthBody(request.length)
        self._continue = request.expects_continue
        self._asked = False
        self._received = 0
        self._status = 0
        self._head: object = ()
        self._framing: Framing | None = None
        self._left = 0
        self.complete = False
        """Whether the whole response was handed to the socket."""
        self.over = False
        """Whether nothing of the application's may go out any more."""
        self.sent = 0

    @property
    def unread(self) -> bool:
        """Whether the client may still be sending its body."""
        return self._body is not None and not self._body.done

    async def run(self) -> bool:
        """Call the application; answers whether the connection can carry another request."""
        connection = self.connection
        server = connection.server
        server.engine.requests += 1
        began = time.perf_counter() if server.settings.access_log else 0.0
        try:
            await server.app(self._scope(), self.receive, self.send)
        except BaseException as error:
            rest = failures_of(error)
            if rest is None or not isinstance(rest, Exception):
                raise
            self._failed(rest)
        if not self.complete:
            await self._complete()
        self.over = True
        if server.settings.access_log:
            self._log(began)
        framing = self._framing
        if framing is None or framing.close or not self.complete or connection.closed:
            return False
        return self._body is None or self._body.done or await self._skip()

    def _scope(self) -> Scope:
        connection, request = self.connection, self.request
        return {
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
            "client": connection.client,
            "server": connection.server_address,
            "extensions": {},
        }

    # Towards the application.

    async def receive(self) -> Message:
        """The next piece of the body, then a wait for the client to go."""
        body = self._body
        if body is None:
            if not self._asked:
                self._asked = True
                return {"type": "http.request", "body": b"", "more_body": False}
        elif not body.done and not self.over:
            return await self._read_body(body)
        elif not self._asked:  # an empty chunked body
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        return await self._wait_gone()

    async def _read_body(self, body: LengthBody | ChunkedBody) -> Message:
        connection = self.connection
        settings = connection.server.settings
        while True:
            if connection.buffer:
                self._continue = False  # it did not wait for our leave
                try:
                    data, connection.buffer = body.feed(connection.buffer)
                except BadHead as error:
                    return await self._refuse(error)
                self._received += len(data)
                if self._received > settings.max_body > 0:
                    return await self._refuse(
                        BadHead(413, f"the body is larger than {settings.max_body} bytes")
                    )
                if data or body.done:
                    self._asked = body.done
                    return {"type": "http.request", "body": data, "more_body": not body.done}
            if self._continue:
                self._continue = False
                if self._framing is None:
                    await connection.write(_CONTINUE)
            more = await connection.read(settings.idle_timeout)
            if not more:
                return {"type": "http.disconnect"}
            connection.buffer += more

    async def _refuse(self, error: BadHead) -> Message:
        """A body that cannot be read: answered by the engine, and to the application the client is gone."""
        if not self.over and self._framing is None:
            await self.connection.reject(error)
        self.over = True
        self.connection.abort()
        return {"type": "http.disconnect"}

    async def _wait_gone(self) -> Message:
        connection = self.connection
        while not (self.over or self.complete or connection.closed or connection.eof):
            if len(connection.buffer) >= AHEAD_BYTES:
                # Enough read ahead.
                if has_hung_up(connection.sock):
                    break
                await trio.sleep(1)
                continue
            data = await connection.read(NEVER)
            connection.buffer += data
        await trio.lowlevel.checkpoint()
        return {"type": "http.disconnect"}

    # From the application.

    async def send(self, message: Message) -> None:
        """The response's start, then its body in pieces."""
        kind = message["type"]
        if kind == "http.response.start":
            if self._status:
                raise BadResponse("the response has already started")
            self._status = int(message["status"])
            self._head = message.get("headers", ())
            return
        if kind != "http.response.body":
            raise BadResponse(f"unexpected message {kind!r}")
        if self.over or self.connection.closed:
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
        connection, request = self.connection, self.request
        framing = build_head(
            self._status,
            self._head,  # type: ignore[arg-type]  # whatever the application gave; build_head fails if it is none
            whole=-1 if more else len(body),
            bodiless=request.method == "HEAD" or self._status == 304,
            version=request.version,
            keep_alive=request.keep_alive and not connection.server.engine.draining,
        )
        self._left = framing.length
        data = self._frame(framing, body, more=more)
        self._framing = framing
        if len(data) <= JOIN_BYTES:
            await connection.write(framing.head + data)
        else:
            await connection.write(framing.head)
            await connection.write(data)

    async def _send_piece(self, body: bytes, *, more: bool) -> None:
        assert self._framing is not None
        data = self._frame(self._framing, body, more=more)
        if data:
            await self.connection.write(data)

    def _frame(self, framing: Framing, body: bytes, *, more: bool) -> bytes:
        """The bytes that stand for a piece of the body."""
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
        self.connection.server.engine.failed += 1
        log.error("the application failed", path=self.request.path, exc_info=error)

    async def _complete(self) -> None:
        """Answer for an application that did not: 500 if nothing was sent, else the connection just ends."""
        connection = self.connection
        if self._framing is None and not self.over and not connection.closed:
            await connection.write(simple_response(500, "internal server error", close=True))
            self._status = 500
        self.over = True

    async def _skip(self) -> bool:
        """Take a body that nobody read, if it is small; answers whether the next request can be read."""
        body, connection = self._body, self.connection
        assert body is not None
        if self._continue or connection.reading or (isinstance(body, LengthBody) and body.left > SKIP_BYTES):
            return False
        taken = 0
        while True:
            try:
                data, connection.buffer = body.feed(connection.buffer)
            except BadHead:
                return False  # it has its answer, and a second one would be taken for the next request's
            taken += len(data)
            if body.done or taken > SKIP_BYTES:
                return body.done
            more = await connection.read(SKIP_TIME)
            if not more:
                return False
            connection.buffer += more

    def _log(self, began: float) -> None:
        log.info(
            "request",
            method=self.request.method,
            path=self.request.path,
            status=self._status,
            bytes=self.sent,
            seconds=round(time.perf_counter() - began, 6),
            client=self.connection.client[0],
        )
