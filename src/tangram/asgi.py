"""ASGI's types, and the small helpers that every application of this server shares.

This module imports no other room, so that each room may use it. The types follow the ASGI specification,
version 3: https://asgi.readthedocs.io/en/latest/specs/main.html
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Protocol, TypeAlias

import msgspec

__all__ = [
    "JSON_TYPE",
    "ROOT",
    "ASGIApp",
    "Fields",
    "Message",
    "RawHeaders",
    "Receive",
    "Scope",
    "Send",
    "WholeSend",
    "enter_root",
    "full_scope",
    "header",
    "headers_of",
    "send_json",
    "send_response",
    "send_whole",
    "with_fields",
    "without_allowed_origin",
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

Fields: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""Header fields that many answers share, for which an engine may keep the lines that it has made of them."""

JSON_TYPE: Final = (b"content-type", b"application/json")
"""The header field of a JSON body."""

ROOT: Final = "tangram.root"
"""Key of the scope for ``[server] root_path``, once the path has been cut."""

_BODILESS: Final = frozenset({204, 304})
"""Status codes whose responses have no body and no headers that describe one."""


class WholeSend(Protocol):
    """An engine's ``send`` that also takes a whole response in one call.

    A function that wraps a ``send`` does not offer ``answer``, so that no response passes it by.
    """

    async def __call__(self, message: Message) -> None:
        """Send one ASGI message."""

    async def answer(self, status: int, fields: Fields, body: bytes) -> None:
        """Send a response that has a body, with its length; HEAD gets the headers alone.

        Args:
            status: the status code, one whose responses have a body.
            fields: header fields in lower case, none of which frames the message.
            body: the body, also for HEAD.
        """


def enter_root(scope: Scope, root: str) -> None:
    """Cut ``root`` from the start of a request's path, once.

    A proxy may pass the path with the root or without it, so that both are served. A path that is the root
    itself becomes empty.

    Args:
        scope: the request, which is changed; it keeps the root under `ROOT`.
        root: ``/tangram``, or an empty text for none.
    """
    if not root or ROOT in scope:
        return
    scope[ROOT] = root
    path: str = scope["path"]
    if path == root or path.startswith(f"{root}/"):
        scope["path"] = path[len(root) :]
        raw = scope.get("raw_path") or b""
        encoded = root.encode()
        # Another spelling of the root, with escapes, is left to the decoded path.
        scope["raw_path"] = raw[len(encoded) :] if raw.startswith(encoded) else None


def full_scope(scope: Scope) -> Scope:
    """Return the scope for a foreign application: the whole path, and ``root_path``.

    Such an application cuts the root itself, and writes it into redirects.
    """
    root: str = scope.get(ROOT, "")
    if not root:
        return scope
    raw = scope.get("raw_path")
    full = {
        **scope,
        "path": root + scope["path"],
        "raw_path": None if raw is None else root.encode() + raw,
        "root_path": root,
    }
    del full[ROOT]
    return full


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
    await send({"type": "http.response.start", "status": status, "headers": [JSON_TYPE, length, *headers]})
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


def send_whole(scope: Scope, send: Send, status: int, fields: Fields, body: bytes) -> Awaitable[None]:
    """Send a response that has a body, in one call if ``send`` is a ``WholeSend``."""
    answer: Callable[[int, Fields, bytes], Awaitable[None]] | None = getattr(send, "answer", None)
    if answer is None:
        return _send_both(scope, send, status, fields, body)
    return answer(status, fields, body)


async def _send_both(scope: Scope, send: Send, status: int, fields: Fields, body: bytes) -> None:
    start = [*fields, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def with_fields(message: Message, fields: Fields) -> Message:
    """Return a ``http.response.start`` with further header fields.

    An ``access-control-allow-origin`` of the application is dropped: the server decides about origins.
    """
    return {**message, "headers": [*without_allowed_origin(message.get("headers", ())), *fields]}


def without_allowed_origin(fields: Iterable[tuple[bytes, bytes]]) -> Iterable[tuple[bytes, bytes]]:
    """Return header fields without ``access-control-allow-origin``."""
    return [field for field in fields if not field[0].lower().startswith(b"access-control-allow-origin")]
