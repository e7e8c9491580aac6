"""Responses: bytes, JSON, text, HTML, redirects and streams."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
)
from contextlib import aclosing, suppress
from copy import copy
from enum import Enum
from pathlib import PurePath
from typing import Any, Final, Literal, Self
from urllib.parse import quote

import msgspec
import trio

from tangram.asgi import Receive, Scope, Send

__all__ = [
    "HTMLResponse",
    "JSONResponse",
    "MutableHeaders",
    "PlainTextResponse",
    "RedirectResponse",
    "Response",
    "StreamingResponse",
    "encode_json",
]

RawHeaders = list[tuple[bytes, bytes]]


_PLAIN: Final[tuple[tuple[type, Callable[[Any], object]], ...]] = (
    (int, int.__int__),
    (float, float.__float__),
    (str, str.__str__),
    (bytes, bytes.__bytes__),
)
"""msgspec knows these classes alone, not those below them: neither ``Published`` nor numpy's ``float64``."""


def _fallback(value: object) -> object:
    """Convert a value that msgspec does not know, for example a path or an enum."""
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    for kind, plain in _PLAIN:
        if isinstance(value, kind):
            return plain(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (Iterable, range)):
        return list(value)
    raise TypeError(
        f"cannot write {type(value).__name__} as JSON: return dicts, lists, attrs classes or dataclasses"
    )


encode_json: Final = msgspec.json.Encoder(enc_hook=_fallback).encode


def _header(name: str, value: str) -> tuple[bytes, bytes]:
    if not name or any(c in name for c in "\r\n\0 :") or any(c in value for c in "\r\n\0"):
        raise ValueError(f"expected a header without line breaks, not {name!r}: {value!r}")
    return name.lower().encode("latin-1"), value.encode("latin-1")


class MutableHeaders(MutableMapping[str, str]):
    """The headers of a response.

    ``headers[name] = value`` replaces the headers of that name; ``append`` adds another one.
    """

    __slots__ = ("raw",)

    def __init__(self) -> None:
        self.raw: RawHeaders = []

    def __getitem__(self, name: str) -> str:
        key = name.lower().encode("latin-1")
        for k, v in self.raw:
            if k == key:
                return v.decode("latin-1")
        raise KeyError(name)

    def __setitem__(self, name: str, value: str) -> None:
        pair = _header(name, value)
        self.raw[:] = [item for item in self.raw if item[0] != pair[0]]
        self.raw.append(pair)

    def __delitem__(self, name: str) -> None:
        key = name.lower().encode("latin-1")
        self.raw[:] = [item for item in self.raw if item[0] != key]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(k.decode("latin-1") for k, _ in self.raw))

    def __len__(self) -> int:
        return len({k for k, _ in self.raw})

    def append(self, name: str, value: str) -> None:
        """Add a header without replacing others of the same name."""
        self.raw.append(_header(name, value))


