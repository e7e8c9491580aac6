"""Close codes of connections, and error reasons of joins and pushes.

1. A close code or an error reason that goes over the wire is a value of this module, never a literal
   elsewhere.
2. The server never closes with 1000: phoenix.js before 1.8.10 does not reconnect after that code.
3. ``retry`` tells whether the client should try again. A refused join whose retry is hopeless is followed by
   ``phx_close``, because phoenix.js would otherwise ask again with the same token for ever.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

__all__ = [
    "ABUSE",
    "BAD_EVENT",
    "BUSY",
    "COLON_IN_EVENT",
    "CRASH",
    "DISCONNECTED",
    "EVENT_TOO_LONG",
    "FLOOD",
    "GONE",
    "HANDLER_FAILED",
    "HANDLER_TIMEOUT",
    "IDLE",
    "ID_TOO_LONG",
    "INVALID",
    "LIMITED",
    "MALFORMED",
    "MEMORY",
    "MOVING",
    "NOT_OPERATOR",
    "NOT_YOUR_ID",
    "NOT_YOUR_STREAM",
    "ORIGIN",
    "OVERLOAD",
    "QUARANTINED",
    "REF_TOO_LONG",
    "RESTART",
    "RESTARTING",
    "SHUTDOWN",
    "SLOW_MESSAGE",
    "STOPPED",
    "TOKEN_EXPIRED",
    "TOO_BIG",
    "TOO_LARGE",
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


RESTART: Final = Disconnect(1012, "restart", Party.SERVER, retry=True)
SHUTDOWN: Final = Disconnect(1001, "shutdown", Party.SERVER, retry=True)
CRASH: Final = Disconnect(1011, "internal error", Party.SERVER, retry=True)
OVERLOAD: Final = Disconnect(1013, "too far behind", Party.CLIENT, retry=True)
IDLE: Final = Disconnect(1001, "idle", Party.NETWORK, retry=True)
DISCONNECTED: Final = Disconnect(1008, "disconnected", Party.POLICY, retry=True)
"""A plugin asked for it. The client reconnects, and its joins are checked again."""
ABUSE: Final = Disconnect(1007, "too many malformed frames", Party.CLIENT, retry=False)
FLOOD: Final = Disconnect(1008, "too many small frames", Party.CLIENT, retry=True)
"""Pings or fragments of a few bytes: they cost the client nothing, and the server some work each."""
SLOW_MESSAGE: Final = Disconnect(1008, "message took too long", Party.CLIENT, retry=True)
MEMORY: Final = Disconnect(1013, "too many unfinished messages", Party.SERVER, retry=True)
"""All clients together have passed ``[server] max_pending_bytes``."""
TOO_BIG: Final = Disconnect(1009, "message too big", Party.CLIENT, retry=False)
MOVING: Final = frozenset({RESTART, SHUTDOWN})
"""After these clients connect again at once, perhaps to another node."""
GONE: Final = Disconnect(1001, "gone", Party.NETWORK, retry=True)
"""The peer closed the connection, so that nothing can be sent. Used in statistics only."""

UNAUTHORIZED: Final = Refusal("unauthorized", 403, Party.CLIENT, retry=False)
TOKEN_EXPIRED: Final = Refusal("token expired", 403, Party.CLIENT, retry=False)
WRONG_CHANNEL: Final = Refusal("wrong channel", 403, Party.CLIENT, retry=False)
NOT_OPERATOR: Final = Refusal("operator only", 403, Party.POLICY, retry=False)
NOT_YOUR_ID: Final = Refusal("id of another client", 403, Party.POLICY, retry=False)
"""The id was given to a client before, and the request does not have the proof that came with it."""
NOT_YOUR_STREAM: Final = Refusal("wrong id for this stream", 403, Party.POLICY, retry=False)
ORIGIN: Final = Refusal("origin not allowed", 403, Party.POLICY, retry=False)
VERSION: Final = Refusal(
    "unsupported protocol version, expected vsn=1.0.0 or vsn=2.0.0", 403, Party.CLIENT, retry=False
)
TOPIC_TOO_LONG: Final = Refusal("topic too long", 422, Party.CLIENT, retry=False)
ID_TOO_LONG: Final = Refusal("id too long", 422, Party.CLIENT, retry=False)
REF_TOO_LONG: Final = Refusal("ref too long", 422, Party.CLIENT, retry=False)
TWO_TOKENS: Final = Refusal("userToken given more than once", 400, Party.CLIENT, retry=False)
LIMITED: Final = Refusal("rate limited", 429, Party.CLIENT, retry=True)
TOO_MANY_JOINS: Final = Refusal("too many channels", 429, Party.CLIENT, retry=True)
BUSY: Final = Refusal("busy", 503, Party.SERVER, retry=True)
UNAVAILABLE: Final = Refusal("unavailable", 503, Party.SERVER, retry=True)
MALFORMED: Final = Refusal("malformed frame", 400, Party.CLIENT, retry=False)
TOO_LARGE: Final = Refusal("frame too large", 413, Party.CLIENT, retry=False)
"""Only pushes to joined topics may be larger than ``codec.MAX_AT_ONCE``."""
UNMATCHED_TOPIC: Final = Refusal("unmatched topic", 400, Party.CLIENT, retry=False)
EVENT_TOO_LONG: Final = Refusal("event too long", 400, Party.CLIENT, retry=False)
BAD_EVENT: Final = Refusal("reserved event", 400, Party.CLIENT, retry=False)
COLON_IN_EVENT: Final = Refusal("colon in event", 400, Party.CLIENT, retry=False)
"""On Redis it would be an event of another topic, for which the client may have no token."""

INVALID: Final = Refusal("invalid payload", 422, Party.CLIENT, retry=False)
"""The payload of a push does not fit the declared type; the reply lists every fault."""
HANDLER_FAILED: Final = Refusal("handler failed", 500, Party.SERVER, retry=True)
HANDLER_TIMEOUT: Final = Refusal("timeout", 504, Party.SERVER, retry=True)
RESTARTING: Final = Refusal("restarting", 503, Party.SERVER, retry=True)
"""The plugin of a push's handler is being restarted, or runs on no node at the moment."""
QUARANTINED: Final = Refusal("quarantined", 503, Party.SERVER, retry=True)
"""The plugin of a push's handler crashed too often, or did not start; it waits for the operator."""
STOPPED: Final = Refusal("stopped", 503, Party.SERVER, retry=True)
"""The operator has stopped the plugin of a push's handler."""


def refused_by(reason: str) -> Refusal:
    """Return the refusal for a reason of a plugin's ``authorize``; a retry would not help."""
    return Refusal(str(reason), 403, Party.POLICY, retry=False)
