"""Who is there: state per topic, and differences gathered between two flushes.

1. Nothing here knows the time: somebody calls ``flush`` every 50 ms at most. When 1,000 members rejoin at
   once, a difference for each would cost the square of their number; gathered, a topic has one per flush.
2. A member is a pair (external id, ``phx_ref``). Joining and leaving within one window cancel each other, in
   either order: nobody is told of what nobody saw.
3. Newcomers get the whole state at the flush, one shared encoding for all of a topic's newcomers, before the
   difference that announces them. ``phx_ref`` makes the client drop what it has heard already.
4. The state covers this process. Differences travel through Redis and cover all.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, NamedTuple, TypeVar

import attrs

__all__ = ["Change", "Metas", "Presence"]

Metas = dict[str, dict[str, list[dict[str, str]]]]
"""External id to ``{"metas": [{"phx_ref": agent}, ...]}``, as it goes over the wire."""

MemberT = TypeVar("MemberT", bound=Hashable)


class Change(NamedTuple, Generic[MemberT]):
    """What one flush has to say about one topic."""

    topic: str
    state: Metas
    """Everybody who is there, for the newcomers."""
    newcomers: tuple[MemberT, ...]
    joins: Metas
    leaves: Metas


@attrs.define
class _Topic(Generic[MemberT]):
    there: dict[str, dict[str, None]] = attrs.Factory(dict)
    changes: dict[tuple[str, str], bool] = attrs.Factory(dict)
    newcomers: dict[MemberT, None] = attrs.Factory(dict)
    unsure: set[tuple[str, str]] = attrs.Factory(set)


class Presence(Generic[MemberT]):
    """Presence of all topics. ``MemberT`` is whatever the caller wants back as a newcomer."""

    def __init__(self) -> None:
        self._topics: dict[str, _Topic[MemberT]] = {}
        self._dirty: dict[str, None] = {}

    @property
    def dirty(self) -> bool:
        """Is there anything to flush?"""
        return bool(self._dirty)

    def join(self, topic: str, id: str, ref: str, member: MemberT) -> None:  # noqa: A002 - the protocol's word
        """``ref`` of ``id`` is there now; ``member`` wants the state."""
        entry = self._topics.setdefault(topic, _Topic())
        entry.there.setdefault(id, {})[ref] = None
        entry.newcomers[member] = None
        self._note(topic, entry, (id, ref), here=True)

    def leave(self, topic: str, id: str, ref: str, member: MemberT) -> None:  # noqa: A002 - the protocol's word
        """``ref`` of ``id`` is there no more. Unknown ones are ignored."""
        entry = self._topics.get(topic)
        if entry is None or ref not in entry.there.get(id, ()):
            return
        del entry.there[id][ref]
        if not entry.there[id]:
            del entry.there[id]
        entry.newcomers.pop(member, None)
        self._note(topic, entry, (id, ref), here=False)

    def restore(self, topic: str, joins: Metas, leaves: Metas) -> None:
        """What a flush gave out may have reached nobody: the next one says of all that it names whether they
        are there. Clients take what they know already for what it is.
        """
        entry = self._topics.setdefault(topic, _Topic())
        for metas in (joins, leaves):
            entry.unsure |= {(id_, meta["phx_ref"]) for id_, said in metas.items() for meta in said["metas"]}
        self._dirty[topic] = None

    def _note(self, topic: str, entry: _Topic[MemberT], who: tuple[str, str], *, here: bool) -> None:
        if entry.changes.get(who, here) is not here:
            del entry.changes[who]
        else:
            entry.changes[who] = here
        self._dirty[topic] = None

    def state(self, topic: str) -> Metas:
        """Everybody on ``topic``."""
        entry = self._topics.get(topic)
        return (
            {} if entry is None else _metas((id_, ref) for id_, refs in entry.there.items() for ref in refs)
        )

    def flush(self) -> list[Change[MemberT]]:
        """What happened since the last flush, one change for each topic that has one."""
        changes = []
        for topic in self._dirty:
            entry = self._topics[topic]
            for id_, ref in entry.unsure:
                entry.changes[id_, ref] = ref in entry.there.get(id_, ())
            entry.unsure.clear()
            joins = _metas(who for who, here in entry.changes.items() if here)
            leaves = _metas(who for who, here in entry.changes.items() if not here)
            newcomers = tuple(entry.newcomers)
            if joins or leaves or newcomers:
                state = self.state(topic) if newcomers else {}
                changes.append(Change(topic, state, newcomers, joins, leaves))
            entry.changes.clear()
            entry.newcomers.clear()
            if not entry.there:
                del self._topics[topic]
        self._dirty.clear()
        return changes


def _metas(pairs: Iterable[tuple[str, str]]) -> Metas:
    metas: Metas = {}
    for id_, ref in pairs:
        metas.setdefault(id_, {"metas": []})["metas"].append({"phx_ref": ref})
    return metas
