"""Presence: the members of each topic, and the differences between two flushes.

1. Nothing here knows the time. The caller flushes every 50 ms at most: if 1,000 members rejoin at once, one
   difference for each would cost the square of their number; with flushes a topic has one for all of them.
2. A member is a pair (external id, ``phx_ref``). A join and a leave within one window cancel each other, in
   either order, because no client has seen the member.
3. Newcomers get the whole state at the flush, in one encoding for all newcomers of a topic, before the
   difference that announces them. ``phx_ref`` makes the client drop entries that it has already.
4. The state covers this process. Differences travel through Redis and cover all processes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, NamedTuple, TypeVar

import attrs

__all__ = ["Change", "Metas", "Presence"]

Metas = dict[str, dict[str, list[dict[str, str]]]]
"""External id to ``{"metas": [{"phx_ref": agent}, ...]}``, as on the wire."""

MemberT = TypeVar("MemberT", bound=Hashable)


class Change(NamedTuple, Generic[MemberT]):
    """The result of one flush for one topic."""

    topic: str
    state: Metas
    """All members, for the newcomers."""
    newcomers: tuple[MemberT, ...]
    joins: Metas
    leaves: Metas


@attrs.define
class _TopicPresence(Generic[MemberT]):
    present: dict[str, dict[str, None]] = attrs.Factory(dict)
    changes: dict[tuple[str, str], bool] = attrs.Factory(dict)
    newcomers: dict[MemberT, None] = attrs.Factory(dict)
    unconfirmed: set[tuple[str, str]] = attrs.Factory(set)


class Presence(Generic[MemberT]):
    """Presence of all topics; ``MemberT`` is the caller's own type of a newcomer."""

    def __init__(self) -> None:
        self._topics: dict[str, _TopicPresence[MemberT]] = {}
        self._dirty: dict[str, None] = {}

    @property
    def dirty(self) -> bool:
        """Whether there is anything to flush."""
        return bool(self._dirty)

    def join(self, topic: str, id: str, ref: str, member: MemberT) -> None:  # noqa: A002 - the protocol's word
        """Add ``ref`` of the external id ``id``; ``member`` gets the state at the next flush."""
        entry = self._topics.setdefault(topic, _TopicPresence())
        entry.present.setdefault(id, {})[ref] = None
        entry.newcomers[member] = None
        self._note(topic, entry, (id, ref), present=True)

    def leave(self, topic: str, id: str, ref: str, member: MemberT) -> None:  # noqa: A002 - the protocol's word
        """Remove ``ref`` of the external id ``id``; unknown ones are ignored."""
        entry = self._topics.get(topic)
        if entry is None or ref not in entry.present.get(id, ()):
            return
        del entry.present[id][ref]
        if not entry.present[id]:
            del entry.present[id]
        entry.newcomers.pop(member, None)
        self._note(topic, entry, (id, ref), present=False)

    def restore(self, topic: str, joins: Metas, leaves: Metas) -> None:
        """Repeat a difference that may not have been published.

        The next flush states for each member that it names whether the member is present then. Clients
        ignore joins and leaves that they know already.
        """
        entry = self._topics.setdefault(topic, _TopicPresence())
        for metas in (joins, leaves):
            entry.unconfirmed |= {
                (id_, meta["phx_ref"]) for id_, listed in metas.items() for meta in listed["metas"]
            }
        self._dirty[topic] = None

    def _note(
        self, topic: str, entry: _TopicPresence[MemberT], key: tuple[str, str], *, present: bool
    ) -> None:
        if entry.changes.get(key, present) is not present:
            del entry.changes[key]
        else:
            entry.changes[key] = present
        self._dirty[topic] = None

    def state(self, topic: str) -> Metas:
        """Return all members of ``topic``."""
        entry = self._topics.get(topic)
        return (
            {} if entry is None else _metas((id_, ref) for id_, refs in entry.present.items() for ref in refs)
        )

    def flush(self) -> list[Change[MemberT]]:
        """Return one change for each topic that changed since the last flush."""
        changes = []
        for topic in self._dirty:
            entry = self._topics[topic]
            for id_, ref in entry.unconfirmed:
                entry.changes[id_, ref] = ref in entry.present.get(id_, ())
            entry.unconfirmed.clear()
            joins = _metas(key for key, present in entry.changes.items() if present)
            leaves = _metas(key for key, present in entry.changes.items() if not present)
            newcomers = tuple(entry.newcomers)
            if joins or leaves or newcomers:
                state = self.state(topic) if newcomers else {}
                changes.append(Change(topic, state, newcomers, joins, leaves))
            entry.changes.clear()
            entry.newcomers.clear()
            if not entry.present:
                del self._topics[topic]
        self._dirty.clear()
        return changes


def _metas(pairs: Iterable[tuple[str, str]]) -> Metas:
    metas: Metas = {}
    for id_, ref in pairs:
        metas.setdefault(id_, {"metas": []})["metas"].append({"phx_ref": ref})
    return metas
