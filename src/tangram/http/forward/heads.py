"""Heads of requests and answers between two nodes.

1. No I/O here.
2. A head is made of the fields that an engine has parsed, and one expression checks all of it again: fields
   of HTTP/2 did not pass the engine for HTTP/1.1. Framing is never copied; it is written anew.
3. The cluster is one server, and not a chain of proxies: fields that ``Connection`` names are passed on, or a
   client could remove ``Cookie`` or the fields of the proxy in front by naming them.
4. Answers come from the native engine of another node. Anything that this engine does not send is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, Literal
from urllib.parse import quote

import msgspec

from tangram.asgi import RawHeaders, Scope
from tangram.http.native.body import ChunkedBody, LengthBody

__all__ = [
    "CHUNKED",
    "ENVELOPE",
    "GREETING",
    "NOT_REFUSED",
    "PROOF",
    "REFUSED",
    "UNKNOWN",
    "AnswerHead",
    "BadHead",
    "Envelope",
    "answer_fields",
    "declared_length",
    "encode_envelope",
    "encode_head",
    "open_envelope",
    "pair",
    "parse_answer",
    "refusal_of",
    "request_fields",
    "signed_text",
    "target_of",
    "timing_field",
    "without_internal",
]

CHUNKED: Final = -1
"""A length: the body comes in chunks."""
UNKNOWN: Final = -2
"""A length: the request has not declared one and may have a body all the same (HTTP/2)."""

PROOF: Final = b"tangram-proof"
"""The field with session, number and MAC."""
ENVELOPE: Final = b"tangram-request"
"""The field that describes the client's own request."""
GREETING: Final = b"tangram-hello"
"""The field by which a session is opened."""
REFUSED: Final = b"tangram-refused"
"""The field of an answer of the internal listener that is not for the client."""
NOT_REFUSED: Final = (REFUSED, b"no")
"""The mark of a 403 that an application has sent; without it the listener has sent it."""

_INTERNAL: Final = frozenset({PROOF, ENVELOPE, GREETING, REFUSED})

_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
    | {b"http2-settings", b"content-length", b"expect"}
)
"""Fields that concern one connection, or frame the message."""

