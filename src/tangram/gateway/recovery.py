"""Recovery: joins that ask for the messages that they missed.

1. A join is answered when both Redis' answer and the marker of the same step are here. The marker is the
   place in the feed where the member goes live: messages before it are in the answer, or wait to be recorded,
   and messages after it are delivered to the member.
2. Joins of one topic from one position that come together share one read, and the encoded messages.
3. A topic with messages of plain ``PUBLISH`` is served once this node is in step with the recorder: before,
   messages without a record could be missing unnoticed.
4. Members enter in slices, one slice in each pass of the event loop: the messages of 1,000 members are 25 MB.
   Messages that come meanwhile are kept for the members that have not entered yet.
5. A join without an answer after ``TIMEOUT`` seconds is refused as unavailable, and the client tries again.
6. A group has a task, and its joins have none. A task for each of 1,000 members took a fifth of the time of
   their recovery: its objects made the garbage collector begin a full pass, of 14 ms and more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

import attrs
import structlog
import trio

from tangram.bus.scripts import FunctionCall
from tangram.channels.catchup import Catchup
from tangram.channels.disconnects import UNAVAILABLE
from tangram.channels.hub import POSITION, Hub
from tangram.channels.socket import Authorize, Effect, Socket
from tangram.errors import BrokerUnavailable
from tangram.history.feed import Delivery, Feed, Gap, Live
from tangram.history.position import Position
from tangram.history.replay import Replay, parse_replay, read_call
from tangram.history.rules import STAMPS, History, Rules
from tangram.history.stamps import hello

__all__ = ["NO_POSITION", "RESULTS", "CallRedis", "Recovery", "answer_without_history"]

RESULTS: Final = ("recovered", "first", "epoch", "too_old", "too_much", "unavailable")
"""Results of joins that ask for positions: nothing was missed, a first join, three reasons, no answer."""

log = structlog.get_logger("tangram.channels")

MARKER_TIMEOUT: Final = 2.0
"""Seconds for Redis' answer and its marker."""
TIMEOUT: Final = 6.0
"""Seconds for a join; phoenix.js gives up after ten."""
RETRY: Final = 0.05
"""Seconds before a join is tried again: its outbox was full, or this node was not in step."""
HELLO_INTERVAL: Final = 0.5
"""Seconds between attempts to get in step with the recorder."""
SWEEP_INTERVAL: Final = 1.0
"""Seconds between looks for topics that have no members with positions any more."""
GROUP: Final = 200
"""Members that share one read."""
SLICE: Final = 1024 * 1024
"""Bytes that the members of one slice are sent: about two milliseconds."""
ENTRY: Final = 16 * 1024
"""Bytes that the entry of a member counts for beside its messages: the reply, and the presence."""
READS: Final = 8
"""Reads at once; meanwhile further joins gather into groups."""

NO_POSITION: Final = "none"
"""A position of no epoch: the next join with it is told that it may have missed messages."""

CallRedis = Callable[[FunctionCall], Awaitable[Any]]


class _Session(Protocol):
    """The part of a session that a recovery uses."""

    socket: Socket

    def carry_out(self, effects: Sequence[Effect]) -> None: ...


@attrs.define(eq=False)
class _Join:
    """One member that waits for its messages."""

    session: _Session
    request: Authorize
    id: str
    deadline: float
    """The time at which it is refused."""
    answered: bool = False

    @property
    def waits(self) -> bool:
        """Whether the client still waits for an answer."""
        return not self.answered and self.session.socket.waits(self.request)


