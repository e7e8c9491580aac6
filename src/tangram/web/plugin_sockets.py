"""WebSockets of plugins, which end with their plugin.

The handler runs in the task of its connection, which outlives a plugin that is restarted alone. It would go
on with objects of the ended plugin, so it is cancelled, and its client is asked to come back (1012).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import trio

from tangram.asgi import ASGIApp, Message, Receive, Scope, Send
from tangram.channels.disconnects import RESTART, UNAVAILABLE
from tangram.http.engine import ClientGone
from tangram.web.cors import refuse_websocket

__all__ = ["PluginSocket", "bind_to_plugin", "serve_plugin_socket"]

_SOCKET: Final = "tangram.plugin_socket"
"""Key of the scope for the `PluginSocket` that is being served."""


class PluginSocket:
    """One WebSocket with the plugins whose end is its own."""

    def __init__(self, send: Send) -> None:
        self.scope = trio.CancelScope()
        self.accepted = False
        self._send = send
        self._bound: list[set[trio.CancelScope]] = []

    def bind(self, scopes: set[trio.CancelScope]) -> None:
        """End this WebSocket with a plugin, whose ``websockets`` are given."""
        scopes.add(self.scope)
        self._bound.append(scopes)

    def release(self) -> None:
        """Forget the plugins."""
        for scopes in self._bound:
            scopes.discard(self.scope)

    async def send(self, message: Message) -> None:
        """Pass a message on, and note that the handshake is complete."""
        await self._send(message)
        self.accepted = self.accepted or message["type"] == "websocket.accept"


def bind_to_plugin(scope: Scope, scopes: set[trio.CancelScope]) -> None:
    """End the WebSocket of this scope with a plugin, whose ``websockets`` are given."""
    socket: PluginSocket | None = scope.get(_SOCKET)
    if socket is not None:
        socket.bind(scopes)


async def serve_plugin_socket(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Call ``app`` until it returns, or until a plugin ends to which the scope was bound."""
    socket = scope[_SOCKET] = PluginSocket(send)
    try:
        with socket.scope:
            await app(scope, receive, socket.send)
    finally:
        socket.release()
    if socket.scope.cancelled_caught:
        with suppress(ClientGone):
            if socket.accepted:
                await send({"type": "websocket.close", "code": RESTART.code, "reason": RESTART.reason})
            else:
                await refuse_websocket(send, UNAVAILABLE)
