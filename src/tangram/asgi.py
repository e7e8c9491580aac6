"""ASGI's types, and the small helpers that every application of this server shares.

This module imports no other room, so that each room may use it. The types follow the ASGI specification,
version 3: https://asgi.readthedocs.io/en/latest/specs/main.html
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, TypeAlias

import msgspec

__all__ = [
    "ASGIApp",
    "Message",
    "RawHeaders",
    "Receive",
    "Scope",
    "Send",
    "header",
    "headers_of",
    "send_json",
    "send_response",
]

Scope: TypeAlias = dict[str, Any]
"""The connection as ASGI describes it: ``type``, ``path``, ``headers`` and so on."""

Message: TypeAlias = dict[str, Any]
"""One event from the client (``http.request``) or for it (``http.response.start``)."""

Receive: TypeAlias = Callable[[], Awaitable[Message]]
"""Wait for the client's next event."""

Send: TypeAlias = Callable[[Message], Awaitable[None]]
"""Send an event to the client."""

ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An application: called once for each request and for each WebSocket."""

RawHeaders: TypeAlias = list[tuple[bytes, bytes]]
"""Header fields as pairs of name and value, in the order sent."""

_JSON_TYPE: Final = (b"content-type", b"application/json")

_BODILESS: Final = frozenset({204, 304})
"""Status codes whose responses have no body and no headers that describe one."""


def headers_of(scope: Scope, name: bytes) -> list[str]:
    """Return all values of the header ``name`` (in lower case), in the order sent."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def header(scope: Scope, name: bytes) -> str | None:
    """Return the value of a header that was sent exactly once.

    A repeated header counts as missing: which of its values counts would be a guess.
    """
    values = headers_of(scope, name)
    return values[0] if len(values) == 1 else None


async def send_json(
    scope: Scope, send: Send, status: int, content: object, *, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Send a whole response with a JSON body.

    Args:
        scope: the request's scope; ``HEAD`` gets the headers alone.
        send: ASGI's ``send`` of the request.
        status: the status code; 204 and 304 are sent without a body.
        content: the document, or ``bytes`` that are JSON already.
        headers: further header fields.

    Example::

        await send_json(scope, send, 503, {"detail": "restarting"}, headers=[(b"retry-after", b"1")])
    """
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    if status in _BODILESS:
        await send_response(scope, send, status, b"", b"application/json", headers=headers)
        return
    # The most frequent answer of all is sent here, without another coroutine.
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [_JSON_TYPE, length, *headers]})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def send_response(
    scope: Scope,
    send: Send,
    status: int,
    body: bytes,
    media_type: bytes,
    *,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Send a whole response; the arguments are those of ``send_json``."""
    start: RawHeaders = [*headers]
    if status in _BODILESS:
        body = b""
    else:
        start[:0] = [(b"content-type", media_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
