"""Cross-origin answers: an allowed origin is echoed, with ``Vary``; everybody else gets no such header.

CORS protects the readers of answers, so nothing is refused here but a preflight. Programs send no ``Origin``
and pass. ``null`` (a sandboxed frame, a file) is anybody, and is never echoed. Credentials are not offered:
tokens travel in headers.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

from tangram.web.asgi import ASGIApp, Headers, Receive, Scope, Send, header, headers_of, send_json, send_plain

__all__ = ["MAX_AGE_SECONDS", "Cors"]

MAX_AGE_SECONDS = 600
"""How long a browser may remember a preflight: short enough for a changed configuration to be seen."""
_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_EXPOSED = b"ETag, Content-Range, Accept-Ranges"
_VARY = (b"vary", b"Origin")


class Cors:
    """ASGI wrapper around the whole site."""

    def __init__(self, app: ASGIApp, allowed: Callable[[str], bool]) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = header(scope, b"origin")
        allowed = origin is not None and origin != "null" and self._allowed(origin)
        if scope["method"] == "OPTIONS" and headers_of(scope, b"access-control-request-method"):
            await _preflight(scope, send, origin if allowed else None)
            return
        await self._app(scope, receive, _echoing(send, origin if allowed else None))


async def _preflight(scope: Scope, send: Send, origin: str | None) -> None:
    if origin is None:
        await send_json(scope, send, 403, {"detail": "this origin is not allowed"}, headers=[_VARY])
        return
    wanted = header(scope, b"access-control-request-headers") or ""
    headers: Headers = [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-max-age", b"%d" % MAX_AGE_SECONDS),
        (b"vary", b"Origin, Access-Control-Request-Headers"),
    ]
    if wanted:
        headers.append((b"access-control-allow-headers", wanted.encode("latin-1")))
    await send_plain(scope, send, 200, b"", b"text/plain", headers=headers)


def _echoing(send: Send, origin: str | None) -> Send:
    async def echo(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers: Headers = [
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
