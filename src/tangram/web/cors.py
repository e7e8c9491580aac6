"""Whose pages may read our answers and open WebSockets: an allowed origin is echoed, with ``Vary``; everybody
else gets no such header, and no WebSocket.

CORS protects the readers of answers, so nothing is refused here but a preflight. Programs send no ``Origin``
and pass. ``null`` (a sandboxed frame, a file) is anybody, and is never echoed. Credentials are not offered:
tokens travel in headers.

Browsers apply none of this to WebSockets: any page may open one, and read it, so there the handshake is
refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tangram.asgi import (
    ASGIApp,
    Message,
    RawHeaders,
    Receive,
    Scope,
    Send,
    header,
    headers_of,
    send_json,
    send_response,
)
from tangram.channels.disconnects import Refusal

__all__ = ["MAX_AGE_SECONDS", "Allowed", "Cors", "may_open", "refuse_websocket"]

Allowed: TypeAlias = Callable[[str, str | None], bool]
"""May pages of this origin use us, whom they called by this ``Host``? None: it named none, or two."""

MAX_AGE_SECONDS = 600
"""How long a browser may remember a preflight: short enough for a changed configuration to be seen."""
_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_EXPOSED = b"ETag, Content-Range, Accept-Ranges"
_VARY = (b"vary", b"Origin")


class Cors:
    """ASGI wrapper around the whole site."""

    def __init__(self, app: ASGIApp, allowed: Allowed) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = header(scope, b"origin")
        allowed = origin is not None and origin != "null" and self._allowed(origin, header(scope, b"host"))
        if scope["method"] == "OPTIONS" and headers_of(scope, b"access-control-request-method"):
            await _preflight(scope, send, origin if allowed else None)
            return
        await self._app(scope, receive, _echoing(send, origin if allowed else None))


def may_open(scope: Scope, allowed: Allowed) -> bool:
    """Whether whoever asks may open a WebSocket. Programs send no ``Origin``; no browser sends two."""
    origins = headers_of(scope, b"origin")
    return not origins or (len(origins) == 1 and allowed(origins[0], header(scope, b"host")))


async def refuse_websocket(send: Send, refusal: Refusal) -> None:
    """Answer a WebSocket's handshake as the channels do."""
    body = f"{refusal.reason}\n".encode()
    headers: RawHeaders = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send({"type": "websocket.http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


async def _preflight(scope: Scope, send: Send, origin: str | None) -> None:
    if origin is None:
        await send_json(scope, send, 403, {"detail": "this origin is not allowed"}, headers=[_VARY])
        return
    wanted = header(scope, b"access-control-request-headers") or ""
    headers: RawHeaders = [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-max-age", b"%d" % MAX_AGE_SECONDS),
        (b"vary", b"Origin, Access-Control-Request-Headers"),
    ]
    if wanted:
        headers.append((b"access-control-allow-headers", wanted.encode("latin-1")))
    await send_response(scope, send, 200, b"", b"text/plain", headers=headers)


def _echoing(send: Send, origin: str | None) -> Send:
    async def echo(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: RawHeaders = [
                (name, value)
                for name, value in message.get("headers", ())
                if not name.lower().startswith(b"access-control-allow-origin")
            ]
            headers.append(_VARY)
            if origin is not None:
                headers.append((b"access-control-allow-origin", origin.encode("latin-1")))
                headers.append((b"access-control-expose-headers", _EXPOSED))
            message = {**message, "headers": headers}
        await send(message)

    return echo
