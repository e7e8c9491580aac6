"""Presence: the members of each topic, and the differences between two flushes.

1. Nothing here knows the time. The caller flushes every 50 ms at most: if 1,000 members rejoin at once, one
   difference for each would cost the square of their number; with flushes a topic has one for all of them.
2. A member is a pair (external id, ``phx_ref``). A join and a leave within one window cancel each other, in
   either order, because no client has seen the member.
3. A newcomer waits for the state of its topic, which is sent once and is the newest when it is sent. Until
   then it needs no difference of this process, because the state contains it. The caller paces the states:
   all clients of a topic that come at once get the square of their number in entries.
4. The text of a state is kept in pieces, one for each external id, so that one more member costs one piece.
5. The state covers this process. Differences travel through Redis and cover all processes.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

import attrs

from tangram.channels.codec import encode_json

__all__ = ["Change", "Metas", "Presence"]

Metas = dict[str, dict[str, list[dict[str, str]]]]
"""External id to ``{"metas": [{"phx_ref": agent}, ...]}``, as on the wire."""

MemberT = TypeVar("MemberT", bound=Hashable)


class Change(NamedTuple):
    """The difference of one topic between two flushes."""

    topic: str
    joins: Metas
    leaves: Metas


@attrs.define
class _Refs:
    """The refs of one external id, each with its JSON text."""

    id: str
    metas: dict[str, bytes] = attrs.Factory(dict)
    text: bytes | None = None
    """The member of the state for this id; None after a change."""

    def encode(self) -> bytes:
        self.text = text = b'%b:{"metas":[%b]}' % (encode_json(self.id), b",".join(self.metas.values()))
        return text


@attrs.define
class _TopicPresence(Generic[MemberT]):
    present: dict[str, _Refs] = attrs.Factory(dict)
    changes: dict[tuple[str, str], bool] = attrs.Factory(dict)
    newcomers: dict[MemberT, None] = attrs.Factory(dict)
    unconfirmed: set[tuple[str, str]] = attrs.Factory(set)
    text: bytes | None = None
    """The whole state; None after a change."""

    def has(self, id_: str, ref: str) -> bool:
        return id_ in self.present and ref in self.present[id_].metas


class Presence(Generic[MemberT]):
    """Presence of all topics; ``MemberT`` is the caller's own type of a newcomer."""

    def __init__(self) -> None:
        self._topics: dict[str, _TopicPresence[MemberT]] = {}
        self._dirty: dict[str, None] = {}
        self._waiting: dict[str, None] = {}

    @property
    def dirty(self) -> bool:
        """Whether there is anything to flush."""
        return bool(self._dirty)

    @property
    def waiting(self) -> Collection[str]:
        """The topics whose state newcomers wait for, the one that waits longest first."""
        return self._waiting.keys()

    def join(self, topic: str, id: str, ref: str, member: MemberT) -> None:  # noqa: A002 - the protocol's word
        """Add ``ref`` of the external id ``id``; ``member`` waits for the state from now on."""
        entry = self._topics.setdefault(topic, _TopicPresence())
        refs = entry.present.get(id)
        if refs is None:
            refs = entry.present[id] = _Refs(id)
        refs.metas[ref] = b'{"phx_ref":%b}' % encode_json(ref)
        refs.text = entry.text = None
        entry.newcomers[member] = None
        self._waiting[topic] = None
        self._note(topic, entry, (id, ref), present=True)

    def leave(self, topic: str, id: str, ref: str, member: MemberT) -> None:  # noqa: A002 - the protocol's word
        """Remove ``ref`` of the external id ``id``; unknown ones are ignored."""
        entry = self._topics.get(topic)
        if entry is None or not entry.has(id, ref):
            return
        refs = entry.present[id]
        del refs.metas[ref]
        refs.text = entry.text = None
        if not refs.metas:
            del entry.present[id]
        entry.newcomers.pop(member, None)
        if not entry.newcomers:
            self._waiting.pop(topic, None)
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

    def state(self, topic: str) -> bytes:
        """Return all members of ``topic``, as JSON text."""
        entry = self._topics.get(topic)
        if entry is None:
            return b"{}"
        text = entry.text
        if text is None:
            pieces = [refs.text or refs.encode() for refs in entry.present.values()]
            text = entry.text = b"{%b}" % b",".join(pieces)
        return text

    def newcomers(self, topic: str) -> Collection[MemberT]:
        """Return the members of ``topic`` that wait for its state, in the order of their joins."""
        entry = self._topics.get(topic)
        return () if entry is None else entry.newcomers.keys()

    def take_newcomers(self, topic: str, count: int) -> list[MemberT]:
        """Return up to ``count`` newcomers, which get the state now, in turn by topic."""
        newcomers = self._topics[topic].newcomers
        taken = list(islice(newcomers, count))
        for member in taken:
            del newcomers[member]
        del self._waiting[topic]
        if newcomers:
            self._waiting[topic] = None
        return taken

    def flush(self) -> list[Change]:
        """Return one change for each topic that changed since the last flush."""
        changes = []
        for topic in self._dirty:
            entry = self._topics[topic]
            for id_, ref in entry.unconfirmed:
                entry.changes[id_, ref] = entry.has(id_, ref)
            entry.unconfirmed.clear()
            joins = _metas(key for key, present in entry.changes.items() if present)
            leaves = _metas(key for key, present in entry.changes.items() if not present)
            if joins or leaves:
                changes.append(Change(topic, joins, leaves))
            entry.changes.clear()
            if not entry.present:
                del self._topics[topic]
        self._dirty.clear()
        return changes


def _metas(pairs: Iterable[tuple[str, str]]) -> Metas:
    metas: Metas = {}
    for id_, ref in pairs:
        metas.setdefault(id_, {"metas": []})["metas"].append({"phx_ref": ref})
    return metas
