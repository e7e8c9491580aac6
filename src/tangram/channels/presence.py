"""Presence: the members of each topic, and the differences between two flushes.

1. Nothing here knows the time. The caller flushes every 50 ms at most: if 1,000 members rejoin at once, one
   difference for each would cost the square of their number; with flushes a topic has one for all of them.
2. A member is a pair (external id, ``phx_ref``). A join and a leave within one window cancel each other, in
   either order, because no client has seen the member; but not if a state was sent between them.
3. A newcomer waits for the state of its topic, which is sent once and is the newest when it is sent. Until
   then it needs no difference of this process, because the state contains it. The caller paces the states:
   all clients of a topic that come at once get the square of their number in entries.
4. The text of a state is kept in pieces, one for each external id, so that one more member costs one piece.
5. The state covers this process. Differences travel through Redis and cover all processes. On several nodes
   ``tangram.presence.Roll`` takes the place of ``Presence``; its state covers all of them.
6. A topic above the limit of its rule has no list and no differences: its members get their number instead.
   Below the limit again, all of them are newcomers.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Generic, NamedTuple, Protocol, TypeVar

import attrs
import msgspec

from tangram.channels.codec import encode_json
from tangram.channels.presence_rules import PresenceRules, is_over

__all__ = [
    "Change",
    "MemberList",
    "Metas",
    "Presence",
    "PresenceTracker",
    "SharedPresence",
    "parse_metas",
    "to_metas",
]

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


class MemberList:
    """The members of one topic by external id, and the JSON text of them all."""

    __slots__ = ("_refs", "_text", "count")

    def __init__(self) -> None:
        self._refs: dict[str, _Refs] = {}
        self._text: bytes | None = None
        """The whole state; None after a change."""
        self.count = 0
        """The number of refs."""

    def __contains__(self, key: tuple[str, str]) -> bool:
        refs = self._refs.get(key[0])
        return refs is not None and key[1] in refs.metas

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((id_, ref) for id_, refs in self._refs.items() for ref in refs.metas)

    def refs(self, id: str) -> Collection[str]:  # noqa: A002 - the protocol's word
        """Return the refs of an external id."""
        refs = self._refs.get(id)
        return () if refs is None else refs.metas.keys()

    def add(self, id: str, ref: str) -> None:  # noqa: A002 - the protocol's word
        """Add a ref of an external id; a known one is ignored."""
        refs = self._refs.get(id)
        if refs is None:
            refs = self._refs[id] = _Refs(id)
        self.count += ref not in refs.metas
        refs.metas[ref] = b'{"phx_ref":%b}' % encode_json(ref)
        refs.text = self._text = None

    def remove(self, id: str, ref: str) -> None:  # noqa: A002 - the protocol's word
        """Remove a ref of an external id; an unknown one is ignored."""
        if (id, ref) not in self:
            return
        refs = self._refs[id]
        del refs.metas[ref]
        self.count -= 1
        refs.text = self._text = None
        if not refs.metas:
            del self._refs[id]

    def encode(self) -> bytes:
        """Return the state as JSON text; it is kept until the next change."""
        text = self._text
        if text is None:
            pieces = [refs.text or refs.encode() for refs in self._refs.values()]
            text = self._text = b"{%b}" % b",".join(pieces)
        return text


class PresenceTracker(Protocol[MemberT]):
    """Presence as the hub uses it, of one node or of all nodes."""

    @property
    def waiting(self) -> Collection[str]:
        """The topics whose newcomers can have the state now, the one that waits longest first."""
        ...

    def join(self, topic: str, id: str, ref: str, member: MemberT) -> None:  # noqa: A002 - the protocol's word
        """Add a member, which waits for the state from now on."""
        ...

    def leave(self, topic: str, id: str, ref: str, member: MemberT) -> None:  # noqa: A002 - the protocol's word
        """Remove a member."""
        ...

    def state(self, topic: str) -> bytes:
        """Return all members of a topic, as JSON text."""
        ...

    def newcomers(self, topic: str) -> Collection[MemberT]:
        """Return the members of a topic that wait for its state."""
        ...

    def take_newcomers(self, topic: str, count: int) -> list[MemberT]:
        """Return up to ``count`` newcomers, which get the state now."""
        ...

    def number(self, topic: str) -> int | None:
        """Return the number of members of a topic that shows it instead of the list; else None."""
        ...

    def present(self, topic: str) -> int | None:
        """Return the number of members of a topic; None if the topic has no presence."""
        ...

    def take_numbers(self) -> Sequence[tuple[str, int]]:
        """Return topic and number of the topics whose number has changed since the last call."""
        ...


class SharedPresence(PresenceTracker[MemberT], Protocol[MemberT]):
    """Presence of all nodes as the hub uses it."""

    def leave(
        self,
        topic: str,
        id: str,  # noqa: A002 - the protocol's word
        ref: str,
        member: MemberT,
        *,
        moving: bool = False,
    ) -> None:
        """Remove a member; with ``moving`` its client joins again, here or on another node."""
        ...

    def take_stamp(self, payload: bytes) -> None:
        """Take a message on ``to:phoenix:who``."""
        ...

    def take_difference(self, topic: str, payload: bytes) -> bool:
        """Take a difference, and return whether the members of the topic get it."""
        ...

    def take_corrections(self) -> Sequence[tuple[str, bytes]]:
        """Return topic and difference of the topics whose members have missed differences."""
        ...


@attrs.define
class _TopicPresence(Generic[MemberT]):
    limit: int | None
    members: MemberList = attrs.Factory(MemberList)
    changes: dict[tuple[str, str], bool] = attrs.Factory(dict)
    newcomers: dict[MemberT, None] = attrs.Factory(dict)
    unconfirmed: set[tuple[str, str]] = attrs.Factory(set)
    everyone: dict[str, MemberT] = attrs.Factory(dict)
    """All members by ref, where there is a limit."""
    counting: bool = False
    """Whether members get their number instead of the list."""
    number: int = -1
    """The number that members have; -1 before the first."""


class Presence(Generic[MemberT]):
    """Presence of all topics; ``MemberT`` is the caller's own type of a newcomer."""

    def __init__(self, rules: PresenceRules | None = None) -> None:
        """Make presence without members.

        Args:
            rules: how the members of each topic are shown.
        """
        self._rules = rules or PresenceRules()
        self._topics: dict[str, _TopicPresence[MemberT]] = {}
        self._dirty: dict[str, None] = {}
        self._waiting: dict[str, None] = {}
        self._counted: dict[str, None] = {}

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
        entry = self._topics.get(topic)
        if entry is None:
            if not self._rules.tracks(topic):
                return
            entry = self._topics[topic] = _TopicPresence(self._rules.limit(topic))
        entry.members.add(id, ref)
        entry.newcomers[member] = None
        self._waiting[topic] = None
        if entry.limit is not None:
            entry.everyone[ref] = member
        self._note(topic, entry, (id, ref), present=True)

    def leave(self, topic: str, id: str, ref: str, member: MemberT) -> None:  # noqa: A002 - the protocol's word
        """Remove ``ref`` of the external id ``id``; unknown ones are ignored."""
        entry = self._topics.get(topic)
        if entry is None or (id, ref) not in entry.members:
            return
        entry.members.remove(id, ref)
        entry.everyone.pop(ref, None)
        entry.newcomers.pop(member, None)
        if not entry.newcomers:
            self._waiting.pop(topic, None)
        self._note(topic, entry, (id, ref), present=False)

    def restore(self, topic: str, joins: Metas, leaves: Metas) -> None:
        """Repeat a difference that may not have been published.

        The next flush states for each member that it names whether the member is present then. Clients
        ignore joins and leaves that they know already.
        """
        entry = self._topics.setdefault(topic, _TopicPresence(self._rules.limit(topic)))
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
        if entry.limit is not None:
            self._count(topic, entry)

    def _count(self, topic: str, entry: _TopicPresence[MemberT]) -> None:
        """Show the number of the members or their list, by the limit."""
        counting = is_over(entry.members.count, entry.limit, counting=entry.counting)
        if entry.counting and not counting:
            # The states contain everything that has changed meanwhile.
            entry.newcomers.update(dict.fromkeys(entry.everyone.values()))
            entry.changes.clear()
            entry.unconfirmed.clear()
            if entry.newcomers:
                self._waiting[topic] = None
        elif counting:
            self._counted[topic] = None
            entry.number = entry.number if entry.counting else -1
        entry.counting = counting

    def state(self, topic: str) -> bytes:
        """Return all members of ``topic``, as JSON text."""
        entry = self._topics.get(topic)
        return b"{}" if entry is None else entry.members.encode()

    def number(self, topic: str) -> int | None:
        """Return the number of members of a topic that shows it instead of the list; else None."""
        entry = self._topics.get(topic)
        return None if entry is None or not entry.counting else entry.members.count

    def present(self, topic: str) -> int | None:
        """Return the number of members of a topic; None if the topic has no presence."""
        if not self._rules.tracks(topic):
            return None
        entry = self._topics.get(topic)
        return 0 if entry is None else entry.members.count

    def take_numbers(self) -> Sequence[tuple[str, int]]:
        """Return topic and number of the topics whose number has changed since the last call."""
        found: list[tuple[str, int]] = []
        for topic in self._counted:
            entry = self._topics.get(topic)
            if entry is not None and entry.counting and entry.number != entry.members.count:
                entry.number = entry.members.count
                found.append((topic, entry.number))
        self._counted.clear()
        return found

    def newcomers(self, topic: str) -> Collection[MemberT]:
        """Return the members of ``topic`` that wait for its state, in the order of their joins."""
        entry = self._topics.get(topic)
        return () if entry is None else entry.newcomers.keys()

    def take_newcomers(self, topic: str, count: int) -> list[MemberT]:
        """Return up to ``count`` newcomers, which get the state now, in turn by topic."""
        entry = self._topics[topic]
        newcomers = entry.newcomers
        taken = list(islice(newcomers, count))
        if entry.changes:
            # The state shows them, so the next difference has them even if they are undone before it.
            entry.unconfirmed.update(entry.changes)
            entry.changes.clear()
        if entry.counting and entry.number != entry.members.count:
            entry.number = -1  # these have another number than the others
            self._counted[topic] = None
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
            for key in entry.unconfirmed:
                entry.changes[key] = key in entry.members
            entry.unconfirmed.clear()
            if entry.counting:
                entry.changes.clear()
            joins = _metas(key for key, present in entry.changes.items() if present)
            leaves = _metas(key for key, present in entry.changes.items() if not present)
            if joins or leaves:
                changes.append(Change(topic, joins, leaves))
            entry.changes.clear()
            if not entry.members.count:
                del self._topics[topic]
        self._dirty.clear()
        return changes


