"""The membership of a connection in a topic, and the lists that it may cause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

from tangram.channels.outbox import Outbox

__all__ = ["LIST_CREDIT", "LIST_FACTOR", "ListAllowance", "Membership", "may_list"]

LIST_CREDIT: Final = 8192
"""Bytes of lists that a connection may cause before it has sent anything."""
LIST_FACTOR: Final = 4
"""Bytes of lists for each byte of joins and leaves: a join has about 300 bytes, an agent's name about 20."""


@attrs.define(eq=False)
class ListAllowance:
    """Bytes of lists on Redis that one connection may cause: its own bytes times a constant.

    Each ``channel.join`` lists the agents of its topic, so that without a bound 98 members with long names
    would turn 34 MB of rejoins into 2 GB of lists. Without allowance an event has no list but a count.
    """

    left: int = LIST_CREDIT

    def earn(self, received: int) -> None:
        """Add the allowance for a frame of ``received`` bytes."""
        self.left += LIST_FACTOR * received

    def spend(self, size: int) -> bool:
        """Take ``size`` bytes, and return whether there were as many."""
        if size > self.left:
            return False
        self.left -= size
        return True


@attrs.define(eq=False)
class Membership:
    """The membership of one connection in one topic."""

    conn: str
    topic: str
    join_ref: str
    id: str
    """The external id, from the token."""
    outbox: Outbox
    alive: bool = True
    allowance: ListAllowance | None = None
    """Bounds the lists that this membership causes; None for no bound."""
    follows: bool = False
    """Whether the member asked for positions."""
    stated: int = 0
    """The message of presence (``slices``) up to which the list that the member got contains all."""
    token: str | None = attrs.field(default=None, repr=False)
    """The token of the join itself; None if the connection's counted."""

    @property
    def agent(self) -> str:
        """The agent id ``conn:topic:join_ref``, which is also the ``phx_ref`` in presence."""
        return f"{self.conn}:{self.topic}:{self.join_ref}"


def may_list(names: Sequence[str], allowance: ListAllowance | None) -> bool:
    return allowance is None or allowance.spend(sum(map(len, names)) + 3 * len(names))
