"""``Request``: an HTTP request with its body, which is read and parsed on first use."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import msgspec
import trio

from tangram.asgi import Message, Receive, Scope
from tangram.routing.collector_hold import hold
from tangram.routing.connection import Headers, HTTPConnection, QueryParams
from tangram.routing.exceptions import HTTPException, InvalidRequest, Problem
from tangram.routing.json_slices import JSONSlices, TooManyContainers

__all__ = [
    "READ_AT_ONCE",
    "ClientDisconnected",
    "Headers",
    "QueryParams",
    "Request",
    "decode_any",
    "decode_json",
    "is_plain_json",
    "read_body",
]

READ_AT_ONCE: Final = 32_768
"""Bytes of JSON that are decoded and converted at once.

A larger text is decoded in slices, and its values are converted in a thread, which takes turns with the event
loop every 5 ms: the converter takes up to 7 microseconds for an item of three bytes.
"""

_turns: Final = trio.lowlevel.RunVar[trio.Lock]("turns of large JSON")
"""The slices of all large bodies of an event loop take turns."""


class ClientDisconnected(Exception):
    """The client disconnected while its body was being read, so the request needs no answer."""


class Request(HTTPConnection):
    """One HTTP request."""

    __slots__ = ("_body", "_receive", "_streamed", "max_body")

    def __init__(
        self, scope: Scope, receive: Receive, *, max_body: int, path_params: Mapping[str, str]
    ) -> None:
        super().__init__(scope, path_params=path_params)
        self.max_body = max_body
        self._receive = receive
        self._body: bytes | None = None
        self._streamed = False

    @property
    def method(self) -> str:
        """The method in upper case."""
        return str(self.scope["method"])

    async def stream(self) -> AsyncIterator[bytes]:
        """Iterate over the body in chunks, as they arrive.

        Raises:
            HTTPException: 413, the body is longer than the limit of the route or the server.
            RuntimeError: the body was streamed before.
        """
        if self._body is not None:
            yield self._body
            return
        if self._streamed:
            raise RuntimeError("the body was streamed already: read it with body() to use it twice")
        self._streamed = True
        if _announces_more(self.scope, self.max_body):
            raise self._too_large()
        received, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            chunk = message.get("body", b"")
            more = message.get("more_body", False)
            received += len(chunk)
            if received > self.max_body > 0:
                raise self._too_large()
            if chunk:
                yield chunk

    def set_body(self, body: bytes) -> None:
        """Take a body that was read already."""
        self._body = body

    def _too_large(self) -> HTTPException:
        # The rest of the body is not read, so the connection cannot be used again. HTTP/2 has no such header,
        # because only the stream ends.
        old = str(self.scope.get("http_version", "1.1")).startswith("1")
        words = f"the body is longer than {self.max_body} bytes"
        return HTTPException(413, words, {"connection": "close"} if old else None)

    async def body(self) -> bytes:
        """Return the whole body.

        Raises:
            HTTPException: 413, the body is longer than the limit of the route or the server.
        """
        if self._body is None:
            chunks = [chunk async for chunk in self.stream()]
            self._body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return self._body

    async def json(self) -> Any:
        """Return the body decoded from JSON.

        Raises:
            InvalidRequest: 422, the body is not valid JSON, or has very many arrays and objects.
        """
        return await decode_any(await self.body())


async def read_body(scope: Scope, receive: Receive, max_body: int) -> bytes:
    """Return the whole body of a request, as ``Request.body`` does.

    Raises:
        HTTPException: 413, the body is longer than ``max_body``.
        ClientDisconnected: the client has gone.
    """
    if not _announces_more(scope, max_body):
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            body: bytes = message.get("body", b"")
            if not len(body) > max_body > 0:
                return body
        receive = _again(message, receive)
    return await Request(scope, receive, max_body=max_body, path_params={}).body()


def _announces_more(scope: Scope, max_body: int) -> bool:
    """Return whether a ``Content-Length`` is longer than ``max_body``."""
    if max_body:
        for key, value in scope.get("headers", ()):
            if key == b"content-length" and value.isdigit() and (len(value) > 18 or int(value) > max_body):
                return True
    return False


def _again(message: Message, receive: Receive) -> Receive:
    """Return a ``receive`` whose first message was received already."""
    first = [message]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


def is_plain_json(scope: Scope) -> bool:
    """Return whether the headers declare JSON in the usual words, and no content coding."""
    kind = b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            kind = value
        elif name == b"content-encoding":
            return False
    return kind == b"application/json"


async def decode_any(body: bytes) -> Any:
    """Decode JSON at once, or in slices if it is large.

    Raises:
        InvalidRequest: the body is not valid JSON, or has very many arrays and objects.
    """
    if len(body) <= READ_AT_ONCE:
        return decode_json(body)
    body = body.removeprefix(BOM_UTF8)
    with hold:
        slices = JSONSlices(body)
        while not slices.done:
            await _wait_turn()
            try:
                slices.decode_next()
            except TooManyContainers as exc:
                problem = Problem(("body",), str(exc), "too_many_values")
            except (RecursionError, msgspec.MsgspecError, ValueError) as exc:
                problem = _problem_of(exc, len(body), slices.shift)
            else:
                continue
            raise InvalidRequest([problem])
        return slices.value


async def _wait_turn() -> None:
    """Return in a pass of the event loop in which no other call returns."""
    try:
        lock = _turns.get()
    except LookupError:
        lock = trio.Lock()
        _turns.set(lock)
    async with lock:
        pass  # it is handed over to the next waiting task, which runs in the next pass


def decode_json(body: bytes) -> Any:
    """Decode JSON.

    Raises:
        InvalidRequest: the body is not valid JSON; the fault has the offset in bytes.
    """
    body = body.removeprefix(BOM_UTF8)  # some editors and spreadsheets put it before the document
    try:
        return msgspec.json.decode(body)
    except (RecursionError, msgspec.MsgspecError, ValueError) as exc:
        problem = _problem_of(exc, len(body), 0)
    raise InvalidRequest([problem])


def _problem_of(exc: Exception, size: int, shift: int) -> Problem:
    """Return the problem for an exception of the parser.

    Args:
        exc: the exception.
        size: bytes of the text.
        shift: is added to the offset in the exception.
    """
    if isinstance(exc, RecursionError):
        return Problem(("body",), "the JSON is nested too deeply", "json_invalid")
    if isinstance(exc, UnicodeDecodeError):
        return Problem(("body", exc.start), "expected UTF-8", "json_invalid")
    words, _, place = str(exc).partition(" (byte ")
    digits = place.rstrip(")")
    offset = int(digits) + shift if digits.isdigit() else size
    words = words.partition(" - at `")[0]  # the place in values is not known in a slice
    if not words[1:2].isupper():  # "JSON is malformed" stays
        words = words[:1].lower() + words[1:]
    return Problem(("body", offset), words, "json_invalid")
