"""The applications that run for one connection, and the bounds on them.

With HTTP/1.1 one application runs at a time, with HTTP/2 several.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import trio
from hypercorn.config import Config
from hypercorn.trio.task_group import TaskGroup

from tangram.asgi import ASGIApp, Message, Scope
from tangram.channels.disconnects import FLOOD, MEMORY, SLOW_MESSAGE, TOO_BIG, Disconnect
from tangram.http.engine import UNIX_PEER, Engine
from tangram.http.hypercorn.exchange import ConnectionControl, HypercornExchange, HypercornSend, RequestEvents
from tangram.http.hypercorn.websocket import BoundedMessage, FrameGuard, close_websocket, watch_close

if TYPE_CHECKING:
    from hypercorn.typing import AppWrapper

__all__ = ["BOUND_MESSAGE", "Applications"]

MAX_RUNNING: Final = 200
"""Applications of one connection that may run at once.

HTTP/2 allows 100 streams at once. A client that resets streams as fast as it opens them may leave as many
applications behind that have not noticed yet. A connection with more is closed.
"""

BOUND_MESSAGE: Final = "tangram.bound_message"
"""An extension in a WebSocket's scope: ``BoundedMessage.bound``, for an application whose bound changes."""

FREE_RUNNING: Final = 8
"""Applications of one connection that are started at once; further ones in turns with other clients.

One takes half a millisecond, and ten clients may ask for 1,000 together.
"""

CLOSE_TIME: Final = 1.0
"""Seconds that a client has to close after a message that was too large."""

_Put = Callable[[Any], Awaitable[None]]


