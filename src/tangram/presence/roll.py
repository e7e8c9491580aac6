"""The roll: the members of each topic on all nodes, as one node knows them.

1. Nothing here knows Redis or the time. ``flush`` returns the calls that publish the changes of this node,
   and ``answered`` or ``failed`` reports each. The feed of the bus comes in as stamps and differences.
2. The members of a topic are those of one answer of Redis, and the differences behind it. The place of the
   answer in the feed is its marker: the answer contains each difference before it, and none behind it.
3. Each difference follows from one version to the next. If one is missing, this node asks for all members
   again, and its own members get the difference to what they know.
4. The first local member of a topic makes this node follow it; the last one that leaves ends that.
5. A local member is present on Redis until this node says otherwise. Whatever removed it there (another node
   that took this one for dead, a Redis without its data), the next flush adds it again.
6. A newcomer waits until it is on the roll itself. Then it gets the state, and each difference behind it: its
   view is the roll, at every moment.
7. The members of a connection that the server has closed stay for the grace, because they join again, here or
   on another node. A member that joins takes the place of those with its id, and of those with its id in
   sessions that have ended.
8. A topic above its limit has a number and no list here, because the functions publish no differences then.
9. A call has `MAX_FLUSHED` members of this node at most. Further ones follow after its answer, each call with
   a difference of its own, so that every list on the way is one of some moment. A topic that is stated again
   in several calls asks for all members with the last one, and its own members keep their view until then.
10. A Redis that allows no functions publishes plain differences. The roll then has the members of this node.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from enum import IntEnum
from itertools import islice
from typing import Any, Final, Generic, NamedTuple, TypeVar

import attrs

from tangram.bus.scripts import FunctionCall
from tangram.channels.codec import encode_json
from tangram.channels.presence import MemberList, parse_metas, to_metas
from tangram.channels.presence_rules import PresenceRules
from tangram.presence.library import Member, TopicSnapshot, flush_call, parse_flush
from tangram.presence.stamps import PresenceStamp, parse_stamp

__all__ = ["Flush", "Roll"]

MemberT = TypeVar("MemberT", bound=Hashable)

PATIENCE: Final = 3
"""Ticks of a second after which an answer or its marker counts as lost."""
MAX_FLUSHED: Final = 2000
"""Members of one topic that one call states, which keeps Redis busy for some 5 ms."""
MAX_ENDED: Final = 1000
"""Sessions that are remembered after their end: there is one for each restart of a node, for some seconds."""


class Flush(NamedTuple):
    """The changes of one topic on their way to Redis."""

    topic: str
    joins: Mapping[str, str]
    """External ids by agent."""
    leaves: Mapping[str, str]
    nonce: str
    """Names the marker if all members are asked for; else empty."""
    call: FunctionCall


class _State(IntEnum):
    COLD = 0
    """The members are to be asked for."""
    LOADING = 1
    """They are asked for."""
    READY = 2
    """They are known, or their number is."""


@attrs.define(eq=False)
class _Topic(Generic[MemberT]):
    name: str
    limit: int | None
    local: dict[str, tuple[str, MemberT]] = attrs.Factory(dict)
    """External id and member of this node by agent."""
    changes: dict[str, tuple[str, bool]] = attrs.Factory(dict)
    """External id by agent, and whether it joins, of the changes that are not flushed."""
    lingering: dict[str, tuple[str, float]] = attrs.Factory(dict)
    """External id by agent, and ticks that are left, of members whose connection the server has closed."""
    unconfirmed: dict[str, str] = attrs.Factory(dict)
    """External id by agent, of members that Redis may hold otherwise than this node."""
    to_state: dict[str, str] | None = None
    """External id by agent of the members that are to be stated again; None before the first call of that."""
    flying: Flush | None = None
    state: _State = _State.COLD
    members: MemberList = attrs.Factory(MemberList)
    sessions: dict[str, str] = attrs.Factory(dict)
    """The session of each agent."""
    version: int = 0
    counting: bool = False
    count: int = 0
    number: int = -1
    """The number that members have; -1 before the first."""
    nonce: str = ""
    answer: TopicSnapshot | None = None
    marked: bool = False
    """Whether the marker has come."""
    behind: list[tuple[PresenceStamp, bytes]] = attrs.Factory(list)
    """Changes behind the marker, until the answer is here."""
    stamp: PresenceStamp | None = None
    """The stamp whose difference comes next."""
    pending: dict[str, MemberT] = attrs.Factory(dict)
    """Newcomers by agent that are not on the roll yet."""
    ready: dict[MemberT, None] = attrs.Factory(dict)
    """Newcomers that wait for the state."""
    audited: int = 0
    suspect: int | None = None
    """The version that Redis has left behind, or has lost, if it stays the version here."""
    waited: int = 0
    """Ticks since the members were asked for."""


class Roll(Generic[MemberT]):
    """The members of all nodes; ``MemberT`` is the caller's own type of a newcomer.

    Args:
        node: the id of this node.
        session: a name of this incarnation that no other has; it begins with the node's id and a slash.
        rules: how the members of each topic are shown.
        grace: ticks of a second for which members stay whose connection the server has closed.
        wake: called when there is a state to send, or a change to flush that comes from the feed.
        on_ended: called with each session that has ended as planned.
    """

    def __init__(
        self,
        node: str,
        session: str,
        rules: PresenceRules | None = None,
        *,
        grace: float = 5.0,
        wake: Callable[[], None] = lambda: None,
        on_ended: Callable[[str], None] = lambda _session: None,
    ) -> None:
        self.node = node
        self.session = session
        self.rules = rules or PresenceRules()
        self.wake = wake
        self.on_ended = on_ended
        self._grace = grace
        self._ended: dict[str, None] = {}
        """Sessions that have ended, whose members may join again elsewhere, the oldest first."""
        self._topics: dict[str, _Topic[MemberT]] = {}
        self._dirty: dict[str, None] = {}
        self._waiting: dict[str, None] = {}
        self._counted: dict[str, None] = {}
        self._corrections: list[tuple[str, bytes]] = []
        self._nonces = self._audits = 0

    # Members of this node, from the hub.

    @property
    def dirty(self) -> bool:
        """Whether there is anything to flush."""
        return bool(self._dirty)

    @property
    def topics(self) -> Collection[str]:
        """The topics that this node follows."""
        return self._topics.keys()

    @property
    def waiting(self) -> Collection[str]:
        """The topics whose newcomers can have the state now, the one that waits longest first."""
        return self._waiting.keys()

    def join(self, topic: str, id: str, ref: str, member: MemberT) -> None:  # noqa: A002 - the protocol's word
        """Add ``ref`` of the external id ``id``; ``member`` waits for the state from now on."""
        entry = self._topics.get(topic)
        if entry is None:
            if not self.rules.tracks(topic):
                return
            entry = self._topics[topic] = _Topic(topic, self.rules.limit(topic))
        entry.local[ref] = (id, member)
        if entry.state is _State.READY and entry.counting:
            self._make_ready(entry, [member])
        else:
            entry.pending[ref] = member
        self._note(entry, ref, id, present=True)

    def leave(
        self,
        topic: str,
        id: str,  # noqa: A002 - the protocol's word
        ref: str,
        member: MemberT,
        *,
        moving: bool = False,
    ) -> None:
        """Remove ``ref`` of the external id ``id``; unknown ones are ignored.

        Args:
            topic: the topic.
            id: the external id.
            ref: the agent.
            member: the member.
            moving: whether the server has closed the connection, so that the client joins again.
        """
        entry = self._topics.get(topic)
        if entry is None or entry.local.pop(ref, None) is None:
            return
        entry.pending.pop(ref, None)
        entry.ready.pop(member, None)
        if not entry.ready:
            self._waiting.pop(topic, None)
        if moving and ref not in entry.changes:
            entry.lingering[ref] = (id, self._grace)
        else:
            self._note(entry, ref, id, present=False)
        if not entry.local:
            # The stamps of a topic without local members are not followed.
            self._forget_members(entry)

    def _note(self, entry: _Topic[MemberT], ref: str, id_: str, *, present: bool) -> None:
        known = entry.changes.get(ref)
        if known is not None and known[1] is not present:
            del entry.changes[ref]
        else:
            entry.changes[ref] = (id_, present)
        self._dirty[entry.name] = None

    @staticmethod
    def _forget_members(entry: _Topic[MemberT]) -> None:
        entry.state, entry.to_state = _State.COLD, None
        entry.members, entry.sessions = MemberList(), {}
        entry.counting, entry.number = False, -1
        entry.nonce, entry.answer, entry.marked, entry.stamp = "", None, False, None
        entry.behind.clear()

    @property
    def away(self) -> int:
        """The members that linger and have not joined again, of topics with a list."""
        return sum(
            all(other in entry.lingering for other in entry.members.refs(id_))
            for entry in self._topics.values()
            if entry.state is _State.READY and not entry.counting
            for id_, _ in entry.lingering.values()
        )

    # Changes of this node, to Redis.

    def flush(self) -> list[Flush]:
        """Return the calls that publish the changes since the last flush, one for each topic.

        A topic has one call on its way at a time, so that they cannot overtake each other.
        """
        found = []
        for topic in list(self._dirty):
            entry = self._topics[topic]
            if entry.flying is not None:
                continue
            del self._dirty[topic]
            flush = self._flush_topic(entry)
            if flush is not None:
                entry.flying = flush
                found.append(flush)
                if entry.changes or entry.to_state:
                    self._dirty[topic] = None
            elif not (entry.local or entry.lingering):
                del self._topics[topic]
        return found

    def _flush_topic(self, entry: _Topic[MemberT]) -> Flush | None:
        changes, nonce = entry.changes, ""
        for ref, id_ in entry.unconfirmed.items():
            changes[ref] = (id_, ref in entry.local or ref in entry.lingering)
        entry.unconfirmed = {}
        stating = bool(entry.local) and entry.state is _State.COLD
        whole = self._add_statement(entry) if stating else False
        taken = dict(islice(changes.items(), MAX_FLUSHED))
        joins = {ref: id_ for ref, (id_, present) in taken.items() if present}
        leaves = {ref: id_ for ref, (id_, present) in taken.items() if not present}
        entry.changes = dict(islice(changes.items(), MAX_FLUSHED, None))
        if stating and not (entry.changes or entry.to_state):
            nonce = self._ask(entry)
        if not (stating or joins or leaves):
            return None
        # A lingering member that is stated again moves, too, once its id has joined.
        joining = {ref: id_ for ref, id_ in joins.items() if ref in entry.local} if stating else joins
        moved = self._moved(entry, joining)
        for ref in moved:
            joins.pop(ref, None)
            entry.changes.pop(ref, None)
        leaves |= moved
        for ref in leaves:
            entry.lingering.pop(ref, None)
        call = flush_call(
            entry.name,
            self.session,
            self.node,
            joins=joins,
            leaves=leaves,
            limit=entry.limit,
            nonce=nonce,
            whole=whole and bool(nonce),
            empty=not (entry.local or entry.lingering or entry.changes),
        )
        return Flush(entry.name, joins, leaves, nonce, call)

    def _add_statement(self, entry: _Topic[MemberT]) -> bool:
        """Add members to state again to the changes; return whether they are all."""
        first = entry.to_state is None
        if entry.to_state is None:
            entry.to_state = {ref: id_ for ref, (id_, _) in entry.local.items()}
            entry.to_state |= {ref: id_ for ref, (id_, _) in entry.lingering.items()}
        left = max(0, MAX_FLUSHED - len(entry.changes))
        for ref, id_ in list(islice(entry.to_state.items(), left)):
            del entry.to_state[ref]
            if ref in entry.local or ref in entry.lingering:
                entry.changes[ref] = (id_, True)
        return first and not entry.to_state

    def _ask(self, entry: _Topic[MemberT]) -> str:
        """Begin to load the members of a topic, and return the nonce of the marker."""
        self._nonces += 1
        entry.state, entry.to_state = _State.LOADING, None
        entry.nonce = f"{self.session}.{self._nonces}"
        entry.answer, entry.marked, entry.waited = None, False, 0
        entry.behind.clear()
        return entry.nonce

    def _moved(self, entry: _Topic[MemberT], joins: Mapping[str, str]) -> dict[str, str]:
        """Return the members that have moved.

        Their ids join, and they linger or their session has ended.
        """
        if not (self._ended or entry.lingering):
            return {}
        sessions, joining = entry.sessions, set(joins.values())
        moved = {ref: id_ for ref, (id_, _) in entry.lingering.items() if id_ in joining and ref not in joins}
        for id_ in joining if self._ended else ():
            moved |= {ref: id_ for ref in entry.members.refs(id_) if sessions.get(ref) in self._ended}
        return moved

    def answered(self, flush: Flush, answer: Any) -> None:
        """Take Redis' answer to a flush."""
        entry = self._landed(flush)
        if entry is None:
            return
        snapshot = parse_flush(answer)
        if snapshot is None:
            self._settle_alone(entry)
        elif flush.nonce and entry.nonce == flush.nonce:
            entry.answer = snapshot
            self._finish_loading(entry)
        if not (entry.local or entry.changes or entry.unconfirmed or entry.lingering):
            del self._topics[entry.name]
            self._dirty.pop(entry.name, None)

    def failed(self, flush: Flush) -> None:
        """Note that a flush may have been applied or not; the next one repeats its members."""
        entry = self._landed(flush)
        if entry is None:
            return
        entry.unconfirmed |= {**flush.joins, **flush.leaves}
        self._dirty[entry.name] = None
        if flush.nonce and entry.nonce == flush.nonce and entry.local:
            entry.state, entry.to_state = _State.COLD, None

    def _landed(self, flush: Flush) -> _Topic[MemberT] | None:
        entry = self._topics.get(flush.topic)
        if entry is None or entry.flying is not flush:
            return None
        entry.flying = None
        return entry

    def _settle_alone(self, entry: _Topic[MemberT]) -> None:
        """Use the members of this node, because this Redis knows no others."""
        entry.members, entry.sessions = MemberList(), {}
        for ref, (id_, _) in entry.local.items():
            entry.members.add(id_, ref)
        entry.count = entry.members.count
        entry.state = _State.READY
        self._admit(entry)

    # Changes of all nodes, from Redis.

    def take_stamp(self, payload: bytes) -> None:
        """Take a message on ``to:phoenix:who``."""
        stamp = parse_stamp(payload)
        if stamp is None:
            return
        if stamp.e is not None:
            self.note_ended(stamp.e)
            self.on_ended(stamp.e)
            return
        if stamp.x and stamp.s == self.session:
            self.announce()
        entry = self._topics.get(stamp.t)
        if entry is None:
            return
        if stamp.m is not None:
            if entry.state is _State.LOADING and stamp.m == entry.nonce:
                entry.marked = True
                self._finish_loading(entry)
        elif stamp.d:
            entry.stamp = stamp
        else:
            self._take(entry, stamp, b"")

    def take_difference(self, topic: str, payload: bytes) -> bool:
        """Take a difference, and return whether the members of the topic get it.

        One without a stamp does not come from the functions. It is not on the roll, and members get it as any
        message.
        """
        entry = self._topics.get(topic)
        if entry is None or entry.stamp is None:
            return True
        stamp, entry.stamp = entry.stamp, None
        return self._take(entry, stamp, payload)

    def _take(self, entry: _Topic[MemberT], stamp: PresenceStamp, payload: bytes) -> bool:
        """Take a change; return whether members get its difference."""
        if entry.state is _State.LOADING and entry.marked:
            entry.behind.append((stamp, payload))
        if entry.state is not _State.READY:
            return False
        if not self._apply(entry, stamp, payload):
            self._load_again(entry)
            return False
        if not entry.counting and entry.count != entry.members.count:
            self._load_again(entry)
        return bool(payload) and not entry.counting

    def _apply(self, entry: _Topic[MemberT], stamp: PresenceStamp, payload: bytes) -> bool:
        """Carry out a change; return whether it follows from the members that are known."""
        follows = stamp.p == entry.version or (stamp.p == 0 and not entry.count)
        if not follows or (entry.counting and not stamp.k):
            return False
        if payload:
            try:
                joins, leaves = parse_metas(payload)
            except ValueError:
                return False
            self._merge(entry, joins, leaves, stamp.s)
        elif stamp.k and not entry.counting:
            self._show_number(entry)
        entry.version, entry.count = stamp.v, stamp.c
        if entry.counting:
            self._counted[entry.name] = None
        return True

    def _merge(
        self,
        entry: _Topic[MemberT],
        joins: Iterable[tuple[str, str]],
        leaves: Iterable[tuple[str, str]],
        session: str,
    ) -> None:
        entering = []
        for id_, ref in joins:
            entry.members.add(id_, ref)
            entry.sessions[ref] = session
            member = entry.pending.pop(ref, None)
            if member is not None:
                entering.append(member)
        for id_, ref in leaves:
            entry.members.remove(id_, ref)
            entry.sessions.pop(ref, None)
            if ref in entry.local or ref in entry.lingering:
                entry.unconfirmed[ref] = id_
                self._make_dirty(entry)
        if entering:
            self._make_ready(entry, entering)

    def _show_number(self, entry: _Topic[MemberT]) -> None:
        """Forget the list of a topic that shows the number of its members."""
        entry.counting, entry.number = True, -1
        entry.members, entry.sessions = MemberList(), {}
        self._counted[entry.name] = None
        entering = list(entry.pending.values())
        entry.pending.clear()
        self._make_ready(entry, entering)

    def _make_ready(self, entry: _Topic[MemberT], members: Iterable[MemberT]) -> None:
        entry.ready.update(dict.fromkeys(members))
        if entry.ready:
            self._waiting.setdefault(entry.name)
            self.wake()

    def _admit(self, entry: _Topic[MemberT]) -> None:
        """Let the newcomers that are on the roll have the state."""
        if entry.counting:
            entering = list(entry.pending)
        else:
            entering = [ref for ref in entry.pending if (entry.local[ref][0], ref) in entry.members]
        self._make_ready(entry, [entry.pending.pop(ref) for ref in entering])

    def _load_again(self, entry: _Topic[MemberT]) -> None:
        if entry.local:
            entry.state, entry.to_state = _State.COLD, None
            entry.stamp = None
            self._make_dirty(entry)

    def _make_dirty(self, entry: _Topic[MemberT]) -> None:
        self._dirty[entry.name] = None
        self.wake()

    def _finish_loading(self, entry: _Topic[MemberT]) -> None:
        """Use the answer of Redis once its marker has come, and the changes behind that."""
        answer = entry.answer
        if entry.state is not _State.LOADING or not entry.marked or answer is None:
            return
        before, was_counting = entry.members, entry.counting
        behind, entry.behind = entry.behind, []
        entry.state, entry.answer, entry.nonce = _State.READY, None, ""
        entry.version, entry.count, entry.counting = answer.version, answer.size, answer.counting
        self._use(entry, answer.members or {})
        if entry.counting:
            entry.number = entry.number if was_counting else -1
            self._counted[entry.name] = None
        if not all(self._apply(entry, stamp, payload) for stamp, payload in behind):
            self._load_again(entry)
        if was_counting and not entry.counting:
            # Members that had the number now get the list.
            entry.ready.clear()
            self._waiting.pop(entry.name, None)
            entry.pending.update({ref: member for ref, (_, member) in entry.local.items()})
        elif not entry.counting:
            self._correct(entry, before)
        self._admit(entry)

    def _use(self, entry: _Topic[MemberT], members: Mapping[str, Member]) -> None:
        entry.members = MemberList()
        entry.sessions = {ref: member.session for ref, member in members.items()}
        for ref, member in members.items():
            entry.members.add(member.id, ref)
        if entry.counting:
            return
        flying = () if entry.flying is None else entry.flying.joins
        for ref, (id_, _) in entry.local.items():
            if ref not in members and ref not in entry.changes and ref not in flying:
                entry.unconfirmed[ref] = id_
                self._make_dirty(entry)
        self._remove_stale(entry, members)
        moved = self._moved(entry, {ref: id_ for ref, (id_, _) in entry.local.items()})
        if moved:
            entry.unconfirmed |= moved
            for ref in moved:
                entry.lingering.pop(ref, None)
            self._make_dirty(entry)

    def _remove_stale(self, entry: _Topic[MemberT], members: Mapping[str, Member]) -> None:
        """Let members leave that Redis still has of this session.

        A statement in several calls has not removed them.
        """
        flying = () if entry.flying is None else {**entry.flying.joins, **entry.flying.leaves}
        for ref, member in members.items():
            here = ref in entry.local or ref in entry.lingering or ref in entry.changes or ref in flying
            if member.session == self.session and not here:
                entry.unconfirmed[ref] = member.id
                self._make_dirty(entry)

    def _correct(self, entry: _Topic[MemberT], before: MemberList) -> None:
        """Note the difference between the members that clients know and those of now."""
        joins = {ref: id_ for id_, ref in entry.members if (id_, ref) not in before}
        leaves = {ref: id_ for id_, ref in before if (id_, ref) not in entry.members}
        if (joins or leaves) and len(entry.pending) + len(entry.ready) < len(entry.local):
            payload = encode_json({"joins": to_metas(joins), "leaves": to_metas(leaves)})
            self._corrections.append((entry.name, payload))

    def take_corrections(self) -> Sequence[tuple[str, bytes]]:
        """Return topic and difference of the topics whose members have missed differences."""
        found, self._corrections = self._corrections, []
        return found

    # Sessions and the connection.

    def note_ended(self, session: str) -> None:
        """Note that a session has ended, whose members may join again elsewhere."""
        self._ended[session] = None
        if len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def announce(self) -> None:
        """State all members of this node again: differences or data on Redis may be lost."""
        for entry in self._topics.values():
            entry.state, entry.stamp, entry.to_state = _State.COLD, None, None
            self._make_dirty(entry)

    def tick(self) -> None:
        """Let the time go on by a second.

        Members whose answer or marker has not come are asked for again, and lingering ones leave after the
        grace.
        """
        for entry in self._topics.values():
            for ref, (id_, left) in list(entry.lingering.items()):
                entry.lingering[ref] = (id_, left - 1)
                if left <= 1:
                    del entry.lingering[ref]
                    entry.unconfirmed[ref] = id_
                    self._make_dirty(entry)
            suspect, entry.suspect = entry.suspect, None
            if suspect == entry.version and entry.state is _State.READY:
                self._load_again(entry)
            if entry.state is _State.LOADING and entry.flying is None:
                entry.waited += 1
                if entry.waited >= PATIENCE:
                    self._load_again(entry)

    def next_audit(self) -> str | None:
        """Return the topic to compare with Redis next; each topic has its turn."""
        ready = (entry for entry in self._topics.values() if entry.state is _State.READY)
        entry = min(ready, key=lambda one: one.audited, default=None)
        if entry is None:
            return None
        self._audits += 1
        entry.audited = self._audits
        return entry.name

    def audited(self, topic: str, version: int) -> None:
        """Take the version of a topic on Redis; a tick later the roll must have it."""
        entry = self._topics.get(topic)
        if entry is not None and entry.state is _State.READY and version != entry.version:
            entry.suspect = entry.version

    # States, for the hub.

    def state(self, topic: str) -> bytes:
        """Return all members of a topic, as JSON text."""
        entry = self._topics.get(topic)
        return b"{}" if entry is None else entry.members.encode()

    def known(self, topic: str) -> MemberList | None:
        """Return the members of a topic if they are known here now; else None."""
        entry = self._topics.get(topic)
        known = entry is not None and entry.state is _State.READY and not entry.counting
        return entry.members if entry is not None and known else None

    def newcomers(self, topic: str) -> Collection[MemberT]:
        """Return the members of a topic that wait for its state."""
        entry = self._topics.get(topic)
        if entry is None:
            return ()
        if not entry.pending:
            return entry.ready.keys()
        return {**entry.ready, **dict.fromkeys(entry.pending.values())}.keys()

    def take_newcomers(self, topic: str, count: int) -> list[MemberT]:
        """Return up to ``count`` newcomers, which get the state now, in turn by topic."""
        entry = self._topics[topic]
        ready = entry.ready
        taken = list(islice(ready, count))
        if entry.counting and entry.number != entry.count:
            entry.number = -1  # these have another number than the others
            self._counted[topic] = None
        for member in taken:
            del ready[member]
        del self._waiting[topic]
        if ready:
            self._waiting[topic] = None
        return taken

    def number(self, topic: str) -> int | None:
        """Return the number of members of a topic that shows it instead of the list; else None."""
        entry = self._topics.get(topic)
        return None if entry is None or not entry.counting else entry.count

    def present(self, topic: str) -> int | None:
        """Return the number of members of a topic; None if the topic has no presence."""
        if not self.rules.tracks(topic):
            return None
        entry = self._topics.get(topic)
        return 0 if entry is None else entry.count

    def take_numbers(self) -> Sequence[tuple[str, int]]:
        """Return topic and number of the topics whose number has changed since the last call."""
        found: list[tuple[str, int]] = []
        for topic in self._counted:
            entry = self._topics.get(topic)
            if entry is not None and entry.counting and entry.number != entry.count:
                entry.number = entry.count
                found.append((topic, entry.number))
        self._counted.clear()
        return found
