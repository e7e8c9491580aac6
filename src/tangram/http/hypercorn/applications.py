"""How an application runs behind Hypercorn: what it receives, what it may send, and what its failure does.

1. Telling an application that its client went never waits for the application.
2. What an application begins to send is finished or given up within the deadline, also if the application
   cancels itself meanwhile: quart-trio cancels its own response tail when it sees ``http.disconnect``, and
   Hypercorn would then neither keep the connection nor close it.
3. An application that raises costs its own request: 500 if nothing was sent, a broken connection otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

import h11
import structlog
import trio
from hypercorn.config import Config
from hypercorn.protocol.ws_stream import FrameTooLargeError, WebsocketBuffer
from hypercorn.trio.task_group import TaskGroup

from tangram.asgi import ASGIApp, Message, Scope
from tangram.groups import all_leaves_are
from tangram.http.engine import ClientGone, Engine, failures_of

if TYPE_CHECKING:
    from hypercorn.typing import AppWrapper

__all__ = ["Applications", "RequestEvents"]

log = structlog.get_logger("tangram.http")

QUEUED_EVENTS = 10
"""Events that wait for the application before reading from the client pauses."""

QUEUED_BYTES = 262_144
"""Bytes that wait for the application before reading pauses, whatever the number of events."""

MAX_RUNNING = 200
"""Applications that run for one connection at a time. HTTP/2 allows 100 streams at once; a client that resets
them as fast as it opens them may have left as many behind that do not know yet. One with more is cut.
"""

CLOSE_TIME = 1.0
"""Seconds for the end of a response after its application has ended."""

_Put = Callable[[Any], Awaitable[None]]
_HypercornSend = Callable[[Any], Awaitable[None]]


TOO_LARGE = b"the body is larger than allowed\n"


class BodyTooLarge(Exception):  # a signal between receive and its guard, never seen outside
    """The body outgrew ``max_body`` while the application was reading it."""


class RequestEvents:
    """Events on their way to one application: bounded, and never in the way of a disconnect."""

    def __init__(self, limit: int = QUEUED_EVENTS) -> None:
        self._limit = limit
        self._events: deque[Message] = deque()
        self._bytes = 0
        self._gone: Message | None = None
        self._readers = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()

    async def put(self, event: Message) -> None:
        """Queue one event; waits while the queue is full. After a disconnect events are dropped."""
        if event["type"].endswith(".disconnect"):
            self.hang_up(event)
            return
        while self._full() and self._gone is None:
            await self._writers.park()
        if self._gone is None:
            self._events.append(event)
            self._bytes += _size(event)
            self._readers.unpark()

    def _full(self) -> bool:
        return len(self._events) >= self._limit or self._bytes >= QUEUED_BYTES

    def hang_up(self, event: Message) -> None:
        """The client has gone; the first word of it counts."""
        if self._gone is None:
            self._gone = event
        self._readers.unpark_all()
        self._writers.unpark_all()

    async def get(self) -> Message:
        """The next event; after the last one the disconnect, as often as it is asked for."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._events:
            if self._gone is not None:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return self._gone
            await self._readers.park()
        self._writers.unpark()
        event = self._events.popleft()
        self._bytes -= _size(event)
        return event


class _Buffer(WebsocketBuffer):
    """A message in pieces. Hypercorn's own goes on growing when the bound is passed."""

    def __init__(self, max_length: int, too_large: Callable[[], None]) -> None:
        super().__init__(max_length)
        self._too_large = too_large
        self._over = False

    def extend(self, event: Any) -> None:
        if not self._over and self.length + len(event.data) <= self.max_length:
            super().extend(event)
            return
        self.clear()
        if not self._over:
            self._over = True
            self._too_large()
        raise FrameTooLargeError


class AppConnection(Protocol):
    """What applications need of their connection."""

    def is_open(self) -> bool:
        """Whether the client can still be written to."""

    def has_answered(self) -> bool:
        """Whether an answer to an upgrade request is already out, or on its way."""

    def is_spoilt(self) -> bool:
        """Whether two answers to one request have met, so that no third can be sent."""

    def stalled(self) -> None:
        """The client did not read, or send, in time."""

    def overrun(self) -> None:
        """The client has more requests running than it may."""

    def abort(self) -> None:
        """Close the socket now."""

    def application_ended(self) -> None:
        """One of them has ended."""

    async def close(self) -> None:
        """End the connection."""


