"""Channels as a WebSocket route of a Quart application, whichever engine serves it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio
from quart import Blueprint, Response, websocket
from quart.wrappers import Websocket
from quart_trio.asgi import TrioASGIWebsocketConnection

from tangram.channels.disconnects import BUSY, CRASH, Disconnect, Refusal
from tangram.channels.frames import TEXT, Encoded
from tangram.gateway.admission import connect_info
from tangram.gateway.channels import Channels
from tangram.gateway.websocket import serve_websocket
from tangram.http.engine import ClientGone

__all__ = ["WebsocketConnection", "websocket_blueprint"]


class _WatchedWebSocket:
    """The application, and whether its handler ended with an answer, which after an upgrade means a crash."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.crashed = False

    async def handle_websocket(self, socket: Websocket) -> Any:
        response = await self._app.handle_websocket(socket)
        self.crashed = response is not None
        return response

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app, name)


class WebsocketConnection(TrioASGIWebsocketConnection):
    """Quart's WebSockets without two of their habits: set it as the application's ``asgi_websocket_class``.

    A handler that crashed is closed with 1011 and not with 1000, after which phoenix.js would never come
    back; and an empty binary frame arrives as empty bytes, whatever keys the engine leaves out of its events.
    """

    app: Any

    async def __call__(self, receive: Any, send: Any) -> None:
        async def receive_whole() -> Any:
            event: Any = await receive()
            if event["type"] == "websocket.receive":
                # Quart takes ``bytes`` or, if that is empty, ``text``.
                data = event.get("bytes")
                event = {**event, "text": data if data is not None else event.get("text", "")}
            return event

        await super().__call__(receive_whole, send)

    async def handle_websocket(  # type: ignore[override]
        self, nursery: trio.Nursery, websocket: Websocket, send: Any
    ) -> None:
        watched = self.app = _WatchedWebSocket(self.app)

        async def send_honest(event: Any) -> None:
            if watched.crashed and event["type"] == "websocket.close":
                event = {**event, "code": CRASH.code, "reason": CRASH.reason}
            await send(event)

        await super().handle_websocket(nursery, websocket, send_honest)


class _QuartConnection:
    """Quart's WebSocket as a ``Connection``."""

    def __init__(self, socket: Websocket) -> None:
        self._socket = socket

    async def receive(self) -> bytes | str:
        # quart-trio cancels the handler when the peer goes, so that no end has to be told here.
        data: bytes | str = await self._socket.receive()
        return data

    async def send(self, item: Encoded) -> None:
        await self._socket.send(item.data.decode() if item.opcode == TEXT else item.data)

    async def close(self, disconnect: Disconnect) -> None:
        await self._socket.close(disconnect.code, disconnect.reason)


def websocket_blueprint(channels: Callable[[], Channels | None], *, path: str = "/websocket") -> Blueprint:
    """The route. ``channels`` is read at each upgrade; None (no incarnation at the moment) answers 503."""
    blueprint = Blueprint("tangram_channels", __name__)

    @blueprint.websocket(path)
    async def serve_channels() -> Response | None:
        owner = channels()
        if owner is None:
            return _refuse(BUSY)
        socket: Websocket = websocket._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001
        info = connect_info(socket.scope)
        admission = owner.admit(info, socket.scope["query_string"], socket.requested_subprotocols)
        if isinstance(admission, Refusal):
            return _refuse(admission)
        try:
            await socket.accept(subprotocol=admission.subprotocol)
        except ClientGone:
            return None  # nobody's fault, and no traceback: a stranger could fill the log with them
        await serve_websocket(owner, _QuartConnection(socket), info, admission)
        return None

    return blueprint


def _refuse(refusal: Refusal) -> Response:
    headers = {"retry-after": "1"} if refusal.retry else {}
    return Response(refusal.reason + "\n", refusal.status, headers, content_type="text/plain; charset=utf-8")