def to_metas(members: Mapping[str, str]) -> Metas:
    """Return members, external ids by agent, as on the wire."""
    metas: Metas = {}
    for agent, id_ in members.items():
        metas.setdefault(id_, {"metas": []})["metas"].append({"phx_ref": agent})
    return metas


class _Listed(msgspec.Struct):
    metas: list[dict[str, str]]


class _Difference(msgspec.Struct):
    joins: dict[str, _Listed]
    leaves: dict[str, _Listed]


_decode = msgspec.json.Decoder(_Difference).decode


def parse_metas(payload: bytes) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return joins and leaves of a difference, as pairs of external id and ref.

    Raises:
        ValueError: the payload is no difference of presence.
    """
    try:
        found = _decode(payload)
        joins, leaves = (
            [(id_, meta["phx_ref"]) for id_, one in listed.items() for meta in one.metas]
            for listed in (found.joins, found.leaves)
        )
    except (msgspec.MsgspecError, KeyError, RecursionError) as error:
        raise ValueError(f"expected a difference of presence, got {payload[:80]!r}: {error}") from error
    return joins, leaves


def _metas(pairs: Iterable[tuple[str, str]]) -> Metas:
    metas: Metas = {}
    for id_, ref in pairs:
        metas.setdefault(id_, {"metas": []})["metas"].append({"phx_ref": ref})
    return metas
