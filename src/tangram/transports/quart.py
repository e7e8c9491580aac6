"""Channels as a WebSocket route of a Quart application, whichever engine serves it."""

from __future__ import annotations

from collections.abc import Callable

from quart import Blueprint, Response, websocket
from quart.wrappers import Websocket

from tangram.channels.disconnects import BUSY, Disconnect, Refusal
from tangram.channels.frames import TEXT, Encoded
from tangram.transports.channels import Channels, connect_info
from tangram.transports.session import run_session

__all__ = ["websocket_blueprint"]


class _QuartConnection:
    """Quart's WebSocket as a ``Connection``."""

    def __init__(self, socket: Websocket) -> None:
        self._socket = socket

    async def receive(self) -> bytes | str:
        # quart-trio cancels the handler when the peer goes, so that no end has to be told here. An empty
        # binary frame arrives as None: it takes the first of ``bytes`` and ``text`` that is not empty.
        data: bytes | str | None = await self._socket.receive()
        return b"" if data is None else data

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
        await socket.accept(subprotocol=admission.subprotocol)
        await run_session(owner, _QuartConnection(socket), info, admission)
        return None

    return blueprint


def _refuse(refusal: Refusal) -> Response:
    return Response(refusal.reason + "\n", refusal.status, content_type="text/plain; charset=utf-8")
