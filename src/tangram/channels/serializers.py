"""The serializers of Phoenix: V2 (arrays and binary frames) and V1 (JSON objects).

A client chooses by ``vsn``. A message for a topic is encoded once for each serializer that a member speaks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from tangram.channels import codec
from tangram.channels.codec import Answerable
from tangram.channels.frames import (
    BINARY,
    MAX_FIELD,
    REPLY,
    TEXT,
    Encoded,
    FrameError,
    ReplyTo,
    SocketMessage,
)
from tangram.channels.json_text import is_sound
from tangram.pieces import Pieces

__all__ = ["V1", "V2", "V2_TEXT", "BroadcastHeader", "Serializer"]

MAX_OBJECT: Final = codec.MAX_AT_ONCE
"""Bytes of a frame of V1, whose fields may be in any order: its header cannot be read before the payload."""


class BroadcastHeader(NamedTuple):
    """The parts of a broadcast's frame around its payload, for one topic and event."""

    text: bytes
    """Before a JSON payload."""
    tail: bytes
    """After a JSON payload."""
    binary: bytes | None
    """Before a binary payload; None if there are no binary frames, or a field is too long."""
    strings: bool
    """Whether another payload than an object or array is sent as a JSON string, if it is UTF-8."""

    def encode(self, payload: bytes, key: str | None, *, document: bool) -> Encoded | None:
        """Return the message of a payload; None if it cannot be encoded.

        Args:
            payload: the payload from Redis.
            key: as of ``Encoded``.
            document: whether the payload is a JSON object or array.
        """
        if document:
            return Encoded(TEXT, self.text, payload, self.tail, key=key)
        if self.binary is not None:
            return Encoded(BINARY, self.binary, payload, key=key)
        if not self.strings:
            return None
        try:
            text = payload.decode()
        except UnicodeDecodeError:
            return None
        return Encoded(TEXT, self.text, codec.encode_json(text), self.tail, key=key)


class Serializer(ABC):
    """Encode and decode the frames of one protocol version."""

    join_refs: bool = True
    """Whether clients send the ``join_ref`` with each frame."""

    @abstractmethod
    def decode(self, opcode: int, data: bytes | str) -> SocketMessage:
        """Decode one frame of a client; raises FrameError."""

    @abstractmethod
    def decode_large(self, opcode: int, data: Pieces) -> tuple[SocketMessage, Pieces]:
        """Decode a frame above ``MAX_AT_ONCE`` and cut its payload out; raises FrameError."""

    @abstractmethod
    def encode_text(
        self, join_ref: str | None, ref: str | int | None, topic: str, event: str, payload: bytes
    ) -> Encoded:
        """Return a text frame whose ``payload`` is JSON text already."""

    @abstractmethod
    def encode_acknowledgements(self, replies: Sequence[Answerable | None]) -> list[bytes]:
        """Return the ``ok`` replies to pushes; None and pushes without a ``ref`` get no reply."""

    @abstractmethod
    def broadcast_header(self, topic: str, event: str, join_ref: str | None) -> BroadcastHeader:
        """Return the header of a broadcast; ``join_ref`` is that of its receivers, or None."""


class _V2(Serializer):
    """``[join_ref, ref, topic, event, payload]``, and binary frames."""

    decode = staticmethod(codec.decode)
    decode_large = staticmethod(codec.decode_large)
    encode_text = staticmethod(codec.encode_text)
    encode_acknowledgements = staticmethod(codec.encode_acknowledgements)

    def broadcast_header(self, topic: str, event: str, join_ref: str | None) -> BroadcastHeader:
        binary = None
        if len(event.encode()) <= MAX_FIELD:
            if join_ref is None:
                binary = codec.encode_binary_broadcast(topic, event)
            else:
                binary = codec.encode_binary_push(join_ref, topic, event)
        return BroadcastHeader(codec.text_header(join_ref, None, topic, event), b"]", binary, strings=False)


class _V2Text(_V2):
    """V2 for a transport without binary messages to clients."""

    def broadcast_header(self, topic: str, event: str, join_ref: str | None) -> BroadcastHeader:
        header = super().broadcast_header(topic, event, join_ref)
        return header._replace(binary=None, strings=True)


class _Object(msgspec.Struct):
    topic: str
    event: str
    payload: msgspec.Raw
    ref: str | None = None
    join_ref: str | None = None


class _Reply(msgspec.Struct):
    ref: str | int | None = None
    topic: str | None = None


_decode_object: Final = msgspec.json.Decoder(_Object).decode
_decode_reply: Final = msgspec.json.Decoder(_Reply).decode


class _V1(Serializer):
    """``{"topic", "event", "payload", "ref"}``, without binary frames."""

    join_refs = False

    def decode(self, opcode: int, data: bytes | str) -> SocketMessage:
        if opcode != TEXT:
            raise FrameError("a binary frame, which vsn=1.0.0 does not have")
        if len(data) > MAX_OBJECT:
            raise _too_large(len(data))
        try:
            it = _decode_object(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise FrameError(f"not a message: {error}", _object_reply_to(data)) from error
        payload = bytes(it.payload)
        if not is_sound(payload):
            reply_to = None if it.ref is None else ReplyTo(it.join_ref, it.ref, it.topic)
            raise FrameError(codec.UNSOUND, reply_to)
        return SocketMessage(it.join_ref, it.ref, it.topic, it.event, payload)

    def decode_large(self, opcode: int, data: Pieces) -> tuple[SocketMessage, Pieces]:  # noqa: ARG002 - of any kind
        raise _too_large(len(data))

    def encode_text(
        self, join_ref: str | None, ref: str | int | None, topic: str, event: str, payload: bytes
    ) -> Encoded:
        message: dict[str, object] = {
            "event": event,
            "payload": msgspec.Raw(payload),
            "ref": ref,
            "topic": topic,
        }
        if join_ref is not None:
            message["join_ref"] = join_ref
        return Encoded(TEXT, codec.encode_json(message))

    def encode_acknowledgements(self, replies: Sequence[Answerable | None]) -> list[bytes]:
        return [
            self.encode_text(to.join_ref, to.ref, to.topic, REPLY, b'{"status":"ok","response":{}}').data
            for to in replies
            if to is not None and to.ref is not None
        ]

    def broadcast_header(self, topic: str, event: str, join_ref: str | None) -> BroadcastHeader:
        rest: dict[str, object] = {"ref": None, "topic": topic}
        if join_ref is not None:
            rest["join_ref"] = join_ref
        text = b'{"event":%b,"payload":' % codec.encode_json(event)
        return BroadcastHeader(text, b"," + codec.encode_json(rest)[1:], None, strings=True)


def _too_large(size: int) -> FrameError:
    return FrameError(f"a frame of {size} bytes, expected at most {MAX_OBJECT} with vsn=1.0.0")


def _object_reply_to(data: bytes | str) -> ReplyTo | None:
    try:
        it = _decode_reply(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return None if it.ref is None or it.topic is None else ReplyTo(None, it.ref, it.topic)


V2: Final[Serializer] = _V2()
V2_TEXT: Final[Serializer] = _V2Text()
V1: Final[Serializer] = _V1()
