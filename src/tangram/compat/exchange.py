"""Carries one request or WebSocket between an engine and an application on an island.

1. The request's Trio task runs the application to its first wait. A response that is complete by then costs
   no switch between the two loops.
2. Messages cross in batches. The application's ``send`` puts messages into an outbox, and waits only where
   more than `HIGH_WATER` bytes are unsent; the request's Trio task writes all of them, and small pieces of a
   body in one.
3. ``receive`` is called once at a time on the engine's side, and never cancelled by the application: a
   message that arrives after its waiter was cancelled is kept for the next call. So
   ``request.is_disconnected()`` may poll, and no message is lost.
4. Once a request has taken `WATCH_SECONDS` and its body is read, the exchange waits for the client's leaving
   by itself, so that the next call of ``receive`` returns ``http.disconnect``.
5. Cancelling either side ends the other. When the response is complete, or its client has left, the
   connection goes on without the application, which continues in the background.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from tangram.asgi import ASGIApp, Fields, Message, Receive, Scope, Send
from tangram.compat.file_body import PATHSEND, FileBody
from tangram.compat.island import Generators, Resident

__all__ = ["HANDLER_SECONDS", "MAX_BACKGROUND_TASKS", "IslandExchange"]

HANDLER_SECONDS: Final = 1.0
"""Seconds for a handler to end after its request was cancelled, for example because the server stops."""

MAX_BACKGROUND_TASKS: Final = 100
"""Handlers of one plugin that may continue after their response, as FastAPI's background tasks do.

Beyond this number the connection waits for the handler, so that clients cannot pile up tasks.
"""

HIGH_WATER: Final = 65_536
"""Unsent bytes above which ``send`` waits: one piece of a file; more would only use memory."""

PREFETCH: Final = 65_536
"""Bytes of a body that is read before the application starts: most JSON bodies arrive with their head."""

WATCH_SECONDS: Final = 0.05
"""Seconds after which a request is watched for its client's leaving; most requests take less."""

LEAVE_SECONDS: Final = 1.0
"""Seconds for a handler to end after its client has left; the connection goes on without it afterwards.

A client that only closed its sending side still gets a response within this time.
"""

MAX_DROPPED: Final = 10
"""Messages that an application may send after its client has left before ``send`` raises an error.

It is notified by ``receive`` meanwhile. Dropped messages yield to the loop; an error at once would end a
generator at its ``yield``, where it misses its clean-up, instead of at its ``await``.
"""

_NOT_SHORT: Final = (b"transfer-encoding", b"expect")
"""Headers of requests whose body is not read before the application starts."""

_PLAIN: Final = frozenset({b"content-length", b"content-type"})
"""The header fields of plain responses."""

_BODILESS: Final = frozenset({204, 304})
"""Status codes of responses without a body."""

_AWAITED: Final = ("websocket.accept", "websocket.http", PATHSEND)
"""Messages that the application's ``send`` waits for until they are written."""

