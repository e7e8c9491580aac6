"""Phoenix' V2 serializer: messages to bytes and back.

1. This module owns the layout of text and binary frames, and the rule that tells a JSON payload from a
   binary one. It knows neither sockets nor members nor time.
2. Any bytes of a peer either decode or raise ``FrameError``; RecursionError is translated too.
3. JSON is validated by decoding it whole; then the original bytes are sent on. ``msgspec.Raw`` alone would
   let bad UTF-8 and ``1e400`` pass, which break ``JSON.parse`` in the browsers of other clients.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

import msgspec

from tangram.channels.frames import MAX_FIELD, REPLY, TEXT, Encoded, FrameError, SocketMessage

__all__ = [
    "MAX_DEPTH",
    "decode",
    "decode_binary",
    "decode_server",
    "decode_text",
    "encode_acknowledgements",
    "encode_binary_broadcast",
    "encode_client",
    "encode_json",
    "encode_text",
    "is_document",
    "text_header",
    "without_token",
]

MAX_DEPTH: Final = 128
"""Levels of nesting of a document that is delivered as JSON. Deeper documents are delivered as bytes."""

_DIGITS: Final = 309
"""Digits of the largest double. An integer with fewer digits cannot overflow one."""
_ALL_DIGITS_ZERO: Final = bytes(0x30 if 0x30 <= byte <= 0x39 else byte for byte in range(256))
_MANY_DIGITS: Final = b"0" * _DIGITS
_STRINGS: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NOT_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")

_ACKNOWLEDGED: Final = b',"%b",{"status":"ok","response":{}}]' % REPLY.encode()
_new: Final = tuple.__new__
"""The constructor below that of a NamedTuple, which takes half the time; it is used for each frame."""

_PUSH: Final = 0
_ANSWER: Final = 1
_BROADCAST: Final = 2


class _Envelope(msgspec.Struct, array_like=True, gc=False):
    # Extra trailing elements are ignored, as Phoenix' own serializer does.
    join_ref: str | None
    ref: str | None
    topic: str
    event: str
    payload: msgspec.Raw


_decode_envelope: Final = msgspec.json.Decoder(_Envelope).decode
_decode_any: Final = msgspec.json.Decoder().decode
_decode_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode_any: Final = msgspec.json.Encoder().encode


def encode_json(value: object) -> bytes:
    """Return compact JSON; the input is the server's own, so that this does not fail."""
    return _encode_any(value)


def decode(opcode: int, data: bytes | str) -> SocketMessage:
    """Decode one frame of a client.

    Raises:
        FrameError: for any bytes that are not a message.
    """
    if opcode == TEXT:
        return decode_text(data)
    if isinstance(data, str):
        raise FrameError("a binary frame is bytes")
    return decode_binary(data)