class Response:
    """A response with a complete body: bytes, or text that is encoded as UTF-8."""

    media_type: str | None = None

    def __init__(
        self,
        content: Any = b"",
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
    ) -> None:
        self.status_code = status_code
        self.headers = MutableHeaders()
        self.media_type = media_type or self.media_type
        for name, value in (headers or {}).items():
            self.headers[name] = value
        self.body = self.render(content)

    def render(self, content: Any) -> bytes:
        """Return the body as bytes."""
        if content is None:
            return b""
        return content.encode() if isinstance(content, str) else bytes(content)

    def fresh(self) -> Self:
        """Return a copy with headers of its own, because one object may answer many requests."""
        same = copy(self)
        same.headers = MutableHeaders()
        same.headers.raw = list(self.headers.raw)
        return same

    def set_cookie(
        self,
        key: str,
        value: str = "",
        *,
        max_age: int | None = None,
        path: str = "/",
        domain: str | None = None,
        secure: bool = False,
        httponly: bool = False,
        samesite: Literal["lax", "strict", "none"] = "lax",
    ) -> None:
        """Set a cookie in the browser.

        Args:
            key: the name.
            value: without spaces and separators.
            max_age: seconds to keep the cookie; without it the cookie ends with the browser's session.
            path: the path that the cookie is sent for.
            domain: the domain that the cookie is sent to.
            secure: send the cookie over HTTPS only.
            httponly: hide the cookie from scripts.
            samesite: whether the cookie is sent with requests from other sites.

        Raises:
            ValueError: the cookie contains separators.
        """
        if not key or any(c in key + value + path for c in '\r\n\0;, "='):
            raise ValueError(f"expected a cookie without separators, not {key!r}={value!r}")
        parts = [f"{key}={value}", f"Path={path}", f"SameSite={samesite}"]
        parts += [f"Max-Age={max_age}"] if max_age is not None else []
        parts += [f"Domain={domain}"] if domain else []
        parts += ["Secure"] if secure else []
        parts += ["HttpOnly"] if httponly else []
        self.headers.append("set-cookie", "; ".join(parts))

    def delete_cookie(self, key: str, *, path: str = "/", domain: str | None = None) -> None:
        """Delete a cookie in the browser."""
        self.set_cookie(key, path=path, domain=domain, max_age=0)

    def head(self, length: int | None) -> dict[str, Any]:
        """Return the ASGI message that starts this response.

        Args:
            length: the length of the body in bytes, or None if it is unknown.
        """
        raw = list(self.headers.raw)
        names = {name for name, _ in raw}
        if self.media_type is not None and b"content-type" not in names:
            text = self.media_type.startswith("text/") and "charset" not in self.media_type
            raw.append(
                (b"content-type", (self.media_type + ("; charset=utf-8" if text else "")).encode("latin-1"))
            )
        bodiless = self.status_code in (204, 304) or self.status_code < 200
        if length is not None and b"content-length" not in names and not bodiless:
            raw.append((b"content-length", str(length).encode()))
        return {"type": "http.response.start", "status": self.status_code, "headers": raw}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Send the response; a HEAD request gets no body."""
        await send(self.head(len(self.body)))
        empty = scope["method"] == "HEAD" or self.status_code in (204, 304)
        await send({"type": "http.response.body", "body": b"" if empty else self.body})


class JSONResponse(Response):
    """A response with ``content`` as JSON.

    Besides dicts and lists, attrs classes, dataclasses, enums, dates and UUIDs are written.
    """

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encode_json(content)


class PlainTextResponse(Response):
    """A response with plain text."""

    media_type = "text/plain"


class HTMLResponse(Response):
    """A response with an HTML page."""

    media_type = "text/html"


class RedirectResponse(Response):
    """A redirect to ``url``; status 307 keeps the method and the body."""

    def __init__(self, url: str, status_code: int = 307, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(b"", status_code, headers)
        self.headers["location"] = quote(url, safe=":/%#?=@[]!$&'()*+,;~")


Chunks = AsyncIterable[bytes | str] | Iterable[bytes | str]


class StreamingResponse(Response):
    """A response whose chunks come from an async iterator, or from a sync one in a thread.

    The iterator is closed at its end, when the client disconnects, and when the server stops. As everywhere
    in Trio, an ``await`` in the clean-up of a cancelled generator needs a shield.
    """

    def __init__(
        self,
        content: Chunks,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = "application/octet-stream",
    ) -> None:
        super().__init__(b"", status_code, headers, media_type)
        self.chunks = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await _close(self.chunks)
            await send(self.head(None))
            await send({"type": "http.response.body", "body": b""})
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_on_disconnect, receive, nursery.cancel_scope)
            await self._send_all(send)
            nursery.cancel_scope.cancel()

    async def _send_all(self, send: Send) -> None:
        chunks = _as_async(self.chunks)
        async with aclosing(chunks):
            await send(self.head(None))
            async for chunk in chunks:
                data = chunk.encode() if isinstance(chunk, str) else bytes(chunk)
                if data:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


async def _cancel_on_disconnect(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass  # the rest of the request's body
    scope.cancel()


async def _close(chunks: Chunks) -> None:
    """Close an iterator."""
    aclose: Callable[[], Awaitable[None]] | None = getattr(chunks, "aclose", None)
    close: Callable[[], None] | None = getattr(chunks, "close", None)
    if aclose is not None:
        await aclose()
    elif close is not None:
        with suppress(ValueError):  # an abandoned thread still runs the generator
            close()


def _next(iterator: Iterator[bytes | str]) -> bytes | str | None:
    return next(iterator, None)


async def _as_async(chunks: Chunks) -> AsyncGenerator[bytes | str, None]:
    if isinstance(chunks, AsyncIterable):
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await _close(chunks)
        return
    iterator = iter(chunks)
    try:
        while (item := await trio.to_thread.run_sync(_next, iterator, abandon_on_cancel=True)) is not None:
            yield item
    finally:
        await _close(iterator)
