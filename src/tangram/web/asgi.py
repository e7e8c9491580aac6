"""The few ASGI words that the room's parts share: types, a JSON answer, headers of a scope."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias

import msgspec

__all__ = [
    "ASGIApp",
    "Headers",
    "Receive",
    "Scope",
    "Send",
    "header",
    "headers_of",
    "send_json",
    "send_plain",
]

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]


def headers_of(scope: Scope, name: bytes) -> list[str]:
    """All values of a header, in order; ``name`` in lower case."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def header(scope: Scope, name: bytes) -> str | None:
    """The value of a header that stands there exactly once; a doubled one counts as missing."""
    values = headers_of(scope, name)
    return values[0] if len(values) == 1 else None


async def send_json(
    scope: Scope, send: Send, status: int, content: object, *, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Answer with a JSON document."""
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    await send_plain(scope, send, status, body, b"application/json", headers=headers)


async def send_plain(
    scope: Scope,
    send: Send,
    status: int,
    body: bytes,
    media_type: bytes,
    *,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Answer with a body that is at hand; ``HEAD`` gets its headers."""
    start: Headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": b"" if scope.get("method") == "HEAD" else body})
