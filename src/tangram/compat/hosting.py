"""The view that applications of existing plugins have of their host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tangram.asgi import Scope, Send, send_json
from tangram.channels.disconnects import RESTART

if TYPE_CHECKING:
    from tangram.compat.island import IslandClosed, Resident
    from tangram.compat.state import BackendState
    from tangram.plugins.registry import LoadedPlugin

__all__ = ["Hosting", "send_restarting"]


class Hosting(Protocol):
    """The part of a plugin's host that its application uses."""

    loaded: LoadedPlugin

    @property
    def name(self) -> str: ...
    def running_resident(self) -> tuple[Resident, BackendState]: ...


async def send_restarting(error: IslandClosed, scope: Scope, send: Send) -> None:
    """Answer that the plugin is restarting: with 503, or with a refused WebSocket."""
    if scope["type"] == "http":
        await send_json(scope, send, 503, {"detail": str(error)}, headers=[(b"retry-after", b"1")])
    elif "websocket.http.response" in (scope.get("extensions") or {}):
        headers = [(b"retry-after", b"1"), (b"content-length", b"0")]
        await send({"type": "websocket.http.response.start", "status": 503, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": b""})
    else:
        await send({"type": "websocket.close", "code": RESTART.code, "reason": RESTART.reason})
