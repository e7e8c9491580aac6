"""What two nodes of one cluster must have in common, without I/O.

1. The record of each node has the values to compare: a digest of ``jwt_secret``, the protocol of nodes, the
   version of tangram, the loaded plugins, and the seconds by which its clock is ahead of that of Redis.
2. A difference is told once: when this node first sees it, and again if it has been away meanwhile.
3. No difference keeps a node from its start. A secret, a version and a list of plugins change on one node
   after the other, and the first one with the new value would be refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Final

import attrs

from tangram.cluster.registry import NodeRecord

__all__ = ["CLOCK_LIMIT", "Difference", "Differences", "Subject", "compare"]

CLOCK_LIMIT: Final = 5.0
"""Seconds by which the clocks of two nodes may be apart."""


class Subject(Enum):
    """The property in which two nodes differ."""

    SECRET = "channel.jwt_secret"  # noqa: S105 - the name of the setting
    PROTOCOL = "protocol"
    VERSION = "version"
    PLUGINS = "plugins"
    CLOCK = "clock"


@attrs.frozen
class Difference:
    """One property in which another node differs from this one."""

    node: str
    """The id of the other node."""
    subject: Subject
    here: str = ""
    """The value of this node; of plugins those that the other node lacks."""
    there: str = ""
    """The value of the other node; of plugins those that this node lacks; of a clock its lead in seconds."""

    @property
    def text(self) -> str:
        """The difference in words, as ``/-/nodes`` shows it."""
        match self.subject:
            case Subject.SECRET:
                return "another jwt_secret"
            case Subject.PLUGINS:
                return f"plugins: only here {self.here or 'none'}, only there {self.there or 'none'}"
            case Subject.CLOCK:
                return f"clock: {self.there} s"
            case _:
                return f"{self.subject.value}: here {self.here}, there {self.there}"


def compare(me: NodeRecord, other: NodeRecord) -> Sequence[Difference]:
    """Return the properties in which another node differs from this one, the worst first."""
    found = []

    def differ(subject: Subject, here: str = "", there: str = "") -> None:
        found.append(Difference(other.id, subject, here, there))

    if other.secret != me.secret:
        differ(Subject.SECRET)
    if other.protocol != me.protocol:
        differ(Subject.PROTOCOL, str(me.protocol), str(other.protocol))
    if other.version != me.version:
        differ(Subject.VERSION, me.version, other.version)
    mine, theirs = set(me.declared), set(other.declared)
    if mine != theirs:
        differ(Subject.PLUGINS, ", ".join(sorted(mine - theirs)), ", ".join(sorted(theirs - mine)))
    if me.clock is not None and other.clock is not None:
        lead = other.clock - me.clock
        if abs(lead) > CLOCK_LIMIT:
            differ(Subject.CLOCK, there=f"{lead:+.0f}")
    return found


class Differences:
    """The differences of all other nodes from this one, and which of them have been told."""

    def __init__(self) -> None:
        self.found: Mapping[str, Sequence[Difference]] = {}
        """The differences of each node that has any."""
        self._told: set[tuple[str, ...]] = set()

    def take(self, me: NodeRecord, nodes: Iterable[NodeRecord]) -> Sequence[Difference]:
        """Compare this node with the others, and return the differences that have not been told."""
        seen, news = set(), []
        found: dict[str, Sequence[Difference]] = {}
        for other in nodes:
            if other.id == me.id:
                continue
            differences = compare(me, other)
            if differences:
                found[other.id] = differences
            for one in differences:
                key = _key(other, one)
                seen.add(key)
                if key not in self._told:
                    news.append(one)
        self.found, self._told = found, seen
        return news


def _key(other: NodeRecord, one: Difference) -> tuple[str, ...]:
    # The lead of a clock changes all the time.
    values = () if one.subject is Subject.CLOCK else (one.here, one.there)
    return (other.id, other.run, one.subject.value, *values)
