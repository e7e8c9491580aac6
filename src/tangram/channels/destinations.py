"""Destinations of messages: the topic of a Redis channel, and the headers of its messages.

1. A destination is found once for each Redis channel, and remembered by the hub.
2. A channel whose messages are kept in a history has a destination without a topic, which holds the real one:
   the hub's loop stops there, and pays nothing for it at any other channel.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import attrs

from tangram.channels.catchup import Form
from tangram.channels.frames import MAX_FIELD, PRESENCE_DIFF
from tangram.channels.membership import Membership
from tangram.channels.outbox import Outbox
from tangram.channels.serializers import BroadcastHeader

__all__ = ["COMMAND", "NO_MEMBERS", "POSITIONS", "WHO", "Destination", "Pending", "Topic"]

_MAX_HEADERS: Final = 4096
"""Forms remembered for a Redis channel; there is one for each ``join_ref`` if broadcasts must have it."""

Pending: TypeAlias = "tuple[Destination, bytes, bool]"
"""A message from Redis: its destination, its payload, and whether that is a JSON object or array."""


@attrs.define(eq=False)
class Topic:
    """A topic with members."""

    name: str
    followers: int = 0
    """Members that asked for positions."""
    members: dict[str, Membership] = attrs.Factory(dict)
    groups: dict[Form, list[Outbox]] | None = None
    """The outboxes of the members by form; None after a change."""
    unfinished: int = 0
    """Messages of presence that not all members have got yet (``slices``)."""
    messages: int = 0
    deliveries: int = 0
    sent_bytes: int = 0


class Destination:
    """The topic of a Redis channel, and the headers of its messages for each form."""

    __slots__ = ("alone", "binary", "event", "headers", "kept", "key", "reserved", "topic")

    def __init__(
        self, topic: Topic | None, event: str = "", key: str | None = None, kept: Destination | None = None
    ) -> None:
        self.topic = topic
        self.kept = kept
        """The real destination if the messages are kept in a history; ``topic`` is then None."""
        self.event = event
        self.key = key
        self.alone = key is not None or event == PRESENCE_DIFF
        """Whether its messages are put one by one, and not as a run."""
        self.reserved = event.startswith("phx_")
        self.binary = len(event.encode()) <= MAX_FIELD
        """Whether the event fits into a binary frame."""
        self.headers: dict[Form, BroadcastHeader] = {}

    def header(self, form: Form) -> BroadcastHeader:
        """Return the header for a form, and remember it."""
        assert self.topic is not None
        if len(self.headers) >= _MAX_HEADERS:
            self.headers.clear()
        serializer, join_ref, _ = form
        header = serializer.broadcast_header(self.topic.name, self.event, join_ref)
        self.headers[form] = header
        return header


NO_MEMBERS: Final = Destination(None)
"""Of channels whose topics have no members, and of names that denote no topic."""
COMMAND: Final = Destination(None)
"""Of channels with commands."""
POSITIONS: Final = Destination(None)
"""Of positions, which the feed of histories puts into a batch."""
WHO: Final = Destination(None)
"""Of stamps of presence on several nodes."""
