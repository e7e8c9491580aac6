"""Phoenix' V2 serializer: messages to bytes and back.

1. This module owns the layout of text and binary frames, and the rule that tells a JSON payload from a
   binary one. It knows neither sockets nor members nor time.
2. Any bytes of a peer either decode or raise ``FrameError``; RecursionError is translated too.
3. A payload is checked by ``json_text`` and never made into objects; the original bytes are sent on.
   ``msgspec.Raw`` alone would let bad UTF-8 and ``1e400`` pass, which break ``JSON.parse`` in browsers.
4. Frames above ``MAX_AT_ONCE`` are read in two steps, so that no frame holds the event loop: first
   ``decode_large``, then the payload by ``json_text.check_slices``, if the message is wanted at all. Their
   bytes come in pieces, and the payload stays in pieces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

import msgspec

from tangram.channels.frames import MAX_FIELD, REPLY, TEXT, Encoded, FrameError, ReplyTo, SocketMessage
from tangram.channels.json_text import SHALLOW, is_sound
from tangram.pieces import LARGE, Pieces

__all__ = [
    "MAX_AT_ONCE",
    "UNSOUND",
    "decode",
    "decode_binary",
    "decode_large",
    "decode_server",
    "decode_text",
    "encode_acknowledgements",
    "encode_binary_broadcast",
    "encode_binary_push",
    "encode_client",
    "encode_json",
    "encode_text",
    "text_header",
    "without_token",
]

MAX_AT_ONCE: Final = LARGE
"""Bytes of a frame that is checked at once, which takes less than 10 ms for any payload."""
_MAX_HEADER: Final = 8192
"""Bytes within which the payload of a large frame begins: its four fields, escaped, fit in."""
_MAX_END: Final = 4096
"""Bytes at the end of a large frame in which blanks may stand: no client sends so many."""
_MAX_BINARY_HEADER: Final = 5 + 4 * MAX_FIELD
_FIELD: Final = rb'"(?:[^"\\]|\\.){0,1600}"'
_HEADER: Final = re.compile(
    rb"\s*\[\s*(null|%b)\s*,\s*(null|%b)\s*,\s*(%b)\s*,\s*(%b)\s*,\s*" % (_FIELD, _FIELD, _FIELD, _FIELD)
)
_MALFORMED_HEADER: Final = re.compile(
    rb"\s*\[\s*(null|-?\d{1,15}|%b)\s*,\s*(-?\d{1,15}|%b)\s*,\s*(%b)" % (_FIELD, _FIELD, _FIELD)
)
UNSOUND: Final = "the payload has bad UTF-8, a number beyond a double, or more than 128 levels"
"""The error of a payload that is JSON, and that not all parsers read."""
_BLANKS: Final = b" \t\r\n"
_LARGE: Final = "a large frame must be [join_ref, ref, topic, event, payload] and nothing else"

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
_decode_field: Final = msgspec.json.Decoder(str | None).decode
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
        if len(payload) <= SHALLOW:
            # Nearly all pushes are as small as this.
            _decode_any(payload)
            return _new(SocketMessage, (it.join_ref, it.ref, it.topic, it.event, payload, False))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FrameError(f"not a message: {error}", _reply_to(data)) from error
    if not is_sound(payload):
        reply_to = None if it.ref is None else ReplyTo(it.join_ref, it.ref, it.topic)
        raise FrameError(UNSOUND, reply_to)
    return _new(SocketMessage, (it.join_ref, it.ref, it.topic, it.event, payload, False))


def decode_large(opcode: int, data: Pieces) -> tuple[SocketMessage, Pieces]:
    """Decode a large frame, but for its payload; raises FrameError.

    A payload of text is not checked. Elements after it are not allowed here.

    Returns:
        The message without its payload, and the payload.
    """
    if opcode != TEXT:
        head = data[:_MAX_BINARY_HEADER]
        message = decode_binary(head)
        return message._replace(payload=b""), data.cut(len(head) - len(message.payload), len(data))
    head = data[:_MAX_HEADER]
    match = _HEADER.match(head)
    if match is None:
        raise FrameError(_LARGE, _reply_to(head))
    try:
        fields = [_decode_field(field) for field in match.groups()]
    except (msgspec.MsgspecError, ValueError) as error:
        raise FrameError(f"not a message: {error}", _reply_to(head)) from error
    join_ref, ref, topic, event = fields
    assert topic is not None
    assert event is not None
    message = SocketMessage(join_ref, ref, topic, event, b"")
    reply_to = None if ref is None else ReplyTo(join_ref, ref, topic)
    return message, data.cut(match.end(), _end_of_payload(data, match.end(), reply_to))


def _end_of_payload(data: Pieces, start: int, reply_to: ReplyTo | None) -> int:
    """Return the place behind the payload of a large text frame; raises FrameError."""
    tail = data[max(start, len(data) - _MAX_END) :]
    frame = tail.rstrip(_BLANKS)
    if frame[-1:] != b"]":
        raise FrameError(_LARGE, reply_to)
    return len(data) - len(tail) + len(frame[:-1].rstrip(_BLANKS))


def _reply_to(data: bytes | str) -> ReplyTo | None:
    """Find the fields for an error reply in a malformed text frame."""
    head = data[:_MAX_HEADER].encode(errors="replace") if isinstance(data, str) else data[:_MAX_HEADER]
    match = _MALFORMED_HEADER.match(head)
    if match is None:
        return None
    try:
        join_ref, ref, topic = (msgspec.json.decode(field) for field in match.groups())
    except (msgspec.MsgspecError, ValueError):
        return None
    return ReplyTo(join_ref if isinstance(join_ref, str) else None, ref, topic)


def decode_binary(data: bytes) -> SocketMessage:
    """Decode a client's push: ``00 J R T E``, the four fields, the payload; raises FrameError."""
    if len(data) < 5 or data[0] != _PUSH:
        raise FrameError(f"not a push of a client: kind {data[0] if data else None!r}, {len(data)} bytes")
    try:
        (join_ref, ref, topic, event), payload = _fields(data, 1, 4)
    except FrameError as error:
        error.reply_to = _binary_reply_to(data)
        raise
    return SocketMessage(join_ref or None, ref or None, topic, event, payload, binary=True)


