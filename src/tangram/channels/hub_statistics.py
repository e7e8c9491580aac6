"""The numbers of a hub and of its topics."""

from __future__ import annotations

import attrs

__all__ = ["HubStatistics", "TopicStatistics"]


@attrs.frozen
class HubStatistics:
    """Numbers of a hub, since it was made unless they say "now"."""

    topics: int
    """Topics with members now."""
    members: int
    """Memberships now."""
    messages: int
    """Messages from Redis for topics with members."""
    deliveries: int
    """Messages times members."""
    undelivered: int
    """Messages from Redis for topics without members."""
    sent_bytes: int
    """Bytes of the frames that went into the members' outboxes."""
    dropped: int
    """Messages that were empty, reserved (``phx_*``) or could not be encoded."""
    interruptions: int
    """How often the subscription to Redis was interrupted and members had to join again."""
    presence_bytes: int
    """Bytes of presence that members were sent: states and differences."""


@attrs.frozen
class TopicStatistics:
    """Numbers of one topic, since its first member joined unless they say "now"."""

    topic: str
    members: int
    """Memberships now."""
    present: int
    """Members on all nodes; without presence, memberships now."""
    messages: int
    """Messages from Redis."""
    deliveries: int
    """Messages times members."""
    sent_bytes: int
    """Bytes of the frames that went into the members' outboxes."""
    backlog: int
    """Bytes that wait in the outboxes of the members now, those of other topics included."""
