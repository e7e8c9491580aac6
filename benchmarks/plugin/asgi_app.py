"""The answer of a megabyte as a bare ASGI application, for granian."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

megabyte = bytes(range(256)) * 4096
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(megabyte))],
}


async def app(scope: dict[str, Any], receive: object, send: Callable[[Any], Awaitable[None]]) -> None:  # noqa: ARG001 - the signature of ASGI
    if scope["type"] == "http":
        await send(START)
        await send({"type": "http.response.body", "body": megabyte})