_CLOSED: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""Exceptions of an engine whose client has left."""


class IslandExchange:
    """One request or WebSocket of an application on an island.

    Args:
        resident: The plugin whose application it is.
        scope: The ASGI scope from the engine.
        receive: The engine's ``receive``.
        send: The engine's ``send``.
    """

    # Defaults of the class: most requests change few of them.
    started = False
    """Whether the application has begun its response, or accepted the WebSocket."""
    gone = False
    """Whether the client has left."""
    ended = False
    """Whether the response is complete, or the application has closed the WebSocket."""
    reported: Exception | None = None
    """The exception of the application that has been logged."""
    _reading = False
    _watched = False
    _watch_at = 0.0
    _body_read = False
    _unsent = 0
    _dropped = 0
    _broken = False
    _failure: Exception | None = None
    _file_error: OSError | None = None
    _done = False
    _leave_by = math.inf
    _wake: trio.Event | None = None
    """Ends the wait of the Trio side."""

    def __init__(self, resident: Resident, scope: Scope, receive: Receive, send: Send) -> None:
        self._resident = resident
        self._scope = scope
        self._receive = receive
        self._send = send
        self._answer: Callable[[int, Fields, bytes], Awaitable[None]] | None = getattr(send, "answer", None)
        self._is_http = scope["type"] == "http"
        self._generators = Generators()
        self._inbox: deque[Message] = deque()
        self._readers: deque[asyncio.Future[None]] = deque()
        self._outbox: list[Message] = []
        self._senders: list[asyncio.Future[None]] = []

    # -- the Trio side ---------------------------------------------------------------------------------------

    async def run(self, app: ASGIApp, scope: Scope, failed: Callable[[Exception], None]) -> None:
        """Run the application until its response is complete, its client has left, or it ends.

        Args:
            app: The ASGI application.
            scope: The scope that the application gets.
            failed: Called with an exception that the application raises afterwards.

        Raises:
            IslandClosed: The plugin was stopped meanwhile.
            Exception: The application's own, or an error of the engine about its messages.
        """
        if self._is_http and _has_short_body(self._scope):
            self._take(await self._receive())
        name = f"{'request' if self._is_http else 'websocket'} {self._scope['path']}"
        task = self._resident.start(
            app, scope, self.receive, self.send, name=name, generators=self._generators
        )
        if task.done():
            self._on_done(task)
        else:
            task.add_done_callback(self._on_done)
        try:
            if not await self._pump_alone():
                async with trio.open_nursery() as nursery:
                    await self._pump(nursery)
                    nursery.cancel_scope.cancel()
        finally:
            self._broken = True
            self._release()
            if self._failure is not None:
                task.cancel()
            if self._goes_on_alone(task):
                self._resident.detach(task, failed)
            else:
                await self._resident.wait(task, stop_timeout=HANDLER_SECONDS)
        if self._failure is not None:
            raise self._failure

    async def close_websocket(self, code: int) -> None:
        """Close a WebSocket that is left open, or refuse one that was not accepted.

        The published server answers a handler that returns without accepting with 500, too.
        """
        if self.ended or self.gone:
            return
        if self.started:
            await self._send({"type": "websocket.close", "code": code})
        elif "websocket.http.response" in (self._scope.get("extensions") or {}):
            start = {
                "type": "websocket.http.response.start",
                "status": 500,
                "headers": [(b"content-length", b"0")],
            }
            await self._send(start)
            await self._send({"type": "websocket.http.response.body", "body": b""})
        else:
            await self._send({"type": "websocket.close", "code": 1011})

    def _goes_on_alone(self, task: asyncio.Task[None]) -> bool:
        if not (self.ended or self.gone or self._failure is not None):
            return False
        return task.done() or len(self._resident.detached) < MAX_BACKGROUND_TASKS

    async def _pump_alone(self) -> bool:
        """Write messages without a nursery; return whether that was enough."""
        while not await self._flush():
            if self._wants_read():
                return False
            await self._wait()
        return True

    async def _pump(self, nursery: trio.Nursery) -> None:
        """Write messages, and read one whenever the application waits for it."""
        while not await self._flush():
            if self._wants_read():
                self._reading = True
                nursery.start_soon(self._read)
            with trio.CancelScope(deadline=self._leave_by) as late:
                await self._wait()
            if late.cancelled_caught:
                return

    async def _wait(self) -> None:
        """Wait until the other side has done something, or the request has to be watched."""
        wake = self._wake = trio.Event()
        if self._watched:
            await wake.wait()
            return
        # Polls of the application wake this side, too: they must not put off the watch.
        self._watch_at = self._watch_at or trio.current_time() + WATCH_SECONDS
        with trio.CancelScope(deadline=self._watch_at) as late:
            await wake.wait()
        self._watched = late.cancelled_caught

    def _wants_read(self) -> bool:
        if self._reading or self.gone:
            return False
        if self._is_http and self._body_read:
            # Nothing but the client's leaving can come.
            return self._watched
        return bool(self._readers) and not self._inbox

    async def _flush(self) -> bool:
        """Write the outbox; return whether the exchange is over."""
        while self._outbox and not self._broken:
            messages, self._outbox = self._outbox, []
            try:
                await self._write(messages)
            except _CLOSED:
                self._broken = True
                self._leave()
            except Exception as error:  # noqa: BLE001 - an error about the application's messages; see run
                self._broken = True
                self._failure = error
            self._unsent = 0
            self._release_senders()
        if self._done or self._failure is not None:
            return True
        return self._is_http and (self.ended or self._broken)

    async def _write(self, messages: list[Message]) -> None:
        if self._answer is not None and len(messages) == 2:
            whole = _whole(*messages)
            if whole is not None:
                await self._answer(*whole)
                return
        for message in _joined(messages) if len(messages) > 2 else messages:
            if message["type"] == PATHSEND:
                await self._send_file(message["path"])
            else:
                await self._send(message)

    async def _send_file(self, path: str) -> None:
        file = FileBody(path)
        try:
            while not self.ended:
                try:
                    data = await file.next_piece()
                except OSError as error:
                    self._file_error = error
                    return
                self.ended = file.at_end
                await self._send({"type": "http.response.body", "body": data, "more_body": not file.at_end})
        finally:
            file.close()

    async def _read(self) -> None:
        try:
            message = await self._receive()
        except _CLOSED:
            message = self._disconnect()
        self._reading = False
        self._take(message)
        self._notify()

    def _take(self, message: Message) -> None:
        self._inbox.append(message)
        if message["type"] in {"http.disconnect", "websocket.disconnect"}:
            self.gone = True
            self._leave_by = trio.current_time() + LEAVE_SECONDS
        else:
            self._body_read = not message.get("more_body", False)
        self._notify_reader()

    def _leave(self) -> None:
        if not self.gone:
            self._take(self._disconnect())

    def _disconnect(self) -> Message:
        return (
            {"type": "http.disconnect"} if self._is_http else {"type": "websocket.disconnect", "code": 1006}
        )

    # -- the asyncio side ------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """Return the client's next message: the application's ``receive``."""
        while not self._inbox:
            if self.gone or self._broken or (self.ended and self._is_http):
                return self._disconnect()
            waiter: asyncio.Future[None] = self._resident.island.loop.create_future()
            self._readers.append(waiter)
            if self._wants_read():
                self._notify()
            try:
                await waiter
            except asyncio.CancelledError:
                # Another waiter takes over the message that woke this one.
                if waiter.done() and not waiter.cancelled():
                    self._notify_reader()
                raise
            finally:
                if waiter in self._readers:
                    self._readers.remove(waiter)
        return self._inbox.popleft()

    async def send(self, message: Message) -> None:
        """Queue a message for the client: the application's ``send``.

        Raises:
            OSError: The response is complete, or the client has left.
        """
        if self._broken or self.ended:
            await self._drop()
            return
        kind: str = message["type"]
        self._outbox.append(message)
        self.started = True
        if kind == "http.response.start":
            # Engines write it with the first piece of the body.
            return
        self._unsent += len(message.get("body") or message.get("bytes") or message.get("text") or b"")
        if kind == "websocket.close" or (
            kind.endswith("http.response.body") and not message.get("more_body", False)
        ):
            self.ended = True
            if self._is_http:
                self._release_readers()
        self._notify()
        if kind.startswith(_AWAITED) or (self._unsent > HIGH_WATER and not self.ended):
            await self._wait_sent()
            if self._file_error is not None:
                raise self._file_error

    async def _wait_sent(self) -> None:
        waiter: asyncio.Future[None] = self._resident.island.loop.create_future()
        self._senders.append(waiter)
        await waiter

    async def _drop(self) -> None:
        if self.ended and not self.gone:
            raise OSError("the response is complete")
        self._dropped += 1
        if self._dropped > MAX_DROPPED or not self._is_http:
            raise OSError("the client has left")
        await asyncio.sleep(0)

    # -- waking the other side -------------------------------------------------------------------------------

    def _on_done(self, _task: asyncio.Task[Any]) -> None:
        self._done = True
        self._notify()
        if self.gone:
            # A response that streams leaves its generator to the garbage collector, which may take seconds.
            self._resident.close_generators(self._generators)

    def _notify(self) -> None:
        """Wake the Trio side, if it waits."""
        if self._wake is not None:
            self._wake.set()

    def _notify_reader(self) -> None:
        """Wake one waiter of ``receive``, if a message is there."""
        while self._inbox and self._readers:
            waiter = self._readers.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _release_readers(self) -> None:
        while self._readers:
            waiter = self._readers.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def _release_senders(self) -> None:
        senders, self._senders = self._senders, []
        for waiter in senders:
            if not waiter.done():
                waiter.set_result(None)

    def _release(self) -> None:
        self._release_readers()
        self._release_senders()


def _whole(start: Message, end: Message) -> tuple[int, Fields, bytes] | None:
    """Return status, fields and body of a plain response; None for any other one.

    An engine takes a plain response in one call. Only a content type beside the length is plain: engines
    keep the lines of such answers, which are few.
    """
    if start["type"] != "http.response.start" or end["type"] != "http.response.body":
        return None
    status, fields, body = start["status"], start.get("headers", ()), end.get("body", b"")
    if end.get("more_body", False) or type(body) is not bytes or status < 200 or status in _BODILESS:
        return None
    if len(fields) != 2 or {name for name, _ in fields} != _PLAIN:
        return None
    fields = dict(fields)
    if fields[b"content-length"] != b"%d" % len(body):
        return None
    return status, ((b"content-type", fields[b"content-type"]),), body


def _joined(messages: list[Message]) -> list[Message]:
    """Join the pieces of a body, except large ones, which are passed on without a copy."""
    joined: list[Message] = []
    pieces: list[bytes] = []
    more = False
    for message in (*messages, None):
        if message is not None and message["type"] == "http.response.body":
            body = message.get("body", b"")
            if len(body) <= HIGH_WATER:
                pieces.append(body)
                more = message.get("more_body", False)
                continue
        if pieces:
            joined.append({"type": "http.response.body", "body": b"".join(pieces), "more_body": more})
            pieces = []
        if message is not None:
            joined.append(message)
    return joined


def _has_short_body(scope: Scope) -> bool:
    """Return whether a request has no body, or one that is read before the application starts."""
    length = b""
    for name, value in scope["headers"]:  # names are lower-case in ASGI
        if name == b"content-length":
            length = length or value
        elif name in _NOT_SHORT:
            return False
    return not length or (length.isdigit() and int(length) <= PREFETCH)
