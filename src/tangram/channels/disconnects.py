"""Every way in which a connection, a join or a push ends badly: who erred, and should the client come back.

1. A close code or an error reason that goes over the wire is a value of this module, never a literal
   elsewhere.
2. The server never closes with 1000: phoenix.js before 1.8.10 takes that for "do not come back".
3. ``retry`` says what the client should do. A refused join whose retry is hopeless is followed by
   ``phx_close``, because phoenix.js would otherwise ask again with the same token for ever.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

__all__ = [
    "ABUSE",
    "BAD_EVENT",
    "BUSY",
    "COLON_IN_EVENT",
    "CRASH",
    "DISCONNECTED",
    "EVENT_TOO_LONG",
    "GONE",
    "IDLE",
    "ID_TOO_LONG",
    "LIMITED",
    "NOT_OPERATOR",
    "NOT_YOUR_STREAM",
    "ORIGIN",
    "OVERLOAD",
    "REF_TOO_LONG",
    "RESTART",
    "SHUTDOWN",
    "TOKEN_EXPIRED",
    "TOO_BIG",
    "TOO_MANY_JOINS",
    "TOPIC_TOO_LONG",
    "TWO_TOKENS",
    "UNAUTHORIZED",
    "UNAVAILABLE",
    "UNMATCHED_TOPIC",
    "VERSION",
    "WRONG_CHANNEL",
    "Disconnect",
    "Refusal",
    "Who",
    "refused_by",
]


class Who(Enum):
    """Who erred."""

    SERVER = "server"
    CLIENT = "client"
    NETWORK = "network"
    POLICY = "policy"


class Disconnect(NamedTuple):
    """A WebSocket's end, as the server tells it."""

    code: int
    """Close code of RFC 6455, section 7.4, and the IANA registry."""
    reason: str
    """Goes into the close frame: at most 123 bytes."""
    who: Who
    retry: bool
    """Should the client come back?"""


class Refusal(NamedTuple):
    """An error reply to a join or a push, and the status of the same answer on HTTP."""

    reason: str
    """``response.reason`` of the reply."""
    status: int
    who: Who
    retry: bool
    """False: asking again with the same token cannot help."""


RESTART = Disconnect(1012, "restart", Who.SERVER, retry=True)
SHUTDOWN = Disconnect(1001, "shutdown", Who.SERVER, retry=True)
CRASH = Disconnect(1011, "internal error", Who.SERVER, retry=True)
OVERLOAD = Disconnect(1013, "too far behind", Who.CLIENT, retry=True)
IDLE = Disconnect(1001, "idle", Who.NETWORK, retry=True)
DISCONNECTED = Disconnect(1008, "disconnected", Who.POLICY, retry=True)
"""A plugin asked for it. The client comes back, and is judged anew."""
ABUSE = Disconnect(1007, "too many malformed frames", Who.CLIENT, retry=False)
TOO_BIG = Disconnect(1009, "message too big", Who.CLIENT, retry=False)
GONE = Disconnect(1001, "gone", Who.NETWORK, retry=True)
"""The peer went by itself: nothing can be sent any more. Only in records."""

UNAUTHORIZED = Refusal("unauthorized", 403, Who.CLIENT, retry=False)
TOKEN_EXPIRED = Refusal("token expired", 403, Who.CLIENT, retry=False)
WRONG_CHANNEL = Refusal("wrong channel", 403, Who.CLIENT, retry=False)
NOT_OPERATOR = Refusal("operator only", 403, Who.POLICY, retry=False)
NOT_YOUR_STREAM = Refusal("wrong id for this stream", 403, Who.POLICY, retry=False)
ORIGIN = Refusal("origin not allowed", 403, Who.POLICY, retry=False)
VERSION = Refusal("unsupported protocol version, expected vsn=2.0.0", 403, Who.CLIENT, retry=False)
TOPIC_TOO_LONG = Refusal("topic too long", 422, Who.CLIENT, retry=False)
ID_TOO_LONG = Refusal("id too long", 422, Who.CLIENT, retry=False)
REF_TOO_LONG = Refusal("ref too long", 422, Who.CLIENT, retry=False)
TWO_TOKENS = Refusal("userToken given more than once", 400, Who.CLIENT, retry=False)
LIMITED = Refusal("rate limited", 429, Who.CLIENT, retry=True)
TOO_MANY_JOINS = Refusal("too many channels", 429, Who.CLIENT, retry=True)
BUSY = Refusal("busy", 503, Who.SERVER, retry=True)
UNAVAILABLE = Refusal("unavailable", 503, Who.SERVER, retry=True)
UNMATCHED_TOPIC = Refusal("unmatched topic", 400, Who.CLIENT, retry=False)
EVENT_TOO_LONG = Refusal("event too long", 400, Who.CLIENT, retry=False)
BAD_EVENT = Refusal("reserved event", 400, Who.CLIENT, retry=False)
COLON_IN_EVENT = Refusal("colon in event", 400, Who.CLIENT, retry=False)
"""On Redis it would be an event of another topic, which the client may have no right to speak for."""


def refused_by(reason: str) -> Refusal:
    """A plugin's ``authorize`` said no: its reason goes to the client, and a retry would hear the same."""
    return Refusal(reason, 403, Who.POLICY, retry=False)
