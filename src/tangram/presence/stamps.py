"""Stamps of presence: messages of the functions on Redis on ``to:phoenix:who``.

One message has one of these meanings:

| fields | meaning |
|---|---|
| t, s, p, v, c, k, d, x | topic t has changed from version p to v and has c members now, by session s |
| t, m | a marker: the answer with the nonce m has all changes of topic t before it |
| e, n | session e of node n has ended as planned |

``k`` is 1 while a topic shows the number of its members and not their list. ``d`` is 1 if the difference
follows, on the topic's own channel. ``x`` is 1 if another node has removed members of session s, because it
took it for dead.
"""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["WHO", "PresenceStamp", "parse_stamp"]

WHO: Final = b"to:phoenix:who"
"""The channel of the stamps of presence."""


class PresenceStamp(msgspec.Struct, frozen=True):
    """One message on ``to:phoenix:who``; see the table above."""

    t: str = ""
    s: str = ""
    p: int = 0
    v: int = 0
    c: int = 0
    k: int = 0
    d: int = 0
    x: int = 0
    m: str | None = None
    e: str | None = None
    n: str = ""


_decode: Final = msgspec.json.Decoder(PresenceStamp).decode


def parse_stamp(payload: bytes) -> PresenceStamp | None:
    """Return a stamp, or None for anything else that a program published on the channel."""
    try:
        return _decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
