"""Close codes of connections, and error reasons of joins and pushes.

1. A close code or an error reason that goes over the wire is a value of this module, never a literal
   elsewhere.
2. The server never closes with 1000: phoenix.js before 1.8.10 does not reconnect after that code.
3. ``retry`` tells whether the client should try again. A refused join whose retry is hopeless is followed by
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
    "Party",
    "Refusal",
    "refused_by",
]


class Party(Enum):
    """The party that is at fault."""

    SERVER = "server"
    CLIENT = "client"
    NETWORK = "network"
    POLICY = "policy"


class Disconnect(NamedTuple):
    """The close code and the reason with which the server ends a WebSocket."""

    code: int
    """Close code of RFC 6455, section 7.4, and the IANA registry."""
    reason: str
    """The text of the close frame: at most 123 bytes."""
    at_fault: Party
    retry: bool
    """Whether the client should reconnect."""


class Refusal(NamedTuple):
    """An error reply to a join or a push, and the HTTP status of the same answer."""

    reason: str
    """``response.reason`` of the reply."""
    status: int
    at_fault: Party
    retry: bool
    """False if asking again with the same token cannot help."""


RESTART = Disconnect(1012, "restart", Party.SERVER, retry=True)
SHUTDOWN = Disconnect(1001, "shutdown", Party.SERVER, retry=True)
CRASH = Disconnect(1011, "internal error", Party.SERVER, retry=True)
OVERLOAD = Disconnect(1013, "too far behind", Party.CLIENT, retry=True)
IDLE = Disconnect(1001, "idle", Party.NETWORK, retry=True)
DISCONNECTED = Disconnect(1008, "disconnected", Party.POLICY, retry=True)
"""A plugin asked for it. The client reconnects, and its joins are checked again."""
ABUSE = Disconnect(1007, "too many malformed frames", Party.CLIENT, retry=False)
TOO_BIG = Disconnect(1009, "message too big", Party.CLIENT, retry=False)
GONE = Disconnect(1001, "gone", Party.NETWORK, retry=True)
"""The peer closed the connection, so that nothing can be sent. Used in statistics only."""

UNAUTHORIZED = Refusal("unauthorized", 403, Party.CLIENT, retry=False)
TOKEN_EXPIRED = Refusal("token expired", 403, Party.CLIENT, retry=False)
WRONG_CHANNEL = Refusal("wrong channel", 403, Party.CLIENT, retry=False)
NOT_OPERATOR = Refusal("operator only", 403, Party.POLICY, retry=False)
NOT_YOUR_STREAM = Refusal("wrong id for this stream", 403, Party.POLICY, retry=False)
ORIGIN = Refusal("origin not allowed", 403, Party.POLICY, retry=False)
VERSION = Refusal("unsupported protocol version, expected vsn=2.0.0", 403, Party.CLIENT, retry=False)
TOPIC_TOO_LONG = Refusal("topic too long", 422, Party.CLIENT, retry=False)
ID_TOO_LONG = Refusal("id too long", 422, Party.CLIENT, retry=False)
REF_TOO_LONG = Refusal("ref too long", 422, Party.CLIENT, retry=False)
TWO_TOKENS = Refusal("userToken given more than once", 400, Party.CLIENT, retry=False)
LIMITED = Refusal("rate limited", 429, Party.CLIENT, retry=True)
TOO_MANY_JOINS = Refusal("too many channels", 429, Party.CLIENT, retry=True)
BUSY = Refusal("busy", 503, Party.SERVER, retry=True)
UNAVAILABLE = Refusal("unavailable", 503, Party.SERVER, retry=True)
UNMATCHED_TOPIC = Refusal("unmatched topic", 400, Party.CLIENT, retry=False)
EVENT_TOO_LONG = Refusal("event too long", 400, Party.CLIENT, retry=False)
BAD_EVENT = Refusal("reserved event", 400, Party.CLIENT, retry=False)
COLON_IN_EVENT = Refusal("colon in event", 400, Party.CLIENT, retry=False)
"""On Redis it would be an event of another topic, for which the client may have no token."""


def refused_by(reason: str) -> Refusal:
    """Return the refusal for a reason of a plugin's ``authorize``; a retry would not help."""
    return Refusal(reason, 403, Party.POLICY, retry=False)