def decode_text(data: bytes | str) -> SocketMessage:
    """Decode ``[join_ref, ref, topic, event, payload]``; raises FrameError."""
    try:
        it = _decode_envelope(data)
        payload = bytes(it.payload)
        _decode_any(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FrameError(f"not a message: {error}") from error
    return _new(SocketMessage, (it.join_ref, it.ref, it.topic, it.event, payload, False))


def decode_binary(data: bytes) -> SocketMessage:
    """Decode a client's push: ``00 J R T E``, the four fields, the payload; raises FrameError."""
    if len(data) < 5 or data[0] != _PUSH:
        raise FrameError(f"not a push of a client: kind {data[0] if data else None!r}, {len(data)} bytes")
    (join_ref, ref, topic, event), payload = _fields(data, 1, 4)
    return SocketMessage(join_ref or None, ref or None, topic, event, payload, binary=True)


def decode_server(opcode: int, data: bytes | str) -> SocketMessage:
    """Decode one frame of a server, as a client does; raises FrameError.

    The binary kinds are push ``00 J T E``, reply ``01 J R T S`` (``event`` is then the status), and
    broadcast ``02 T E``.
    """
    if opcode == TEXT:
        return decode_text(data)
    if isinstance(data, str) or not data:
        raise FrameError("an empty frame")
    if data[0] == _PUSH:
        (join_ref, topic, event), payload = _fields(data, 1, 3)
        return SocketMessage(join_ref or None, None, topic, event, payload, binary=True)
    if data[0] == _ANSWER:
        (join_ref, ref, topic, status), payload = _fields(data, 1, 4)
        return SocketMessage(join_ref or None, ref or None, topic, status, payload, binary=True)
    if data[0] == _BROADCAST:
        (topic, event), payload = _fields(data, 1, 2)
        return SocketMessage(None, None, topic, event, payload, binary=True)
    raise FrameError(f"unknown kind {data[0]!r}")


def _fields(data: bytes, start: int, count: int) -> tuple[list[str], bytes]:
    """Read ``count`` lengths of one byte each, and return their fields and the rest."""
    position = start + count
    if len(data) < position:
        raise FrameError("truncated header")
    fields = []
    for length in data[start:position]:
        end = position + length
        if end > len(data):
            raise FrameError("truncated field")
        try:
            fields.append(data[position:end].decode())
        except UnicodeDecodeError as error:
            raise FrameError(f"a field is not UTF-8: {error}") from error
        position = end
    return fields, data[position:]


def text_header(join_ref: str | None, ref: str | None, topic: str, event: str) -> bytes:
    """Return the part of a text frame before its payload."""
    return _encode_any((join_ref, ref, topic, event))[:-1] + b","


def encode_text(join_ref: str | None, ref: str | None, topic: str, event: str, payload: bytes) -> Encoded:
    """Return a text frame whose ``payload`` is JSON text already."""
    return Encoded(TEXT, _encode_any((join_ref, ref, topic, event, msgspec.Raw(payload))))


class Answerable(Protocol):
    """The fields of a message that its reply needs."""

    @property
    def join_ref(self) -> str | None: ...
    @property
    def ref(self) -> str | None: ...
    @property
    def topic(self) -> str: ...


def encode_acknowledgements(replies: Iterable[Answerable | None]) -> list[bytes]:
    """Return the ``ok`` replies to pushes; None and pushes without a ``ref`` get no reply."""
    texts: list[bytes] = []
    join_ref: str | None = None
    topic: str | None = None
    head = tail = b""
    for to in replies:
        if to is None or (ref := to.ref) is None:
            continue
        if topic != to.topic or join_ref != to.join_ref:
            # The pushes of one read nearly always agree in these two fields.
            join_ref, topic = to.join_ref, to.topic
            head, tail = _encode_any((join_ref,))[:-1], _encode_any(topic) + _ACKNOWLEDGED
        texts.append(b"%b,%b,%b" % (head, _encode_any(ref), tail))
    return texts


def encode_binary_broadcast(topic: str, event: str) -> bytes:
    """Return the part of a binary broadcast (``02 T E``) before its payload.

    Raises:
        FrameError: if a field is longer than 255 bytes.
    """
    fields = [topic.encode(), event.encode()]
    _check_lengths(fields)
    return bytes([_BROADCAST, *map(len, fields)]) + b"".join(fields)


def encode_client(message: SocketMessage) -> bytes | str:
    """Encode a client's message as phoenix.js does.

    Raises:
        FrameError: if a field of a binary message is longer than 255 bytes.
    """
    if not message.binary:
        header = text_header(message.join_ref, message.ref, message.topic, message.event)
        return (header + message.payload + b"]").decode()
    fields = [(field or "").encode() for field in message[:4]]
    _check_lengths(fields)
    return bytes([_PUSH, *map(len, fields)]) + b"".join(fields) + message.payload


def _check_lengths(fields: list[bytes]) -> None:
    for field in fields:
        if len(field) > MAX_FIELD:
            raise FrameError(f"a field of a binary frame is {len(field)} bytes, expected at most {MAX_FIELD}")


def is_document(payload: bytes) -> bool:
    """Return whether a payload is one JSON object or array that all browsers read alike.

    All other payloads are delivered as bytes: scalars, leading blanks, a byte-order mark, text after the
    document, NaN, bad UTF-8, lone surrogates, a number beyond a double, nesting deeper than ``MAX_DEPTH``.
    """
    if payload[:1] not in (b"{", b"["):
        return False
    try:
        _decode_any(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    if len(payload) <= MAX_DEPTH:
        return True
    return not _is_deep(payload) and not _overflows(payload)


def _is_deep(payload: bytes) -> bool:
    # Each round removes all innermost brackets at once, that is one level of nesting.
    if payload.count(b"[") + payload.count(b"{") <= MAX_DEPTH:
        return False
    brackets = _STRINGS.sub(b"", payload).translate(None, _NOT_BRACKETS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if not brackets:
            return False
    return True


def _overflows(payload: bytes) -> bool:
    # msgspec checks floats, but accepts integers of any number of digits.
    if _MANY_DIGITS not in payload.translate(_ALL_DIGITS_ZERO):
        return False
    numbers: list[float] = []

    def note(literal: str) -> float:
        number = float(literal)
        numbers.append(number)
        return number

    json.loads(payload, parse_int=note)
    return any(number in (float("inf"), float("-inf")) for number in numbers)


def without_token(payload: bytes) -> bytes:
    """Return the payload of a join without its ``token``; other payloads are unchanged."""
    if not payload.lstrip().startswith(b"{"):
        return payload
    fields: Mapping[str, msgspec.Raw] = _decode_object(payload)
    if "token" not in fields:
        return payload
    return _encode_any({name: value for name, value in fields.items() if name != "token"})