@attrs.define(eq=False)
class _Group:
    """Joins that share one read."""

    topic: str
    since: str
    history: History
    joins: list[_Join] = attrs.Factory(list)
    replay: Replay | None = None
    live: Live | None = None
    tail: list[tuple[str, bytes]] = attrs.Factory(list)
    """Events of the topic after the marker, for members that have not entered yet."""
    position: str = ""
    """The last position in the tail."""
    failed: bool = False
    uncertain: bool = False
    """Whether it could not be answered because this node is not in step with the recorder."""
    complete: trio.Event = attrs.Factory(trio.Event)
    """Set once both the answer and the marker are here, or the read has failed."""
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    """Ends with the first deadline of the joins."""

    @property
    def progress(self) -> tuple[int, str]:
        """The number of kept events, and the position behind them."""
        return len(self.tail), self.position

    def fail(self) -> None:
        """Let the members that have not entered yet try again."""
        self.failed = True
        self.complete.set()


class Recovery:
    """The joins of one node that ask for positions, and the feed that they enter.

    Args:
        rules: which topics have a history.
        call: calls a function on Redis.
        hub: the hub of the members.
        publish: publishes messages without waiting.
        new_name: returns a name that no other node has.
        nudge: called before messages of topics with a history are delivered; it must not block.
    """

    def __init__(
        self,
        rules: Rules,
        call: CallRedis,
        hub: Hub,
        publish: Callable[[Sequence[tuple[str, bytes]]], None],
        *,
        new_name: Callable[[], str],
        nudge: Callable[[], None] = lambda: None,
        turns: trio.Lock | None = None,
    ) -> None:
        self._rules = rules
        self._call = call
        self._hub = hub
        hub.is_kept = self._is_kept
        self._publish = publish
        self._nudge = nudge
        self.results = dict.fromkeys(RESULTS, 0)
        """Joins that asked for positions, by result."""
        self._name = new_name()
        self._reads = 0
        self._feed = Feed(rules, self._name)
        self._open: dict[str, _Group] = {}
        """Groups by the nonce of their marker."""
        self._waiting: dict[tuple[str, str], _Group] = {}
        """Groups that still take joins, by topic and position."""
        self._limit = trio.CapacityLimiter(READS)
        self._turns = turns or trio.Lock()
        """Handed over in each pass of the event loop, so that one slice enters in each."""
        self._in_step = trio.Event()
        """Set whenever this node gets in step; replaced by each join that waits for it."""
        self._restart = trio.Event()
        """Set when Redis is back, so that the next hello is sent at once."""

    def serves(self, request: Authorize) -> bool:
        """Return whether a join asks for positions, and its topic has a history."""
        return request.recover is not None and self._rules.find(request.topic) is not None

    # The feed.

    def _is_kept(self, channel: bytes) -> bool:
        return channel == STAMPS or self._rules.place(channel) is not None

    def deliver(self, batch: Sequence[tuple[bytes, bytes]]) -> None:
        """Deliver a batch of the bus; members go live at their places in it."""
        self._publish(self._hub.deliver(batch, until_kept=True))
        if not self._hub.rest:
            return
        # The recorder's look costs least now, and what Redis answers to it comes during the delivery.
        self._nudge()
        for step in self._feed.take(self._hub.rest):
            if isinstance(step, Delivery):
                if self._open:
                    self._keep_tails(step.batch)
                self._publish(self._hub.deliver(step.batch))
            elif isinstance(step, Live):
                self._go_live(step)
            else:
                self._report_gap(step)
        if self._feed.unrecorded.recorder is not None:
            self._in_step.set()

    def _keep_tails(self, batch: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep messages for groups behind their marker, until all members have entered."""
        tails = [group for group in self._open.values() if group.live is not None]
        for channel, payload in batch if tails else ():
            if channel == POSITION:
                topic, _, position = payload.partition(b"\0")
                for group in tails:
                    if group.topic.encode() == topic:
                        group.position = position[7:-2].decode()
                continue
            place = self._rules.place(channel)
            for group in tails:
                if place is not None and place.topic == group.topic:
                    group.tail.append((place.event, payload))

    def _go_live(self, live: Live) -> None:
        group = self._open.get(live.nonce)
        if group is None:
            return
        group.live = live
        if group.replay is not None:
            group.complete.set()

    def _report_gap(self, gap: Gap) -> None:
        """Make the members join again, and the joins that have passed their marker begin anew."""
        if self._hub.has_followers(gap.topic):
            log.warning("positions are not continuous, members join again", topic=gap.topic)
        for group in self._open.values():
            if group.topic == gap.topic and group.live is not None:
                group.fail()
        self._publish(self._hub.expel_followers(gap.topic))

    def interrupted(self) -> None:
        """Note that messages may have been missed: markers as well."""
        self._feed.interrupted()
        for group in self._open.values():
            group.fail()

    def restored(self) -> None:
        """Get in step now: Redis is back."""
        self._restart.set()

    async def run(self) -> None:
        """Get in step with the recorder, and forget topics without members, until cancelled."""
        swept = trio.current_time()
        while True:
            if self._hub.available and self._feed.unrecorded.recorder is None:
                nonce = self._feed.unrecorded.next_hello()
                self._publish([(STAMPS.decode(), hello(nonce))])
            with trio.move_on_after(HELLO_INTERVAL):
                await self._restart.wait()
            self._restart = trio.Event()
            if trio.current_time() - swept >= SWEEP_INTERVAL:
                swept = trio.current_time()
                self._sweep()

    def _sweep(self) -> None:
        entering = {group.topic for group in self._open.values()}
        for topic in list(self._feed.followed):
            if topic not in entering and not self._hub.has_followers(topic):
                self._feed.unfollow(topic)

    def _unfollow_idle(self, leaving: _Group) -> None:
        """Follow a topic no longer, unless members have entered or another group will."""
        entering = any(
            group is not leaving and group.topic == leaving.topic and group.live is not None
            for group in self._open.values()
        )
        if not entering and not self._hub.has_followers(leaving.topic):
            self._feed.unfollow(leaving.topic)

    # Joins.

    def enter(self, session: _Session, request: Authorize, id_: str, nursery: trio.Nursery) -> None:
        """Answer a join that asks for positions, by tasks in ``nursery``."""
        self._gather(_Join(session, request, id_, trio.current_time() + TIMEOUT), nursery)

    def _gather(self, join: _Join, nursery: trio.Nursery) -> None:
        """Add a join to the next read from its position."""
        key = topic, since = join.request.topic, join.request.recover or ""
        group = self._waiting.get(key)
        if group is None:
            history = self._rules.find(topic)
            assert history is not None
            room = join.session.socket.outbox.max_backlog // 8 * 7
            bounded = attrs.evolve(history, max_bytes=max(1024, min(history.max_bytes, room)))
            group = self._waiting[key] = _Group(topic, since, bounded)
            nursery.start_soon(self._serve, group, nursery)
        group.joins.append(join)
        group.scope.deadline = min(group.scope.deadline, join.deadline)
        if len(group.joins) >= GROUP:
            del self._waiting[key]

    async def _serve(self, group: _Group, nursery: trio.Nursery) -> None:
        """Read once for a group; joins without an answer try again until their deadlines."""
        with group.scope:
            async with self._limit:
                await self._read(group)
        self._close(group)
        waiting = [join for join in group.joins if join.waits]
        if not waiting:
            return
        with trio.move_on_at(min(join.deadline for join in waiting)):
            if group.uncertain:
                await self._wait_in_step()
            else:
                await trio.sleep(RETRY)
        now = trio.current_time()
        for join in waiting:
            if not join.waits:
                continue
            if now >= join.deadline:
                self._refuse(join)
            else:
                self._gather(join, nursery)

    def _refuse(self, join: _Join) -> None:
        self.results["unavailable"] += 1
        join.session.carry_out(join.session.socket.authorized(join.request, UNAVAILABLE))

    def _close(self, group: _Group) -> None:
        """Let a group take no more joins."""
        if self._waiting.get((group.topic, group.since)) is group:
            del self._waiting[group.topic, group.since]

    async def _wait_in_step(self) -> None:
        if self._feed.unrecorded.recorder is None:
            self._in_step = trio.Event() if self._in_step.is_set() else self._in_step
            await self._in_step.wait()

    async def _read(self, group: _Group) -> None:
        """Send the read of a group, wait for its answer and its marker, and let the members enter."""
        await trio.lowlevel.checkpoint()  # joins of the same pass of the scheduler are added meanwhile
        self._close(group)
        self._reads += 1
        nonce = f"{self._name}.{self._reads}"
        self._open[nonce] = group
        self._feed.expected.add(nonce)
        try:
            with trio.move_on_after(MARKER_TIMEOUT):
                call = read_call(self._rules, group.topic, group.history, group.since, nonce)
                answer = await self._call(call)
                if not group.failed:
                    group.replay = parse_replay(answer)
                    if group.live is not None:
                        group.complete.set()
                    await group.complete.wait()
                    await self._enter_all(group)
        except BrokerUnavailable as error:
            log.debug("history not read", topic=group.topic, cause=str(error))
        finally:
            del self._open[nonce]
            self._feed.expected.discard(nonce)

    async def _enter_all(self, group: _Group) -> None:
        """Let the members of a group enter, once both the answer and the marker are here."""
        replay, live = group.replay, group.live
        if replay is None or live is None or group.failed:
            return
        if not replay.certain and not live.in_step:
            group.uncertain = True
            self._unfollow_idle(group)
            return
        waiting = deque(group.joins)
        made, catchup = group.progress, _catchup(group, replay, live)
        while waiting:
            async with self._turns:
                pass  # the lock is handed over to the next group, whose slice is in the next pass
            if group.failed:
                return
            if made != group.progress:
                made, catchup = group.progress, _catchup(group, replay, live)
            self._enter_some(waiting, catchup)

    def _enter_some(self, waiting: deque[_Join], catchup: Catchup) -> None:
        """Let the first members enter: as many as one slice takes, and at least one."""
        cost = ENTRY + sum(len(payload) for _, payload in catchup.events)
        for _ in range(min(len(waiting), max(1, SLICE // cost))):
            self._enter(waiting.popleft(), catchup)

    def _enter(self, join: _Join, catchup: Catchup) -> None:
        socket = join.session.socket
        if not socket.waits(join.request):
            return
        if not self._hub.has_room(socket.membership(join.request, join.id), catchup):
            if socket.outbox.pending:
                return  # it tries again when the client has read more
            response = {"position": catchup.position, "recovered": False, "reason": "too_much"}
            catchup = Catchup(response, [], catchup.position)
        join.answered = True
        reason = catchup.response.get("reason", "first")
        self.results["recovered" if catchup.response["recovered"] else str(reason)] += 1
        join.session.carry_out(socket.authorized(join.request, join.id, catchup))


def answer_without_history(request: Authorize) -> Catchup | None:
    """Return the reply's fields for a join with a position on a topic that has no history.

    The topic had one, perhaps before a reload. None for a join without a position.
    """
    if not request.recover:
        return None
    response = {"position": NO_POSITION, "recovered": False, "reason": "epoch"}
    return Catchup(response, [], NO_POSITION, follows=False)


def _catchup(group: _Group, replay: Replay, live: Live) -> Catchup:
    """Return the messages that the members of a group get, and the fields of their replies.

    The reply has the position before the events, so that a client that loses its connection between the reply
    and the events asks for them again.
    """
    events = list(replay.events)
    if replay.recovered or group.history.mode == "latest":
        events += [(entry.event, entry.payload) for entry in live.waiting]
    position = group.position or str(replay.position)
    events += group.tail
    before = str(replay.position)
    if replay.recovered:
        before = group.since
    elif events and group.history.mode == "latest":
        before = str(Position(replay.position.epoch, 0))
    return Catchup({**replay.response(), "position": before}, events, position)