class Applications(TaskGroup):
    """The applications of one connection; Hypercorn's protocols start them by ``spawn_app``."""

    def __init__(self, engine: Engine, connection: ConnectionControl) -> None:
        super().__init__()
        self.engine = engine
        self.connection = connection
        self.running = 0
        self.started = 0
        self.sends: dict[trio.CancelScope, int] = {}
        """Sends that wait for the client, each with its stream."""
        self._sends_cancelled = False
        self._events: dict[RequestEvents, str] = {}

    @property
    def nursery(self) -> trio.Nursery | None:
        """The nursery of the applications, while the connection is open."""
        return self._nursery

    async def spawn_app(self, app: AppWrapper, config: Config, scope: Any, send: HypercornSend) -> _Put:
        """Start the application for one request; return the function that takes its events."""
        del config  # the settings of the engine apply
        assert self._nursery is not None
        events = RequestEvents()
        if scope["type"] == "websocket" and self._leaves(scope):
            self.connection.abort()
            events.disconnect({"type": "websocket.disconnect", "code": 1006})
            return events.put
        if self.running >= FREE_RUNNING:
            await self.connection.wait_turn()
        if self.running >= MAX_RUNNING:
            self.connection.overrun()
            events.disconnect({"type": f"{scope['type']}.disconnect", "code": 1006})
            return events.put
        self.running += 1
        self.started += 1
        self.engine.requests += 1
        if scope["type"] == "websocket":
            stream = cast("Any", send).__self__
            # Hypercorn would agree to permessage-deflate, and inflates messages without a bound.
            stream.handshake.extensions = None
            self._bound_message(stream, scope)
            watch_close(stream, events.note_close)
        self._nursery.start_soon(self._run, cast("ASGIApp", app), scope, events, send)
        return events.put

    def _leaves(self, scope: Scope) -> bool:
        """Return whether a handshake is left to another node; one of HTTP/2 shares its connection."""
        peer = scope["client"] or UNIX_PEER
        return scope["http_version"] == "1.1" and self.engine.leaves_upgrade(str(peer[0]))

    def _bound_message(self, stream: Any, scope: Scope) -> None:
        """Bound the unfinished message of a WebSocket in size, time, and with all others."""
        pending = self.engine.pending.item(
            lambda: self.engine.address_of(scope), lambda: self._end_message(stream, MEMORY)
        )
        pending.expire = partial(self._end_client, stream, scope, SLOW_MESSAGE)
        buffer = BoundedMessage(stream.buffer.max_length, partial(self._end_too_big, scope), pending)
        stream.buffer = buffer
        turns = self.engine.turns.client(lambda: self.engine.address_of(scope))
        FrameGuard(stream, turns, partial(self._end_client, stream, scope, FLOOD))
        scope["extensions"][BOUND_MESSAGE] = buffer.bound

    def _end_client(self, stream: Any, scope: Scope, disconnect: Disconnect) -> None:
        """End a WebSocket whose client is at fault."""
        self._log(scope, disconnect)
        self._end_message(stream, disconnect)

    def _end_too_big(self, scope: Scope) -> None:
        """End a WebSocket after a message that is too big; Hypercorn sends the close frame."""
        self._log(scope, TOO_BIG)
        self._end_soon()

    def _log(self, scope: Scope, disconnect: Disconnect) -> None:
        self.engine.log_client(f"connection closed: {disconnect.reason}", self.engine.address_of(scope))

    def _end_message(self, stream: Any, disconnect: Disconnect) -> None:
        stream.buffer.drop()
        if self._nursery is None or self._nursery.cancel_scope.cancel_called:
            self.connection.abort()
            return
        self._nursery.start_soon(partial(close_websocket, stream, disconnect.code, timeout=CLOSE_TIME))
        self._end_soon()

    def _end_soon(self) -> None:
        """Close the connection after a moment in which the client can close by itself."""
        assert self._nursery is not None
        self._nursery.start_soon(self._end)

    async def _end(self) -> None:
        await trio.sleep(CLOSE_TIME)
        self.connection.abort()

    def disconnect(self) -> None:
        """Report to every application that the client has gone.

        Hypercorn forgets some of them, for example a WebSocket that it refused while its application was
        about to accept it.
        """
        for events, kind in self._events.items():
            events.disconnect({"type": f"{kind}.disconnect", "code": 1006})

    def progress(self, may_send: Callable[[int], bool]) -> None:
        """Extend the deadlines of sends, because the client has read something.

        Args:
            may_send: Whether this is progress of a stream. A stream whose window the client keeps shut makes
                none, although the client reads other streams.
        """
        deadline = trio.current_time() + self.engine.settings.write_timeout
        for scope, stream_id in self.sends.items():
            if may_send(stream_id):
                scope.deadline = deadline

    def cancel_sends(self) -> None:
        """End the sends that wait for the client; their shields would outlast the connection."""
        self._sends_cancelled = True
        for scope in self.sends:
            scope.cancel()

    async def _run(self, app: ASGIApp, scope: Scope, events: RequestEvents, send: HypercornSend) -> None:
        websocket = scope["type"] == "websocket"
        self.engine.websockets += websocket
        exchange = HypercornExchange(self, scope, events, send)
        self._events[events] = scope["type"]
        try:
            await exchange.run(app)
        finally:
            if websocket:
                cast("Any", send).__self__.buffer.clear()
            self.engine.websockets -= websocket
            self.running -= 1
            del self._events[events]
            self.connection.application_ended()

    async def bounded_send(self, send: HypercornSend, message: Message | None) -> None:
        """Send within the write timeout, which each progress extends.

        The shield ends with that deadline, so an application that cancels itself still finishes its send.
        """
        if self._sends_cancelled:
            return
        stream_id: int = getattr(getattr(send, "__self__", None), "stream_id", 0)
        with trio.CancelScope(
            shield=True, deadline=trio.current_time() + self.engine.settings.write_timeout
        ) as scope:
            self.sends[scope] = stream_id
            try:
                await send(message)
            finally:
                del self.sends[scope]
        if scope.cancelled_caught and not self._sends_cancelled:
            self.connection.stalled(stream_id)