class Applications(TaskGroup):
    """The applications that run on one connection: one at a time with HTTP/1.1, several with HTTP/2."""

    def __init__(self, engine: Engine, connection: AppConnection) -> None:
        super().__init__()
        self.engine = engine
        self.connection = connection
        self.running = 0
        self.sends: set[trio.CancelScope] = set()
        self._inboxes: dict[RequestEvents, str] = {}

    @property
    def nursery(self) -> trio.Nursery | None:
        """Open while the connection is."""
        return self._nursery

    async def spawn_app(self, app: AppWrapper, config: Config, scope: Any, send: _HypercornSend) -> _Put:
        """Start the application for one request; answers where its events go."""
        del config  # the engine's settings are what counts
        assert self._nursery is not None
        inbox = RequestEvents()
        if self.running >= MAX_RUNNING:
            self.connection.overrun()
            inbox.hang_up({"type": f"{scope['type']}.disconnect", "code": 1006})
            return inbox.put
        self.running += 1
        self.engine.requests += 1
        if scope["type"] == "websocket":
            stream = cast("Any", send).__self__
            # Hypercorn agrees to permessage-deflate with context takeover, and inflates without a bound.
            stream.handshake.extensions = None
            stream.buffer = _Buffer(stream.buffer.max_length, self._end_soon)
        self._nursery.start_soon(self._run, cast("ASGIApp", app), scope, inbox, send)
        return inbox.put

    def _end_soon(self) -> None:
        """A message is too large: the client has been told, and has a moment to close."""
        assert self._nursery is not None
        self._nursery.start_soon(self._end)

    async def _end(self) -> None:
        await trio.sleep(CLOSE_TIME)
        self.connection.abort()

    def hang_up(self) -> None:
        """The client has gone: tell every application, also those that Hypercorn forgets to tell (a WebSocket
        that it refused while its application was about to accept it).
        """
        for inbox, kind in self._inboxes.items():
            inbox.hang_up({"type": f"{kind}.disconnect", "code": 1006})

    def progress(self) -> None:
        """The client has read something: whoever sends gets new time."""
        deadline = trio.current_time() + self.engine.settings.write_timeout
        for scope in self.sends:
            scope.deadline = deadline

    async def _run(self, app: ASGIApp, scope: Scope, inbox: RequestEvents, send: _HypercornSend) -> None:
        websocket = scope["type"] == "websocket"
        self.engine.websockets += websocket
        request = _Request(self, scope, inbox, send)
        self._inboxes[inbox] = scope["type"]
        try:
            await request.run(app)
        finally:
            self.engine.websockets -= websocket
            self.running -= 1
            del self._inboxes[inbox]
            self.connection.application_ended()

    async def bounded_send(self, send: _HypercornSend, message: Message | None) -> None:
        """Send within the write timeout, extended by progress; the shield ends with it."""
        with trio.CancelScope(
            shield=True, deadline=trio.current_time() + self.engine.settings.write_timeout
        ) as scope:
            self.sends.add(scope)
            try:
                await send(message)
            finally:
                self.sends.discard(scope)
        if scope.cancelled_caught:
            self.connection.stalled()


class _Request:
    """One request: its application's receive and send, guarded."""

    def __init__(self, owner: Applications, scope: Scope, inbox: RequestEvents, send: _HypercornSend) -> None:
        self.owner = owner
        self.scope = scope
        self.inbox = inbox
        self.hypercorn_send = send
        self.started = False
        self.whole = False
        self.read = 0
        self.http = scope["type"] == "http"
        self.max_body = owner.engine.max_body(scope) if self.http else 0

    async def run(self, app: ASGIApp) -> None:
        scope, owner = self.scope, self.owner
        refusal = self._judge()
        if refusal is not None:
            await self._refuse(*refusal)
            return
        try:
            await app(scope, self.receive, self.send)
        except BaseException as error:
            rest = failures_of(error)
            if rest is None or not isinstance(rest, Exception):
                raise
            if all_leaves_are(rest, BodyTooLarge):
                await self._refuse(413, TOO_LARGE)
                return
            if owner.connection.is_spoilt() and all_leaves_are(rest, h11.LocalProtocolError):
                return
            if not all_leaves_are(rest, ClientGone):
                owner.engine.failed += 1
                log.exception("the application failed", path=scope["path"], exc_info=rest)
        if self._refused():
            await owner.connection.close()
        else:
            # Completes what the application left open: 500, or the end of the stream.
            await owner.bounded_send(self.hypercorn_send, None)

    def _judge(self) -> tuple[int, bytes] | None:
        """What is wrong with the head."""
        settings = self.owner.engine.settings
        if len(self.scope["headers"]) > settings.max_headers:
            return 431, b"more than %d header fields\n" % settings.max_headers
        if self.max_body and _content_length(self.scope) > self.max_body:
            return 413, TOO_LARGE
        return None

    async def receive(self) -> Message:
        event = await self._next()
        if event["type"] == "http.request":
            self.whole = not event.get("more_body", False)
        if self.max_body and event["type"] == "http.request":
            self.read += len(event["body"])
            if self.read > self.max_body:
                raise BodyTooLarge
        return event

    async def _next(self) -> Message:
        """The next event; who stops in the middle of its body has the idle time to go on."""
        if not self.http or self.whole:
            return await self.inbox.get()
        with trio.move_on_after(self.owner.engine.settings.idle_timeout):
            return await self.inbox.get()
        self.owner.connection.stalled()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        if self.http and not self.owner.connection.is_open():
            raise ClientGone("the client has gone")
        if self._refused():
            raise ClientGone("the client has been refused")
        self.started = True
        await self.owner.bounded_send(self.hypercorn_send, message)

    def _refused(self) -> bool:
        """Whether Hypercorn has answered a WebSocket's handshake in the application's place: it does so when
        bytes come behind the upgrade request, and then a second answer would raise, and nobody would close.
        """
        return not self.http and not self.started and self.owner.connection.has_answered()

    async def _refuse(self, status: int, body: bytes) -> None:
        self.owner.engine.rejected += 1
        if not self.started:
            headers = [
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", b"%d" % len(body)),
                (b"connection", b"close"),
            ]
            if self.scope["http_version"] == "2":
                del headers[-1]
            kind = "http" if self.http else "websocket.http"
            await self.send({"type": f"{kind}.response.start", "status": status, "headers": headers})
            await self.send({"type": f"{kind}.response.body", "body": body})
        await self.owner.bounded_send(self.hypercorn_send, None)


def _content_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)
    return 0


def _size(event: Message) -> int:
    """Bytes that an event holds; of text, its characters."""
    return len(event.get("body") or event.get("bytes") or event.get("text") or b"")
