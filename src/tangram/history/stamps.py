"""Stamps: messages of the functions on Redis, and of nodes, on ``to:phoenix:at``.

One message has one of these meanings:

| fields | meaning |
|---|---|
| t, e, o | the next message of topic t has offset o in epoch e |
| t, e, o, m | a marker: the reader with nonce m has read topic t up to offset o |
| f, r | recorder number f has recorded: topic, epoch, last offset and number of messages |
| l, n, b | node n is recorder number l from here on; b is 1 if messages may have passed without a recorder |
| h | a node asks to be brought in step with the recorder, by the nonce h |
| s, f, k | recorder f has recorded all messages before h = s; k of those records came after it in the feed |
"""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["Recorded", "Stamp", "hello", "in_step", "parse_stamp"]


class Recorded(msgspec.Struct, array_like=True):
    """The messages of one topic in one step of the recorder."""

    topic: str
    epoch: str
    last: int
    count: int


class Stamp(msgspec.Struct):
    """One message on ``to:phoenix:at``; see the table above."""

    t: str | None = None
    e: str = ""
    o: int = 0
    m: str | None = None
    f: int = 0
    r: list[Recorded] | None = None
    l: int | None = None  # noqa: E741 - the field's name on Redis
    n: str = ""
    b: int = 0
    h: str | None = None
    s: str | None = None
    k: int = 0


_decode: Final = msgspec.json.Decoder(Stamp).decode


def parse_stamp(payload: bytes) -> Stamp | None:
    """Return a stamp, or None for anything else that a program published on the channel."""
    try:
        return _decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def hello(nonce: str) -> bytes:
    """Return the request of a node to be brought in step."""
    return msgspec.json.encode({"h": nonce})


def in_step(nonce: str, number: int, after: int) -> bytes:
    """Return the recorder's answer to ``hello``."""
    return msgspec.json.encode({"s": nonce, "f": number, "k": after})
