"""Build the head of a response, and decide how its body is framed.

1. No I/O here.
2. A header that would split the response in two raises ``BadResponse``, and the client gets 500.
3. The application must send the body that its own Content-Length declares: a longer or shorter one ends the
   connection.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from tangram.asgi import Fields

__all__ = [
    "BadResponse",
    "Framing",
    "build_head",
    "build_whole_head",
    "date_line",
    "header_lines",
    "simple_response",
]

_STATUS: Final = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode("ascii"))
    for status in HTTPStatus
}

UNTIL_CLOSE: Final = -2
"""A length: the body ends with the connection (HTTP/1.0)."""

CHUNKED: Final = -1
"""A length: the body is sent in chunks."""

_CONTROLLED: Final = frozenset(
    {b"content-length", b"transfer-encoding", b"connection", b"date", b"keep-alive", b"upgrade"}
)

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_date: tuple[int, bytes] = (0, b"")

MAX_BLOCKS: Final = 256
"""Header blocks that are kept: an origin that is echoed makes one of its own."""

_blocks: Final[dict[tuple[int, Fields], bytes]] = {}


class BadResponse(Exception):
    """The application sent an event that cannot be part of a response."""


class Framing:
    """The head of one response, and the way its body is sent."""

    __slots__ = ("close", "head", "length")

    def __init__(self, head: bytes, length: int, *, close: bool) -> None:
        self.head = head
        self.length = length
        """Bytes that must follow, or ``CHUNKED``, or ``UNTIL_CLOSE``."""
        self.close = close
        """Whether the connection ends after it."""


def date_line() -> bytes:
    """Return the ``date`` header line of this second; it is made once a second."""
    global _date  # noqa: PLW0603 - a cache of the wall clock, which all connections share
    now = int(time.time())
    if _date[0] != now:
        _date = (now, _format_date(now))
    return _date[1]


def _format_date(now: int) -> bytes:
    # By hand: importing email.utils takes 10 ms, and strftime uses the operator's locale.
    year, month, day, hour, minute, second, weekday, *_ = time.gmtime(now)
    text = f"{_DAYS[weekday]}, {day:02} {_MONTHS[month - 1]} {year} {hour:02}:{minute:02}:{second:02} GMT"
    return b"date: %s\r\n" % text.encode("ascii")


def build_head(
    status: int,
    headers: Iterable[tuple[bytes, bytes]],
    *,
    whole: int,
    bodiless: bool,
    version: str,
    keep_alive: bool,
) -> Framing:
    """Build the head of a response.

    Args:
        status: the status code.
        headers: the application's header fields; those that frame the message are ours.
        whole: the body's length in bytes if all of it is at hand, else -1.
        bodiless: whether the response has no body although its headers may describe one (``HEAD``, 304).
        version: the request's HTTP version, ``"1.0"`` or ``"1.1"``.
        keep_alive: whether the client and the engine would keep the connection.

    Raises:
        BadResponse: a header holds a line break or a null byte, or a malformed length.
    """
    block, length, closes, has_date = _lines_of(status, headers)
    close = closes or not keep_alive
    length, close, line = _framing(status, length, whole, bodiless=bodiless, version=version, close=close)
    block += line
    if not has_date:
        block += date_line()
    return Framing(block + _end_of_head(version, close=close), length, close=close)


def build_whole_head(status: int, fields: Fields, size: int, *, version: str, keep_alive: bool) -> Framing:
    """Build the head of a response whose body is at hand, from lines that are kept.

    Args:
        status: the status code, one whose responses have a body.
        fields: the header fields, none of which frames the message.
        size: the body's length in bytes.
        version: the request's HTTP version, ``"1.0"`` or ``"1.1"``.
        keep_alive: whether client and engine keep the connection.

    Raises:
        BadResponse: a field holds a line break or a null byte, or frames the message.
    """
    block = _blocks.get((status, fields)) or _remember(status, fields)
    end = b"\r\n" if keep_alive and version == "1.1" else _end_of_head(version, close=not keep_alive)
    head = b"%bcontent-length: %d\r\n%b%b" % (block, size, date_line(), end)
    return Framing(head, size, close=not keep_alive)


def _remember(status: int, fields: Fields) -> bytes:
    block, length, closes, has_date = _lines_of(status, fields)
    if length is not None or closes or has_date:
        raise BadResponse("a whole response with a header that frames it")
    if len(_blocks) >= MAX_BLOCKS:
        _blocks.clear()
    _blocks[status, fields] = block
    return block


def _end_of_head(version: str, *, close: bool) -> bytes:
    if close:
        return b"connection: close\r\n\r\n"
    return b"connection: keep-alive\r\n\r\n" if version == "1.0" else b"\r\n"


def _lines_of(status: int, headers: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, int | None, bool, bool]:
    """Return the first lines of a head, its length, and whether it closes and has a date."""
    length = None
    close = has_date = False
    lines = [_STATUS.get(status) or b"HTTP/1.1 %d \r\n" % status]
    for name, value in headers:
        lower = name.lower()
        if lower in _CONTROLLED:
            if lower == b"content-length":
                length = _length(value, length)
                continue
            if lower == b"connection":
                close = close or b"close" in value.lower()
                continue
            if lower != b"date":
                continue  # the engine frames the message itself
            has_date = True
        lines.append(b"%b: %b\r\n" % (lower, value))
    block = b"".join(lines)
    if block.count(b"\n") != len(lines) or block.count(b"\r") != len(lines) or b"\x00" in block:
        raise BadResponse("a response header holds a line break or a null byte")
    return block, length, close, has_date


def _length(value: bytes, before: int | None) -> int:
    if not value.isdigit() or (before is not None and int(value) != before):
        raise BadResponse(f"malformed content-length {value!r} of a response")
    return int(value)


def _framing(
    status: int, length: int | None, whole: int, *, bodiless: bool, version: str, close: bool
) -> tuple[int, bool, bytes]:
    """Return (length that follows, whether to close, the header line of the framing)."""
    if status < 200 or status == HTTPStatus.NO_CONTENT:
        return 0, close, b""
    if bodiless:  # HEAD, 304: the headers describe the body that a GET would have
        if length is None and whole > 0:
            length = whole
        return 0, close, b"" if length is None else b"content-length: %d\r\n" % length
    if length is None and whole >= 0:
        length = whole
    if length is not None:
        return length, close, b"content-length: %d\r\n" % length
    if version == "1.0":
        return UNTIL_CLOSE, True, b""
    return CHUNKED, close, b"transfer-encoding: chunked\r\n"


def header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return header fields as the lines that a head consists of."""
    return b"".join(b"%b: %b\r\n" % field for field in headers)


def simple_response(status: int, text: str, *, close: bool, extra: bytes = b"") -> bytes:
    """Build a whole plain-text response of the engine's own."""
    body = text.encode() + b"\n"
    return b"%bcontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n%b%b%b\r\n%b" % (
        _STATUS[status],
        len(body),
        extra,
        date_line(),
        b"connection: close\r\n" if close else b"",
        body,
    )