def _binary_reply_to(data: bytes) -> ReplyTo | None:
    """Find the fields for an error reply in a truncated push."""
    try:
        (join_ref, ref, topic), _ = _fields(data[:4] + data[5:], 1, 3)
    except FrameError:
        return None
    return ReplyTo(join_ref or None, ref, topic) if ref else None


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


def encode_text(
    join_ref: str | None, ref: str | int | None, topic: str, event: str, payload: bytes
) -> Encoded:
    """Return a text frame whose ``payload`` is JSON text already."""
    return Encoded(TEXT, _encode_any((join_ref, ref, topic, event, msgspec.Raw(payload))))


class Answerable(Protocol):
    """The fields of a message that its reply needs."""

    @property
    def join_ref(self) -> str | None: ...
    @property
    def ref(self) -> str | int | None: ...
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


def encode_binary_push(join_ref: str, topic: str, event: str) -> bytes:
    """Return the part of a server's binary push (``00 J T E``) before its payload.

    Raises:
        FrameError: if a field is longer than 255 bytes.
    """
    fields = [join_ref.encode(), topic.encode(), event.encode()]
    _check_lengths(fields)
    return bytes([_PUSH, *map(len, fields)]) + b"".join(fields)


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


def without_token(payload: bytes) -> bytes:
    """Return the payload of a join without its ``token``; other payloads are unchanged."""
    if not payload.lstrip().startswith(b"{"):
        return payload
    fields: Mapping[str, msgspec.Raw] = _decode_object(payload)
    if "token" not in fields:
        return payload
    return _encode_any({name: value for name, value in fields.items() if name != "token"})