_HANDSHAKE: Final = frozenset(
    {b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions", b"sec-websocket-accept"}
)
"""Fields of a WebSocket handshake that hold for one connection. Subprotocols are passed on."""

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_VALUE: Final = rb"[\t\x20-\x7e\x80-\xff]*+"
_LOWER: Final = rb"[!#$%&'*+\-.^_`|~0-9a-z]++"
_SIGNED: Final = re.compile(
    rb"[A-Z][A-Z\-]{0,31}\n/[!-~]*+\n(?:" + _LOWER + rb":(?![ \t])" + _VALUE + rb"(?<![ \t])\n)*+"
)
_ANSWER: Final = re.compile(
    rb"HTTP/1\.1 (?P<status>[1-9][0-9]{2}) [\t\x20-\x7e\x80-\xff]*+\r\n"
    rb"(?P<fields>(?:" + _TOKEN + rb":" + _VALUE + rb"\r\n)*+)\r\n"
)
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")

PATH_SAFE: Final = "/%:@!$&'()*+,;=-._~"


class BadHead(Exception):
    """A head that cannot be passed on, or an answer that no node of tangram sends."""


class Envelope(msgspec.Struct, omit_defaults=True, frozen=True):
    """The client's own request, as the first node has received it."""

    node: str
    """The id of that node."""
    plugin: str = ""
    """The plugin for which the request is; empty for a request to the node itself."""
    scheme: str = "http"
    version: str = "1.1"
    client: tuple[str, int] | None = None
    """Address and port of the client, behind trusted proxies the browser's."""
    peer: tuple[str, int] | None = None
    """Address and port of the nearest proxy, where there is one."""
    server: tuple[str, int | None] | None = None
    root: str = ""
    """``[server] root_path`` of the first node."""
    right: Literal["", "read", "token"] = ""
    """The right of the operator that the first node has found: by a session, or by the token."""
    hostless: bool = False
    """The request had no ``Host``."""
    push: str = ""
    """The SHA-256 digest of the body, if the request is a declared push."""


_decode_envelope = msgspec.json.Decoder(Envelope).decode


def open_envelope(text: bytes) -> Envelope:
    """Read the field that describes a request.

    Raises:
        BadHead: it is malformed.
    """
    try:
        return _decode_envelope(text)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadHead(f"malformed {ENVELOPE.decode()}: {error}") from error


def target_of(scope: Scope, root: str = "") -> bytes:
    """Return the target of a request: path and query as the client has sent them.

    Args:
        scope: the request.
        root: the prefix that was cut from its path.
    """
    raw = scope.get("raw_path") or quote(scope["path"], safe=PATH_SAFE).encode()
    query: bytes = scope["query_string"]
    target: bytes = root.encode() + raw
    return target + b"?" + query if query else target


def declared_length(scope: Scope) -> int:
    """Return the length of a request's body, `CHUNKED` or `UNKNOWN`.

    Raises:
        BadHead: two lengths, or no number.
    """
    lengths: list[bytes] = []
    chunked = False
    for name, value in scope["headers"]:
        if name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            chunked = True
    if chunked and lengths:
        raise BadHead("a request with a length beside a transfer coding")
    if chunked:
        return CHUNKED
    if not lengths:
        return UNKNOWN if scope.get("http_version") == "2" else 0
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise BadHead("malformed or repeated content-length")
    return int(lengths[0])


def request_fields(scope: Scope) -> tuple[RawHeaders, bool]:
    """Return the fields of a request that are passed on, and whether ``Host`` is among them."""
    hop = _HOP | _HANDSHAKE if scope["type"] == "websocket" else _HOP
    fields: RawHeaders = []
    has_host = False
    for name, value in scope["headers"]:
        if name in hop or name in _INTERNAL:
            continue
        has_host = has_host or name == b"host"
        fields.append((name, value.strip(b" \t")))
    return fields, has_host


def without_internal(headers: Iterable[tuple[bytes, bytes]]) -> RawHeaders:
    """Return header fields without those between nodes."""
    return [(name, value) for name, value in headers if name not in _INTERNAL]


def signed_text(method: bytes, target: bytes, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the text that a proof covers: method, target and every field but the proof."""
    lines = [b"%b:%b" % field for field in fields if field[0] != PROOF]
    return b"\n".join([method, target, *lines, b""])


def encode_head(signed: bytes, proof: bytes) -> bytes:
    """Return the head of a request.

    Args:
        signed: see `signed_text`.
        proof: the value of the field `PROOF`.

    Raises:
        BadHead: a field, the method or the target holds a byte that would change the meaning of the head.
    """
    if _SIGNED.fullmatch(signed) is None:
        raise BadHead("a request that cannot be written as HTTP/1.1")
    method, target, lines = signed.split(b"\n", 2)
    return b"%b %b HTTP/1.1\r\n%b%b: %b\r\n\r\n" % (
        method,
        target,
        lines.replace(b"\n", b"\r\n"),
        PROOF,
        proof,
    )


class AnswerHead:
    """The head of an answer."""

    __slots__ = ("body", "close", "fields", "status")

    def __init__(self, status: int, fields: RawHeaders) -> None:
        self.status = status
        self.fields = fields
        self.close = False
        """Whether the connection ends after the answer."""
        self.body: LengthBody | ChunkedBody = LengthBody(0)

    def value(self, name: bytes) -> bytes | None:
        """Return the value of a field that was sent once."""
        values = [value for known, value in self.fields if known == name]
        return values[0] if len(values) == 1 else None


def parse_answer(head: bytes, *, to_head: bool = False) -> AnswerHead:
    """Parse the head of an answer, up to and including its empty line.

    Args:
        head: the bytes.
        to_head: the request was ``HEAD``, so that no body follows.

    Raises:
        BadHead: it is malformed, or does not say where the answer ends.
    """
    match = _ANSWER.fullmatch(head)
    if match is None:
        raise BadHead("malformed head of an answer")
    fields: RawHeaders = []
    framing: dict[bytes, list[bytes]] = {}
    for line in match["fields"].split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        name = name.lower()
        value = value.strip(b" \t")
        fields.append((name, value))
        if name in _HOP:
            framing.setdefault(name, []).append(value)
    answer = AnswerHead(int(match["status"]), fields)
    answer.close = any(b"close" in value.lower() for value in framing.get(b"connection", ()))
    _frame(answer, framing, to_head=to_head)
    return answer


def _frame(answer: AnswerHead, framing: dict[bytes, list[bytes]], *, to_head: bool) -> None:
    lengths, codings = framing.get(b"content-length", []), framing.get(b"transfer-encoding", [])
    if len(lengths) > 1 or len(codings) > 1 or (lengths and codings):
        raise BadHead("an answer that is framed twice")
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        raise BadHead("malformed content-length of an answer")
    if codings and codings[0] != b"chunked":
        raise BadHead(f"an answer with the transfer coding {codings[0]!r}")
    if to_head or answer.status < 200 or answer.status in {204, 304}:
        return
    if codings:
        answer.body = ChunkedBody()
    elif lengths:
        answer.body = LengthBody(int(lengths[0]))
    else:
        raise BadHead("an answer without a length")


def refusal_of(answer: AnswerHead) -> bytes | None:
    """Return why the listener refuses a request; None if its application has answered."""
    refusal = answer.value(REFUSED)
    if refusal is None:
        return b"session" if answer.status == 403 else None
    return None if refusal == NOT_REFUSED[1] else refusal


def answer_fields(answer: AnswerHead, *, websocket: bool = False) -> RawHeaders:
    """Return the fields of an answer for the client: without those of the connection.

    The date is that of the first node, whose engine writes it.
    """
    dropped = (_HOP - {b"content-length"}) | {b"date"} | _INTERNAL
    if websocket:
        dropped |= _HANDSHAKE | {b"content-length", b"sec-websocket-protocol"}
    return [field for field in answer.fields if field[0] not in dropped]


def timing_field(node: str) -> tuple[bytes, bytes]:
    """Return the field ``Server-Timing`` that names the node of an answer."""
    shown = "".join(char if 32 <= ord(char) < 127 and char not in '"\\' else "?" for char in node)
    return b"server-timing", b'node;desc="%b"' % shown.encode()


def encode_envelope(envelope: Envelope) -> tuple[bytes, bytes]:
    """Return the field that describes a request."""
    return ENVELOPE, msgspec.json.encode(envelope)


def pair(address: Any) -> tuple[str, int] | None:
    """Return host and port of an ASGI address as plain values."""
    return None if not address else (str(address[0]), int(address[1] or 0))
