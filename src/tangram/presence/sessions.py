"""Which sessions a node sweeps, and when.

1. A session is the channels of one incarnation of a node. Its members leave with it.
2. The members of a session whose node is gone leave at once: the node's record has expired, so they had
   seconds to come back.
3. The members of a session that has ended as planned, or of a former session of this node, stay for the
   grace: their clients join again, here or on another node.
4. A node knows its own former sessions by their node alone, because a crash leaves no other trace.
5. No I/O: the caller has the time, the sessions on Redis, and the nodes that are alive.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

__all__ = ["SessionSweeps", "Sweep"]


class Sweep(NamedTuple):
    """A session whose members leave now."""

    session: str
    node: str
    gone: bool
    """Whether the session ends only with its node, so that the node must really be gone."""


class SessionSweeps:
    """The sessions that one node sweeps.

    Args:
        node: the id of this node.
        session: the session of this node now.
        grace: seconds for which members of an ended session stay.
    """

    def __init__(self, node: str, session: str, grace: float) -> None:
        self._node = node
        self._session = session
        self._grace = grace
        self._due: dict[str, float] = {}
        """The time at which the members of each session that has ended leave."""

    @property
    def ended(self) -> Collection[str]:
        """The sessions that have ended, and whose members have not left yet."""
        return self._due.keys()

    def look(
        self, now: float, sessions: Mapping[str, tuple[str, bool]], alive: Collection[str]
    ) -> list[Sweep]:
        """Return the sessions to sweep now.

        Args:
            now: seconds.
            sessions: the node of each session on Redis, and whether the session has ended as planned.
            alive: the ids of the nodes that are alive.
        """
        for session in self._due.keys() - sessions.keys():
            del self._due[session]
        found = []
        for session, (node, ended) in sessions.items():
            if session == self._session:
                continue
            if ended or node == self._node:
                if self._due.setdefault(session, now + self._grace) <= now:
                    found.append(Sweep(session, node, gone=False))
            elif node not in alive:
                found.append(Sweep(session, node, gone=True))
        return found

    def next_due(self) -> float:
        """Return the time of the next sweep that is known; infinity for none."""
        return min(self._due.values(), default=math.inf)
