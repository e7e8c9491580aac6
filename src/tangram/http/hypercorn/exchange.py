"""One request and its response behind Hypercorn: events, bounds and failures.

1. Reporting a disconnect to an application never waits for the application.
2. A send that has begun is finished or given up within its deadline, even if the application cancels itself
   meanwhile: quart-trio cancels the end of its own response at ``http.disconnect``, and Hypercorn would then
   neither keep the connection nor close it.
3. An application that raises costs its own request: 500 if nothing was sent, else a broken connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import h11
import structlog
import trio

from tangram.asgi import ASGIApp, Message, Scope
from tangram.groups import all_leaves_are
from tangram.http.engine import ClientGone, Engine, failures_of

__all__ = ["ConnectionControl", "HypercornExchange", "HypercornSend", "RequestEvents"]

log = structlog.get_logger("tangram.http")

QUEUED_EVENTS: Final = 10
"""Events that wait for the application before reading from the client pauses."""

QUEUED_BYTES: Final = 262_144
"""Bytes that wait for the application before reading pauses, with any number of events."""

TOO_LARGE: Final = b"the body is larger than allowed\n"

HypercornSend = Callable[[Any], Awaitable[None]]
"""Sends an ASGI message to the protocol; ``None`` completes a response that the application left open."""


class RequestEvents:
    """The bounded queue of events for one application; a disconnect never waits in it."""

    def __init__(self, limit: int = QUEUED_EVENTS) -> None:
        self._limit = limit
        self._events: deque[Message] = deque()
        self._bytes = 0
        self._disconnect: Message | None = None
        self._client_close: Message = {}
        self._readers = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()

    async def put(self, event: Message) -> None:
        """Queue one event; wait while the queue is full. After a disconnect events are dropped."""
        if event["type"].endswith(".disconnect"):
            self.disconnect(event)
            return
        while self._full() and self._disconnect is None:
            await self._writers.park()
        if self._disconnect is None:
            self._events.append(event)
            self._bytes += _size(event)
            self._readers.unpark()

    def _full(self) -> bool:
        return len(self._events) >= self._limit or self._bytes >= QUEUED_BYTES

    def disconnect(self, event: Message) -> None:
        """Record that the client has gone; only the first event counts."""
        if self._disconnect is None:
            self._disconnect = event | self._client_close
        self._readers.unpark_all()
        self._writers.unpark_all()

    def note_close(self, code: int, reason: str) -> None:
        """Remember the client's close frame, for the disconnect that follows."""
        self._client_close = {"code": code, "reason": reason}

    async def get(self) -> Message:
        """Return the next event; after the last one the disconnect, at each call."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._events:
            if self._disconnect is not None:
                await trio.lowlevel.cancel_shielded_checkpoint()
                return self._disconnect
            await self._readers.park()
        self._writers.unpark()
        event = self._events.popleft()
        self._bytes -= _size(event)
        return event


class ConnectionControl(Protocol):
    """The connection, as its applications see it."""

    def is_open(self) -> bool:
        """Return whether the client can still be written to."""

    def has_answered(self) -> bool:
        """Return whether an answer to an upgrade request has been sent, or is being sent."""

    def has_unread_body(self) -> bool:
        """Return whether the client is still sending the body of the request in hand (HTTP/1.1)."""

    def has_conflict(self) -> bool:
        """Return whether Hypercorn and the application have both answered one request."""

    def stalled(self, stream_id: int | None = None) -> None:
        """Close the connection of a client that did not read, or send, in time.

        With HTTP/2 only the stream is reset, while others go on.
        """

    def flooded(self) -> None:
        """Count and log a client that sent too many HTTP/2 control frames."""

    async def wait_turn(self) -> None:
        """Wait for a turn of this client, for work that other clients must not wait for."""

    def malformed(self, error: Exception) -> None:
        """Log a client whose bytes break the protocol."""

    def overrun(self) -> None:
        """Close the connection of a client with too many running requests."""

    def abort(self) -> None:
        """Close the socket now."""

    def application_ended(self) -> None:
        """Note that one application has ended."""

    async def close(self) -> None:
        """Close the connection in order."""


class ExchangeOwner(Protocol):
    """The applications of one connection, as one exchange sees them."""

    engine: Engine
    connection: ConnectionControl

    async def bounded_send(self, send: HypercornSend, message: Message | None) -> None:
        """Send within the write timeout."""


class HypercornExchange:
    """One request: ``receive`` and ``send`` of its application, with bounds."""

    def __init__(
        self, owner: ExchangeOwner, scope: Scope, events: RequestEvents, send: HypercornSend
    ) -> None:
        self.owner = owner
        self.scope = scope
        self.events = events
        self.hypercorn_send = send
        self.started = False
        self.whole = False
        self.read = 0
        self.too_large = False
        """The body has outgrown ``max_body`` while the application was reading it."""
        self.http = scope["type"] == "http"
        self.max_body = owner.engine.max_body(scope) if self.http else 0
        self._waited = 0.0
        self._pending = owner.engine.pending.item(
            lambda: owner.engine.address_of(scope), owner.connection.abort
        )

    async def run(self, app: ASGIApp) -> None:
        """Check the head, call the application, and complete its response."""
        scope, owner = self.scope, self.owner
        refusal = self._check_head()
        if refusal is not None:
            await self._refuse(*refusal)
            return
        try:
            await app(scope, self.receive, self.send)
        except BaseException as error:
            rest = failures_of(error)
            if rest is None or not isinstance(rest, Exception):
                raise
            if owner.connection.has_conflict() and all_leaves_are(rest, h11.LocalProtocolError):
                return
            if not self.too_large and not all_leaves_are(rest, ClientGone):
                owner.engine.failed += 1
                log.exception("application failed", path=scope["path"], exc_info=rest)
        finally:
            self._pending.update(0)
        if self.too_large:
            await self._refuse(413, TOO_LARGE)
            return
        if self._refused_by_hypercorn():
            await owner.connection.close()
            return
        if self.http and not self.started:
            await self._answer(500, b"internal server error\n")
        # Completes a response that the application left open.
        await owner.bounded_send(self.hypercorn_send, None)

    def _check_head(self) -> tuple[int, bytes] | None:
        """Return status and text if the head of the request breaks a bound."""
        settings = self.owner.engine.settings
        if len(self.scope["headers"]) > settings.max_headers:
            return 431, b"more than %d header fields\n" % settings.max_headers
        if self.max_body and _content_length(self.scope) > self.max_body:
            return 413, TOO_LARGE
        return None

    async def receive(self) -> Message:
        """Return the next event for the application."""
        event = await self._next()
        if event["type"] == "http.request":
            self.whole = not event.get("more_body", False)
            self.read += len(event["body"])
            if self.max_body and self.read > self.max_body:
                # The application stops, as for a client that has gone; the answer follows in ``run``.
                self.too_large = True
                return {"type": "http.disconnect"}
            # As behind the native engine: a larger limit of a route means that the body is stored elsewhere.
            usual = self.owner.engine.settings.max_body
            self._pending.update(min(self.read, usual) if usual else self.read)
        return event

    async def _next(self) -> Message:
        """Return the next event; disconnect a client that pauses in its body or is too slow."""
        if self.too_large:
            return {"type": "http.disconnect"}
        if not self.http or self.whole:
            return await self.events.get()
        engine = self.owner.engine
        left = max(0.0, engine.pending.time_for(self.read) - self._waited)
        began = trio.current_time()
        with trio.move_on_after(min(engine.settings.idle_timeout, left)):
            event = await self.events.get()
            self._waited += trio.current_time() - began
            return event
        self.owner.connection.stalled()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Send a message of the application; raise ``ClientGone`` when the client has gone."""
        await trio.lowlevel.checkpoint()
        if self.http and not self.owner.connection.is_open():
            raise ClientGone("the client has gone")
        if self.too_large or self._refused_by_hypercorn():
            raise ClientGone("the client has been refused")
        self.started = True
        if message["type"] == "http.response.start" and self.owner.connection.has_unread_body():
            # Hypercorn closes the connection after this response, because the next request would begin
            # behind the unread body.
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await self.owner.bounded_send(self.hypercorn_send, message)

    def _refused_by_hypercorn(self) -> bool:
        """Return whether Hypercorn has answered a handshake in the application's place.

        It does so when bytes follow the upgrade request. A second answer would raise, and the connection
        would stay open.
        """
        return not self.http and not self.started and self.owner.connection.has_answered()

    async def _refuse(self, status: int, body: bytes) -> None:
        engine = self.owner.engine
        engine.rejected += 1
        engine.log_client(
            "request rejected", engine.address_of(self.scope), status=status, reason=body.decode().strip()
        )
        if not self.started:
            self.too_large = False
            await self._answer(status, body)
        await self.owner.bounded_send(self.hypercorn_send, None)

    async def _answer(self, status: int, body: bytes) -> None:
        """Answer in the application's place, and close the connection where HTTP/1.1 is spoken."""
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
            *self.owner.engine.headers_of_error(self.scope),
        ]
        if self.scope["http_version"] != "2" and not (self.http and self.owner.connection.has_unread_body()):
            headers.append((b"connection", b"close"))
        kind = "http" if self.http else "websocket.http"
        await self.send({"type": f"{kind}.response.start", "status": status, "headers": headers})
        await self.send({"type": f"{kind}.response.body", "body": body})


def _content_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)
    return 0


def _size(event: Message) -> int:
    """Return the bytes, or characters of text, that an event holds."""
    return len(event.get("body") or event.get("bytes") or event.get("text") or b"")
