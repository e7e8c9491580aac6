"""Phoenix' V2 serializer: messages to bytes and back.

1. What must live here: the layout of text and binary frames, and the rule that tells a JSON payload from a
   binary one. Nothing here knows sockets, topics' members, or time.
2. Anything that a peer can send raises ``FrameError`` or decodes. RecursionError is an answer to bytes too.
3. JSON is validated by decoding it whole, then the original bytes are sent on. ``msgspec.Raw`` alone would
   let bad UTF-8 and ``1e400`` pass, which breaks ``JSON.parse`` at somebody else's browser.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

import msgspec

from tangram.channels.frames import MAX_FIELD, REPLY, TEXT, Encoded, FrameError, Message

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
"""Nesting of a document that is still delivered as JSON; deeper ones arrive as bytes."""

_DIGITS: Final = 309
"""Digits of the largest double. An integer written with fewer cannot overflow one."""
_ALL_DIGITS_ZERO: Final = bytes(0x30 if 0x30 <= byte <= 0x39 else byte for byte in range(256))
_MANY_DIGITS: Final = b"0" * _DIGITS
_STRINGS: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NOT_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")

_ACKNOWLEDGED: Final = b',"%b",{"status":"ok","response":{}}]' % REPLY.encode()
_new: Final = tuple.__new__
"""What a NamedTuple's own constructor calls, without its way there: half the time, at each frame."""

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
    """Compact JSON; the input is ours, so it does not fail."""
    return _encode_any(value)


def decode(opcode: int, data: bytes | str) -> Message:
    """One frame of a client; raises FrameError and nothing else."""
    if opcode == TEXT:
        return decode_text(data)
    if isinstance(data, str):
        raise FrameError("a binary frame is bytes")
    return decode_binary(data)


def decode_text(data: bytes | str) -> Message:
    """``[join_ref, ref, topic, event, payload]``; raises FrameError."""
    try:
        it = _decode_envelope(data)
        payload = bytes(it.payload)
        _decode_any(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FrameError(f"not a message: {error}") from error
    return _new(Message, (it.join_ref, it.ref, it.topic, it.event, payload, False))


def decode_binary(data: bytes) -> Message:
    """A client's push: ``00 J R T E``, the four fields, the payload; raises FrameError."""
    if len(data) < 5 or data[0] != _PUSH:
        raise FrameError(f"not a push of a client: kind {data[0] if data else None!r}, {len(data)} bytes")
    (join_ref, ref, topic, event), payload = _fields(data, 1, 4)
    return Message(join_ref or None, ref or None, topic, event, payload, binary=True)


def decode_server(opcode: int, data: bytes | str) -> Message:
    """One frame of a server, as a client reads it; raises FrameError.

    The binary kinds: push ``00 J T E``, reply ``01 J R T S`` (``event`` is then the status), broadcast ``02
    T E``.
    """
    if opcode == TEXT:
        return decode_text(data)
    if isinstance(data, str) or not data:
        raise FrameError("an empty frame")
    if data[0] == _PUSH:
        (join_ref, topic, event), payload = _fields(data, 1, 3)
        return Message(join_ref or None, None, topic, event, payload, binary=True)
    if data[0] == _ANSWER:
        (join_ref, ref, topic, status), payload = _fields(data, 1, 4)
        return Message(join_ref or None, ref or None, topic, status, payload, binary=True)
    if data[0] == _BROADCAST:
        (topic, event), payload = _fields(data, 1, 2)
        return Message(None, None, topic, event, payload, binary=True)
    raise FrameError(f"unknown kind {data[0]!r}")


def _fields(data: bytes, start: int, count: int) -> tuple[list[str], bytes]:
    """``count`` lengths of one byte each from ``start`` on, then the fields; and what is left."""
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
    """Everything of a text frame before its payload."""
    return _encode_any((join_ref, ref, topic, event))[:-1] + b","


def encode_text(join_ref: str | None, ref: str | None, topic: str, event: str, payload: bytes) -> Encoded:
    """A text frame; ``payload`` is JSON text already."""
    return Encoded(TEXT, _encode_any((join_ref, ref, topic, event, msgspec.Raw(payload))))


class Answerable(Protocol):
    """Whoever may be answered; a message is, and so is what is kept of one."""

    @property
    def join_ref(self) -> str | None: ...
    @property
    def ref(self) -> str | None: ...
    @property
    def topic(self) -> str: ...


def encode_acknowledgements(replies: Iterable[Answerable | None]) -> list[bytes]:
    """The texts by which pushes are answered once they are done, ``ok`` and nothing else; none for None, and
    none where there is no ``ref``.
    """
    texts: list[bytes] = []
    join_ref: str | None = None
    topic: str | None = None
    head = tail = b""
    for to in replies:
        if to is None or (ref := to.ref) is None:
            continue
        if topic != to.topic or join_ref != to.join_ref:
            # Those of one read nearly always agree in these two.
            join_ref, topic = to.join_ref, to.topic
            head, tail = _encode_any((join_ref,))[:-1], _encode_any(topic) + _ACKNOWLEDGED
        texts.append(b"%b,%b,%b" % (head, _encode_any(ref), tail))
    return texts


def encode_binary_broadcast(topic: str, event: str) -> bytes:
    """Everything of a binary broadcast (``02 T E``) before its payload; raises FrameError on a long field."""
    fields = [topic.encode(), event.encode()]
    _check_lengths(fields)
    return bytes([_BROADCAST, *map(len, fields)]) + b"".join(fields)


def encode_client(message: Message) -> bytes | str:
    """A client's message as phoenix.js writes it; raises FrameError on a field longer than 255 bytes."""
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
    """Is it one JSON object or array that every browser reads alike? Else it travels as bytes.

    Not one: scalars, leading blanks, a byte-order mark, text after the document, NaN, bad UTF-8, lone
    surrogates, a number beyond a double, nesting deeper than ``MAX_DEPTH``.
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
    # Taking the innermost brackets away, all at once, costs one level; what is left after MAX_DEPTH was
    # deeper.
    if payload.count(b"[") + payload.count(b"{") <= MAX_DEPTH:
        return False
    brackets = _STRINGS.sub(b"", payload).translate(None, _NOT_BRACKETS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if not brackets:
            return False
    return True


def _overflows(payload: bytes) -> bool:
    # msgspec checks floats, but an integer may have any number of digits.
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
    """The payload of a join as it may be published: an object loses its ``token``, all else stays as it
    is.
    """
    if not payload.lstrip().startswith(b"{"):
        return payload
    fields: Mapping[str, msgspec.Raw] = _decode_object(payload)
    if "token" not in fields:
        return payload
    return _encode_any({name: value for name, value in fields.items() if name != "token"})
