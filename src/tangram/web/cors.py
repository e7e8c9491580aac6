"""CORS headers for allowed origins, and the check of ``Origin`` on WebSocket handshakes.

1. An allowed origin is echoed in ``Access-Control-Allow-Origin``, with ``Vary: Origin``. Other origins get no
   such header, and their preflight requests are refused. Their other requests are answered, because the
   browser keeps the response from the page.
2. Programs send no ``Origin`` and are answered.
3. ``Origin: null`` (a sandboxed frame or a local file) can be any page, and is never echoed.
4. Credentials are not offered, because tokens travel in headers.
5. Browsers do not apply CORS to WebSockets: any page may open one and read it. Therefore the handshake of a
   page that is not allowed is refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from tangram.asgi import (
    Fields,
    Message,
    RawHeaders,
    Receive,
    Scope,
    Send,
    header,
    headers_of,
    send_json,
    send_response,
    with_fields,
    without_allowed_origin,
)
from tangram.channels.disconnects import Refusal

__all__ = [
    "MAX_AGE_SECONDS",
    "METHODS",
    "PLAIN",
    "PREFLIGHT",
    "Allowed",
    "Cors",
    "Inner",
    "may_open",
    "refuse_websocket",
    "sending",
]

Allowed: TypeAlias = Callable[[str, str | None], bool]
"""Whether pages of an origin may use this server; arguments are ``Origin`` and ``Host``.

``Host`` is ``None`` where the request has none, or several.
"""

MAX_AGE_SECONDS: Final = 600
"""Seconds for which a browser may keep a preflight: after a configuration change it asks again soon."""
METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
"""The methods that routes may have."""

_EXPOSED: Final = b"ETag, Content-Range, Accept-Ranges"
_VARY: Final = (b"vary", b"Origin")

PLAIN: Final[Fields] = (_VARY,)
"""The fields of an answer to a request without ``Origin``."""

PREFLIGHT: Final = frozenset({b"origin", b"access-control-request-method"})
"""Header fields without which this layer has nothing to decide."""

Inner: TypeAlias = Callable[[Scope, Receive, Send, Fields], Awaitable[None]]
"""An application that adds the fields to its answer itself; ``sending`` does it for other applications."""


class Cors:
    """The layer around the whole site: preflights, and the fields that each answer gets."""

    def __init__(self, app: Inner, allowed: Allowed) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = self._allowed_origin(scope)
        if scope["method"] == "OPTIONS" and headers_of(scope, b"access-control-request-method"):
            await _preflight(scope, send, origin)
            return
        await self._app(scope, receive, send, _cors_fields(origin))

    def headers(self, scope: Scope) -> RawHeaders:
        """Return the CORS headers of a response to this request."""
        return [*_cors_fields(self._allowed_origin(scope))]

    def _allowed_origin(self, scope: Scope) -> str | None:
        origin = header(scope, b"origin")
        if origin is None or origin == "null" or not self._allowed(origin, header(scope, b"host")):
            return None
        return origin


def may_open(scope: Scope, allowed: Allowed) -> bool:
    """Return whether a handshake has no ``Origin`` (a program), or one that is allowed."""
    origins = headers_of(scope, b"origin")
    return not origins or (len(origins) == 1 and allowed(origins[0], header(scope, b"host")))


async def refuse_websocket(send: Send, refusal: Refusal) -> None:
    """Refuse a WebSocket handshake with the status and reason that channels use."""
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
        (b"access-control-allow-methods", METHODS),
        (b"access-control-max-age", b"%d" % MAX_AGE_SECONDS),
        (b"vary", b"Origin, Access-Control-Request-Headers"),
    ]
    if wanted:
        headers.append((b"access-control-allow-headers", wanted.encode("latin-1")))
    await send_response(scope, send, 200, b"", b"text/plain", headers=headers)


def _cors_fields(origin: str | None) -> Fields:
    if origin is None:
        return PLAIN
    return (
        _VARY,
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", _EXPOSED),
    )


def sending(send: Send, fields: Fields) -> Send:
    """Return a ``send`` that adds the fields to the answer.

    It is a ``WholeSend`` if the given one is.
    """
    whole: Callable[[int, Fields, bytes], Awaitable[None]] | None = getattr(send, "answer", None)
    return _Sending(send, fields) if whole is None else _SendingWhole(send, fields, whole)


class _Sending:
    """A ``send`` that adds fields to the answer."""

    __slots__ = ("_fields", "_send")

    def __init__(self, send: Send, fields: Fields) -> None:
        self._send = send
        self._fields = fields

    def __call__(self, message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            message = with_fields(message, self._fields)
        return self._send(message)


class _SendingWhole(_Sending):
    """The same of a ``send`` that takes whole responses."""

    __slots__ = ("_whole",)

    def __init__(
        self, send: Send, fields: Fields, whole: Callable[[int, Fields, bytes], Awaitable[None]]
    ) -> None:
        super().__init__(send, fields)
        self._whole = whole

    def answer(self, status: int, fields: Fields, body: bytes) -> Awaitable[None]:
        """Send a whole response; see ``WholeSend``."""
        return self._whole(status, (*without_allowed_origin(fields), *self._fields), body)
