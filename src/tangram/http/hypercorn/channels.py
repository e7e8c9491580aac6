"""Channels as a plain ASGI application, for engines without channels of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from tangram.asgi import ASGIApp, Receive, Scope, Send, enter_root
from tangram.channels.disconnects import BUSY, Disconnect, Refusal
from tangram.channels.frames import BINARY, TEXT, Encoded
from tangram.gateway.admission import connect_info
from tangram.gateway.channels import Channels
from tangram.gateway.session import Frame
from tangram.gateway.websocket import serve_websocket
from tangram.http.engine import ClientGone
from tangram.http.hypercorn.applications import BOUND_MESSAGE
from tangram.http.hypercorn.websocket import OPCODE

__all__ = ["CHANNELS_PATH", "with_channels"]

CHANNELS_PATH: Final = "/websocket"
"""The path of the channels; every other path belongs to the application."""


def with_channels(
    app: ASGIApp,
    channels: Callable[[], Channels | None],
    *,
    forwarded: Callable[[Scope], Scope] | None = None,
    root_path: str = "",
) -> ASGIApp:
    """Return ``app`` with channels at ``/websocket``.

    Args:
        app: Gets all other requests.
        channels: Called at each handshake; ``None`` (no incarnation runs) is answered with 503.
        forwarded: Applies the headers of trusted proxies to the scope of a handshake.
        root_path: ``[server] root_path``.
    """

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            enter_root(scope, root_path)
        if scope["type"] != "websocket" or scope["path"] != CHANNELS_PATH:
            await app(scope, receive, send)
            return
        await _serve_channels(forwarded(scope) if forwarded else scope, receive, send, channels())

    return serve


class _AsgiWebSocket:
    """An accepted ASGI WebSocket as an ``AcceptedWebSocket``."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send

    async def receive(self) -> Frame:
        event = await self._receive()
        if event["type"] == "websocket.disconnect":
            raise trio.EndOfChannel
        data = event.get("bytes")
        if data is None:
            return TEXT, event.get("text") or ""
        return event.get(OPCODE, BINARY), data

    async def send(self, item: Encoded) -> None:
        if item.opcode == TEXT:
            await self._send({"type": "websocket.send", "text": item.data.decode()})
        else:
            await self._send({"type": "websocket.send", "bytes": item.data})

    async def close(self, disconnect: Disconnect) -> None:
        await self._send({"type": "websocket.close", "code": disconnect.code, "reason": disconnect.reason})


async def _serve_channels(scope: Scope, receive: Receive, send: Send, channels: Channels | None) -> None:
    """Admit, accept and serve one WebSocket; an exception makes the engine close it with 1011."""
    await receive()  # websocket.connect
    if channels is None:
        await _refuse(send, BUSY)
        return
    info = connect_info(scope)
    admission = channels.admit(info, scope["query_string"], scope["subprotocols"])
    if isinstance(admission, Refusal):
        await _refuse(send, admission)
        return
    try:
        await send({"type": "websocket.accept", "subprotocol": admission.subprotocol})
    except ClientGone:
        return
    bound = scope["extensions"].get(BOUND_MESSAGE, _unbounded)
    await serve_websocket(channels, _AsgiWebSocket(receive, send), info, admission, bound=bound)


def _unbounded(_size: Callable[[], int], _too_big: Callable[[], None]) -> None:
    """Leave the size of messages to the server: it has no ``BOUND_MESSAGE``."""


async def _refuse(send: Send, refusal: Refusal) -> None:
    body = f"{refusal.reason}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
    ]
    if refusal.retry:
        headers.append((b"retry-after", b"1"))
    await send({"type": "websocket.http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
