"""The bytes of a response head, and how its body is framed.

1. No I/O here.
2. A header that would split the response in two is refused, and costs its application the request.
3. The application's own Content-Length is believed and then held to: more or less body than told ends the
   connection.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from http import HTTPStatus

__all__ = ["BadResponse", "Framing", "build_head", "date_line", "simple_response"]

_STATUS = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode("ascii"))
    for status in HTTPStatus
}

UNTIL_CLOSE = -2
"""A length: the body ends with the connection (HTTP/1.0)."""
CHUNKED = -1
"""A length: the body is sent in chunks."""

_CONTROLLED = frozenset(
    {b"content-length", b"transfer-encoding", b"connection", b"date", b"keep-alive", b"upgrade"}
)

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_date: tuple[int, bytes] = (0, b"")


class BadResponse(Exception):  # what it is, in the words of this module
    """The application sent something that cannot be a response."""


class Framing:
    """How one response goes out."""

    __slots__ = ("close", "head", "length")

    def __init__(self, head: bytes, length: int, *, close: bool) -> None:
        self.head = head
        self.length = length
        """Bytes that must follow, or CHUNKED, or UNTIL_CLOSE."""
        self.close = close
        """Whether the connection ends after it."""


def date_line() -> bytes:
    """``date: ...`` of this second; made once a second."""
    global _date  # noqa: PLW0603  # a cache of the wall clock: the same for everybody
    now = int(time.time())
    if _date[0] != now:
        _date = (now, _format_date(now))
    return _date[1]


def _format_date(now: int) -> bytes:
    # By hand: email.utils costs 10 ms of start, and strftime speaks the operator's language.
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
    """The head of a response. ``whole`` is the body's length where all of it is at hand, else -1."""
    length = None
    close = not keep_alive
    lines = [_STATUS.get(status) or b"HTTP/1.1 %d \r\n" % status]
    has_date = False
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
                continue  # framing is ours
            has_date = True
        lines.append(b"%b: %b\r\n" % (lower, value))
    block = b"".join(lines)
    if block.count(b"\n") != len(lines) or block.count(b"\r") != len(lines) or b"\x00" in block:
        raise BadResponse("a response header holds a line break or a null byte")
    length, close, line = _framing(status, length, whole, bodiless=bodiless, version=version, close=close)
    block += line
    if not has_date:
        block += date_line()
    if close:
        block += b"connection: close\r\n"
    elif version == "1.0":
        block += b"connection: keep-alive\r\n"
    return Framing(block + b"\r\n", length, close=close)


def _length(value: bytes, before: int | None) -> int:
    if not value.isdigit() or (before is not None and int(value) != before):
        raise BadResponse(f"malformed content-length {value!r} of a response")
    return int(value)


def _framing(
    status: int, length: int | None, whole: int, *, bodiless: bool, version: str, close: bool
) -> tuple[int, bool, bytes]:
    """Answers (length that follows, whether to close, the framing's header line)."""
    if status < 200 or status == HTTPStatus.NO_CONTENT:
        return 0, close, b""
    if bodiless:  # HEAD, 304: says what a GET would have, and sends nothing
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


def simple_response(status: int, text: str, *, close: bool, extra: bytes = b"") -> bytes:
    """A whole response of the engine's own, as plain text."""
    body = text.encode() + b"\n"
    return b"%bcontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n%b%b%b\r\n%b" % (
        _STATUS[status],
        len(body),
        extra,
        date_line(),
        b"connection: close\r\n" if close else b"",
        body,
    )
