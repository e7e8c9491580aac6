"""Phoenix' serializers and the tokens of channels; json and hmac of Python are referees."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import urlsafe_b64decode
from collections.abc import Hashable
from typing import Any

from tangram.channels import codec, tokens
from tangram.channels.disconnects import Refusal
from tangram.channels.frames import BINARY, MAX_FIELD, TEXT, FrameError
from tangram.channels.json_text import check_slices, is_document, is_value
from tangram.channels.serializers import V1, V2
from tangram.pieces import Pieces
from tests.fuzz.pieces import TOO_LARGE, read_json

__all__ = [
    "check_binary",
    "check_document",
    "check_large",
    "check_object",
    "check_text",
    "check_token",
    "check_token_header",
]

SECRET = "a secret that is long enough for this"
NOW = 1_800_000_000.0


def check_text(data: bytes) -> Hashable:
    """A text frame is refused, or an ordinary JSON parser reads the same fields."""
    try:
        message = codec.decode(TEXT, data)
    except FrameError:
        return None
    # Further elements are ignored, also if they are not UTF-8.
    read = read_json(data.decode("utf-8", "replace"))
    if read is not TOO_LARGE:
        assert read[:4] == list(message[:4])
        assert _same(read[4], json.loads(message.payload))
    assert codec.decode(TEXT, codec.encode_client(message)) == message
    codec.without_token(message.payload)
    return message.join_ref is None, message.ref is None, message.payload[:1], len(data).bit_length()


def _same(left: Any, right: Any) -> bool:
    return repr(left) == repr(right)  # NaN is not equal to itself


def check_object(data: bytes) -> Hashable:
    """A frame of V1 is refused, or an ordinary JSON parser reads the same fields."""
    try:
        message = V1.decode(TEXT, data)
    except FrameError as error:
        return str(error)[:24]
    # A repeated key: the last one counts for both.
    read = read_json(data.decode("utf-8", "replace"))
    if read is not TOO_LARGE:
        assert [read.get(key) for key in ("join_ref", "ref", "topic", "event")] == list(message[:4])
        assert _same(read["payload"], json.loads(message.payload))
    again = V1.encode_text(message.join_ref, message.ref, message.topic, message.event, message.payload)
    assert V1.decode(TEXT, again.data) == message
    whole = is_document(message.payload)
    # Longer topics and refs are refused at the join.
    short = all(len((field or "").encode()) <= MAX_FIELD for field in message[:4])
    for serializer in (V1, V2) if short else ():
        header = serializer.broadcast_header(message.topic, message.event, message.join_ref)
        sent = header.encode(message.payload, None, document=whole)
        if sent is not None and sent.opcode == TEXT:
            received = serializer.decode(TEXT, sent.data)
            assert received[2:4] == message[2:4]
            assert not whole or received.payload == message.payload
    return message.join_ref is None, message.ref is None, message.payload[:1], len(data).bit_length()


def check_binary(data: bytes) -> Hashable:
    """A binary frame is refused, or encodes to the same bytes again."""
    try:
        message = codec.decode(BINARY, data)
        assert codec.encode_client(message) == data
        ours: Hashable = tuple(field is None for field in message[:2])
    except FrameError as error:
        ours = str(error)[:12]
    try:
        received = codec.decode_server(BINARY, data)
    except FrameError as error:
        return ours, str(error)[:12]
    if data[0] == 2:
        head = codec.encode_binary_broadcast(received.topic, received.event)
        assert head + received.payload == data
    return ours, data[0]


def check_document(data: bytes) -> Hashable:
    """A payload that is delivered as JSON is read by an ordinary parser.

    It has no infinite number.
    """
    # So small slices may have no place to cut: a sound text may be refused, but not the other way round.
    assert not _in_slices(data) or is_value(data)
    if not is_document(data):
        return False, data[:1]
    read = read_json(data)
    if read is TOO_LARGE:
        return True, "digits"
    assert isinstance(read, list | dict)
    json.dumps(read, allow_nan=False)
    return True, type(read), len(data).bit_length()


def _in_slices(data: bytes) -> bool:
    """Check a text in slices of 64 bytes."""
    checking = check_slices(data, 64)
    while True:
        try:
            next(checking)
        except StopIteration as done:
            return bool(done.value)


def check_large(data: bytes) -> Hashable:
    """The header and payload of a large frame are those that the usual decoder finds."""
    try:
        header, pieces = codec.decode_large(TEXT, Pieces([data[:7], data[7:]]))
    except FrameError as error:
        return str(error)[:20]
    payload = bytes(pieces)
    if not is_value(payload):
        return "payload"
    assert codec.decode(TEXT, data) == header._replace(payload=payload)
    return payload[:1], len(payload).bit_length()


def _token(**claims: object) -> bytes:
    header = {"alg": "HS256", "typ": "JWT"}
    from jwt.api_jws import PyJWS

    return PyJWS().encode(json.dumps(claims).encode(), SECRET.encode(), "HS256", header).encode()


class _CheckToken:
    """A token is refused, or its signature is right by Python's own hmac."""

    corpus = (
        _token(id="a", channel="b", exp=int(NOW) + 100),
        _token(id="a", channel="b", exp=1),
        _token(id="a", channel="b", exp=int(NOW) + 100, aud="x"),
        _token(id="a", channel="b"),
        _token(id=1, channel="b", exp="x"),
        b"a.b.c",
        b"",
    )

    def __call__(self, data: bytes) -> Hashable:
        token = data.decode("utf-8", "replace")
        claims = tokens.verify(token, SECRET, NOW)
        if isinstance(claims, Refusal):
            return claims.reason
        signed, _, signature = token.rpartition(".")
        expected = hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).digest()
        assert urlsafe_b64decode(signature + "=" * (-len(signature) % 4)) == expected
        assert claims.exp + tokens.LEEWAY > NOW
        return "accepted"


check_token = _CheckToken()


def check_token_header(data: bytes) -> Hashable:
    """The subprotocol with a token is text or nothing."""
    offered = [part.decode("latin-1") for part in data.split(b",")]
    found = tokens.bearer(offered)
    assert found is None or isinstance(found, str)
    return found is None, found == "" or len(offered)
