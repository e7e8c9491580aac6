"""Parse the bytes of one request head.

1. No I/O here: bytes in, a ``RequestHead`` or a ``RejectedRequest`` out.
2. One regular expression checks the whole head before httptools parses it, so that httptools never sees a
   byte that the expression does not allow. Requests can be smuggled if two parsers disagree about the same
   bytes; leniencies of llhttp are therefore refused here. The referee is h11: a head that h11 refuses is
   refused, and an accepted head is read as h11 reads it. These are refused although h11 accepts them: bare
   LF, folded lines, control characters in values, a repeated or list-valued Content-Length, a length beside a
   transfer coding, and methods in lower case.
3. httptools cannot stop at the end of a message, so it is given one head and no more. ``body`` frames the
   bodies.
4. The fields are read from the lines, whose form the expression has checked: a callback of httptools for each
   field would cost more than all the rest. httptools decides only whether it refuses the head, too.
5. Clients send the same fields with most requests of a connection. A head that differs from the last one only
   in a target of usual characters is not parsed again, because no check could have another result.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import unquote

import httptools

__all__ = ["CHUNKED", "HeadReader", "RejectedRequest", "RequestHead", "parse_head", "premature_fault"]

CHUNKED: Final = -1
"""The length of a body that is sent in chunks."""

MAX_LENGTH_DIGITS: Final = 18
"""Digits of a Content-Length: more would overflow the integers of some intermediaries."""

MAX_KNOWN_FIELDS: Final = 4096
"""Bytes of header fields that a connection keeps for its next request; browsers send about 700."""

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_VALUE: Final = rb"[\t\x20-\x7e\x80-\xff]*+"
_HEAD: Final = re.compile(
    rb"(?P<method>[A-Z][A-Z\-]{0,31}) (?P<target>[!-~]+) HTTP/1\.(?P<minor>[01])\r\n"
    rb"(?:" + _TOKEN + rb":" + _VALUE + rb"\r\n)*+\r\n"
)
_OTHER_VERSION: Final = re.compile(rb"[!-~]+ [!-~]+ HTTP/(?!1\.[01]\r)[0-9]\.[0-9]\r\n")
_BARE_LF: Final = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_HOST: Final = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]*")
_LENGTH: Final = re.compile(rb"[0-9]{1,%d}" % MAX_LENGTH_DIGITS)
_USUAL_LINE: Final = re.compile(rb"([A-Z\-]+) (/[A-Za-z0-9\-._~!$&'()*+,;=:@/%?]*+) HTTP/1\.1")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#@]+)(/[^?]*)?(\?.*)?", re.IGNORECASE)

_NO_CALLBACKS: Final = object()
"""httptools calls the methods that its protocol has, and this one has none."""

_FRAMING: Final = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade"}
)
"""Fields that decide about the connection; the others are only passed on."""


class RejectedRequest(Exception):
    """The engine must answer the request itself, with ``status`` and ``reason``, and close."""

    def __init__(self, status: int, reason: str, extra: bytes = b"") -> None:
        self.status = status
        self.reason = reason
        self.extra = extra
        """Further header lines of the answer, each with its CR LF."""
        super().__init__(status, reason)


class RequestHead:
    """One parsed request head."""

    # Defaults of the class: most heads change few of them.
    target: bytes = b""
    method: str = ""
    path: str = ""
    raw_path: bytes = b""
    query: bytes = b""
    version: str = "1.1"
    length: int = 0
    """Bytes of the body, or ``CHUNKED``."""
    keep_alive: bool = True
    expects_continue: bool = False
    websocket: bool = False

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        """Names in lower case, in the order sent."""
        self.framing: dict[bytes, list[bytes]] = {}

    def with_target(self, target: bytes) -> RequestHead:
        """Return a copy with another target, and a list of fields of its own."""
        copy = RequestHead.__new__(RequestHead)
        copy.__dict__.update(self.__dict__)
        copy.headers = self.headers.copy()
        copy.target = target
        _read_target(copy)
        return copy

    def read_fields(self, lines: Iterable[bytes]) -> None:
        """Read the lines of the header, each of which the expression has checked."""
        headers, framing = self.headers, self.framing
        for line in lines:
            name, _, value = line.partition(b":")
            name = name.lower()
            value = value.strip(b" \t")
            headers.append((name, value))
            if name in _FRAMING:
                framing.setdefault(name, []).append(value)


class HeadReader:
    """Parses the heads of one connection, and keeps the last one for the next."""

    __slots__ = ("_fields", "_last", "_method")

    def __init__(self) -> None:
        self._fields = b""
        """The last head from the end of its request line on; empty for none."""
        self._method = b""
        self._last = RequestHead()

    def read(self, data: bytes, end: int, max_headers: int) -> RequestHead:
        """Parse the head at the start of ``data``.

        Args:
            data: received bytes.
            end: the end of the head's empty line.
            max_headers: the largest number of fields, the same at each call.

        Raises:
            RejectedRequest: the head is malformed, or has more than ``max_headers`` fields.
        """
        line = _USUAL_LINE.match(data)
        if line is None:
            return parse_head(data[:end], max_headers)
        start, fields = line.end(), self._fields
        if end - start == len(fields) and data.startswith(fields, start) and line[1] == self._method:
            return self._last.with_target(line[2])
        request = parse_head(data[:end], max_headers)
        if end - start <= MAX_KNOWN_FIELDS and not request.websocket:
            self._fields, self._method = data[start:end], line[1]
            self._last = request.with_target(line[2])
        return request


def parse_head(head: bytes, max_headers: int) -> RequestHead:
    """Parse one head, up to and including its empty line.

    Raises:
        RejectedRequest: the head is malformed, or has more than ``max_headers`` fields.
    """
    match = _HEAD.fullmatch(head)
    if match is None:
        raise _explain(head)
    try:
        httptools.HttpRequestParser(_NO_CALLBACKS).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # raised at the end of the head, after which it was given no byte
    except httptools.HttpParserError as error:
        raise RejectedRequest(400, f"malformed request: {error}") from error
    lines = head.split(b"\r\n")[1:-2]  # without the request line, the empty line and its end
    if len(lines) > max_headers:
        raise RejectedRequest(431, f"more than {max_headers} header fields")
    request = RequestHead()
    request.read_fields(lines)
    request.method = match["method"].decode("ascii")
    request.target = match["target"]
    if match["minor"] == b"0":
        request.version = "1.0"
        request.keep_alive = False
    _read_target(request)
    _read_framing(request)
    return request


def premature_fault(data: bytes) -> RejectedRequest | None:
    """Return the fault of an incomplete head that no further byte can mend, or None.

    The client then gets its answer at once, not after the timeout.
    """
    if data and not 0x41 <= data[0] <= 0x5A:
        return RejectedRequest(400, "malformed request line")
    if _BARE_LF.search(data):
        return RejectedRequest(400, "lines must end with CR LF")
    return None


def _explain(head: bytes) -> RejectedRequest:
    if _OTHER_VERSION.match(head):
        return RejectedRequest(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    if _BARE_LF.search(head):
        return RejectedRequest(400, "lines must end with CR LF")
    line, *fields = head.split(b"\r\n")
    if not re.fullmatch(rb"[A-Z][A-Z\-]{0,31} [!-~]+ HTTP/1\.[01]", line):
        return RejectedRequest(400, "malformed request line")
    if any(field[:1] in {b" ", b"\t"} for field in fields):
        return RejectedRequest(400, "folded header lines are not allowed")
    if any(re.match(_TOKEN + rb"[ \t]+:", field) for field in fields):
        return RejectedRequest(400, "no space is allowed before the colon of a header")
    return RejectedRequest(400, "malformed header field")


def _read_target(request: RequestHead) -> None:
    target = request.target
    if not target.startswith(b"/"):
        target = _odd_target(request, target)
    raw, _, request.query = target.partition(b"?")
    request.raw_path = raw
    text = raw.decode("ascii")
    request.path = unquote(text) if "%" in text else text


def _odd_target(request: RequestHead, target: bytes) -> bytes:
    if target == b"*" and request.method == "OPTIONS":
        return target
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise RejectedRequest(400, "malformed request target")
    # RFC 9112, 3.2.2: the authority of the target replaces the Host header.
    authority = match[1]
    request.headers = [(name, authority if name == b"host" else value) for name, value in request.headers]
    return (match[2] or b"/") + (match[3] or b"")


def _read_framing(request: RequestHead) -> None:
    framing = request.framing
    hosts = framing.get(b"host", ())
    if len(hosts) > 1 or (not hosts and request.version == "1.1"):
        raise RejectedRequest(400, "exactly one Host is needed")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise RejectedRequest(400, "malformed Host")
    if len(framing) == len(hosts):
        return
    if b"content-length" in framing or b"transfer-encoding" in framing:
        _read_body_framing(request, framing.get(b"content-length", ()), framing.get(b"transfer-encoding", ()))
    if b"expect" in framing:
        if framing[b"expect"][0].lower() != b"100-continue":
            raise RejectedRequest(417, "the only expectation known is '100-continue'")
        request.expects_continue = request.version == "1.1"
    if b"connection" in framing:
        _read_connection(request, framing[b"connection"], framing.get(b"upgrade", ()))


def _read_body_framing(request: RequestHead, lengths: Sequence[bytes], codings: Sequence[bytes]) -> None:
    if not codings:
        if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
            raise RejectedRequest(400, "malformed or repeated Content-Length")
        request.length = int(lengths[0])
        return
    if lengths:
        raise RejectedRequest(400, "Content-Length beside Transfer-Encoding")
    if request.version == "1.0":
        raise RejectedRequest(400, "HTTP/1.0 has no transfer codings")
    if len(codings) > 1 or codings[0].lower() != b"chunked":
        raise RejectedRequest(501, "the only transfer coding known is 'chunked', once")
    request.length = CHUNKED


def _read_connection(request: RequestHead, connection: Sequence[bytes], upgrade: Sequence[bytes]) -> None:
    tokens = {token.strip(b" \t") for token in b",".join(connection).lower().split(b",")}
    if b"close" in tokens:
        request.keep_alive = False
    elif b"keep-alive" in tokens:
        request.keep_alive = True
    request.websocket = (
        b"upgrade" in tokens
        and len(upgrade) == 1
        and upgrade[0].lower() == b"websocket"
        and request.method == "GET"
        and request.version == "1.1"
    )
    if request.websocket and request.length:
        raise RejectedRequest(400, "an upgrade cannot have a body")
