"""The channels child of an incarnation: hub, gate and all channel connections.

It knows no transport: a transport calls ``admit`` and ``connect``, feeds frames to the session, and empties
the outbox. Everything here is synchronous except the timers and ``drain``.
"""

from __future__ import annotations

import secrets
import string
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from heapq import nsmallest
from typing import Final

import attrs
import structlog
import trio

from tangram.channels.disconnects import (
    BUSY,
    CRASH,
    DISCONNECTED,
    GONE,
    IDLE,
    RESTART,
    UNAVAILABLE,
    Disconnect,
    Party,
    Refusal,
)
from tangram.channels.frames import FrameError
from tangram.channels.hub import Hub, HubStatistics
from tangram.channels.origins import OriginPolicy
from tangram.channels.outbox import Outbox
from tangram.channels.policy import Authorizer, ConnectInfo, Gate
from tangram.channels.socket import Authorize, SocketCounters
from tangram.channels.streaming import StreamWatch
from tangram.errors import BrokerUnavailable
from tangram.gateway.admission import Admission, read_upgrade
from tangram.gateway.connections import ConnectionStatistics, statistics_of
from tangram.gateway.joining import DIRECT, RECOVERY, Joining
from tangram.gateway.node_presence import NodeParts, NodePresence
from tangram.gateway.presence import PresenceSender
from tangram.gateway.publishing import Backpressure, Batch, Done, PublishAll
from tangram.gateway.pushes import DeclaredPushes
from tangram.gateway.recovery import CallRedis, Recovery, answer_without_history
from tangram.gateway.session import Session
from tangram.gateway.settings import ChannelSettings, presence_rules
from tangram.history.rules import Rules
from tangram.log_limit import LogLimit
from tangram.pieces import Pieces
from tangram.ticks import next_tick
from tangram.turns import Turns

__all__ = ["Channels", "ChannelsStatistics", "DisconnectCount"]

log = structlog.get_logger("tangram.channels")

SWEEP_INTERVAL: Final = 1.0
"""Seconds between two checks for idle connections and vanished streams."""
DRAIN_BATCH: Final = 50
"""Connections closed at once. phoenix.js reconnects after 10 ms without jitter, so that closing 1,000 at
once would bring 1,000 upgrades at once."""
DRAIN_PAUSE: Final = 0.02
"""Seconds between two batches."""
DEFERRED_DRAIN_PAUSE: Final = 0.05
"""Seconds before the first batch if it goes on beside the next incarnation, whose start goes first."""
JOIN_TIME: Final = 1.0
"""Seconds after its connect in which a client that is about to join does so: phoenix.js joins at once, but
both sides may be busy when many clients come back."""
JOIN_LOOK: Final = 0.02
"""Seconds between two looks for such clients at a stop."""
DRAIN_TIMEOUT: Final = 3.0
"""Seconds for the connections to take their close frames when the child is stopped."""
_ALPHABET: Final = string.ascii_letters + string.digits
_EVEN: Final = 256 - 256 % len(_ALPHABET)
"""Bytes below it are evenly spread over the alphabet."""


@attrs.frozen
class DisconnectCount:
    """The number of connections that ended in one way."""

    code: int
    reason: str
    count: int


@attrs.frozen
class ChannelsStatistics:
    """Numbers of the channels, since the incarnation began unless they say "now"."""

    hub: HubStatistics
    connections: int
    """Connections now."""
    accepted: int
    """Connections ever."""
    frames: int
    """Frames received on the connections of now."""
    malformed: int
    """Frames that were not messages, on the connections of now."""
    pending: int
    """Bytes in all outboxes now."""
    furthest_behind: int
    """Bytes in the fullest outbox now."""
    closed: Mapping[str, int]
    """Number of closed connections for each reason."""
    disconnects: tuple[DisconnectCount, ...]
    """The same by code and reason."""
    received: int
    """Frames received on all connections ever."""
    conflated: int
    """Messages that were replaced by a newer one of the same key."""
    pushes: Mapping[str, int]
    """Pushes by result: ``ok``, ``failed`` (Redis has not taken them), ``refused``."""
    joins: Mapping[str, int]
    """Joins by result: ``ok``, ``refused``."""
    recoveries: Mapping[str, int]
    """Joins that asked for positions by result; empty if no topic has a history."""


class Channels:
    """Hub, gate and connections of one incarnation; ``run`` starts the timers.

    Args:
        settings: the section ``[channel]``.
        secret: the key with which tokens are signed.
        publish_all: ``publish_all(messages, done)`` hands messages to the bus; it must not block.
        origins: the pages that may use the server; by default those of loopback.
        operator_token: the bearer token of the operator.
        authorizers: the ``authorize`` functions of plugins.
        up: whether Redis is available already.
        streaming_grace: seconds without members after which ``leave-streaming`` is published for a
            stream; None for never.
        wall_clock: returns seconds since 1970.
        new_id: returns a new connection id or external id.
        drain_timeout: seconds for the connections to take their close frames when the child is stopped.
        outer_nursery: a nursery that outlives this child. Connections that are open when the child ends
            are closed there, so that the child's end does not wait for them.
        backpressure: returns the bus, which is asked before more is read from a connection.
        history: which topics have a history.
        call: calls a function on Redis.
        nudge: called when a batch has messages that are kept in a history; it must not block.
        declared: the handlers of pushes that plugins have declared.
        nodes: the other nodes, if there may be any.
    """

    ended = False
    """Whether the child has ended; frames of connections that are still open are then ignored."""
    close_reason: Disconnect = RESTART
    """The disconnect of all connections when this child is stopped; ``SHUTDOWN`` if no child follows."""

    def __init__(
        self,
        settings: ChannelSettings,
        secret: str,
        publish_all: PublishAll,
        *,
        origins: OriginPolicy | None = None,
        operator_token: str | None = None,
        authorizers: Sequence[Authorizer] = (),
        up: bool = True,
        streaming_grace: float | None = None,
        wall_clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] | None = None,
        drain_timeout: float = DRAIN_TIMEOUT,
        outer_nursery: trio.Nursery | None = None,
        backpressure: Callable[[], Backpressure | None] = lambda: None,
        history: Rules | None = None,
        call: CallRedis | None = None,
        nudge: Callable[[], None] = lambda: None,
        declared: DeclaredPushes | None = None,
        nodes: NodeParts | None = None,
    ) -> None:
        self.settings = settings
        self.declared = declared
        """The handlers of pushes; None if no plugin has declared any."""
        self.new_id = new_id or partial(_random_id, settings.id_length)
        self._rules = presence_rules(settings.presence)
        self._nodes = self._make_node_presence(nodes, call)
        self.hub = self._make_hub(settings, up=up)
        self._has_gap = not up
        """Whether messages were missed that no member has been notified of."""
        self.gate = Gate(
            settings,
            secret,
            origins=origins or OriginPolicy(),
            new_id=self.new_id,
            clock=wall_clock,
            operator_token=operator_token,
            authorizers=authorizers,
        )
        self._publish_all = publish_all
        self._sessions: dict[str, Session] = {}
        self._nursery: trio.Nursery | None = None
        self._joining = Joining(self._check_next)
        self._presence = self._make_presence(settings)
        self._empty = trio.Event()
        self._draining = False
        self._drain_timeout = drain_timeout
        self._outer_nursery = outer_nursery
        self._backpressure = backpressure
        self.turns = Turns(self._note_slowed)
        """The turns for frames that cost more than one step."""
        self._streams = None if streaming_grace is None else StreamWatch(streaming_grace)
        self._recovery = self._make_recovery(history, call, nudge)
        self._log_limit = LogLimit()
        self._closed: dict[Disconnect, int] = {}
        self.counters = SocketCounters()
        """Counters of all connections together."""
        self._accepted = self._frames_of_ended = self._conflated_of_ended = 0

    def _make_hub(self, settings: ChannelSettings, *, up: bool) -> Hub:
        hub = Hub(
            presence=self._rules is not None,
            presence_rules=self._rules,
            shared=None if self._nodes is None else self._nodes.roll,
            conflate=settings.conflate,
            broadcast_join_ref=settings.broadcast_join_ref,
        )
        hub.available = up
        return hub

    def _make_node_presence(self, nodes: NodeParts | None, call: CallRedis | None) -> NodePresence | None:
        if nodes is None or call is None or self._rules is None:
            return None
        return NodePresence(nodes, call, self._rules)

    def _make_presence(self, settings: ChannelSettings) -> PresenceSender:
        return PresenceSender(
            self.hub,
            settings.presence_rate,
            self.publish,
            self.wait_uncongested,
            joining=self._joining,
            nodes=self._nodes,
        )

    def _make_recovery(
        self, history: Rules | None, call: CallRedis | None, nudge: Callable[[], None]
    ) -> Recovery | None:
        if not history or call is None:
            return None
        return Recovery(
            history,
            call,
            self.hub,
            self._announce,
            new_name=secrets.token_hex,
            nudge=nudge,
            turns=self._presence.turns,
        )

    # Called by transports.

    def admit(
        self, info: ConnectInfo, query_string: bytes, subprotocols: Sequence[str] = ()
    ) -> Admission | Refusal:
        """Return whether a request may become a WebSocket.

        Ask before the upgrade is accepted: a client whose connection is accepted and then closed reconnects
        every 10 ms.
        """
        if self._draining:
            return BUSY
        return self.gate.check_upgrade(info) or read_upgrade(query_string, subprotocols)

    def connect(self, info: ConnectInfo, admission: Admission, wake: Callable[[], None]) -> Session:
        """Register a new connection.

        Args:
            info: the request of the upgrade.
            admission: the answer of ``admit``.
            wake: called when the connection's outbox has work; it must not block.
        """
        conn = self.new_id()
        while conn in self._sessions:
            conn = self.new_id()
        settings = self.settings
        outbox = Outbox(
            wake,
            max_backlog=settings.max_backlog,
            max_exempt=settings.max_joins,
            serializer=admission.serializer,
        )
        session = Session(self, conn, info, admission.user_token, outbox)
        self._sessions[conn] = session
        self._accepted += 1
        if self._draining:
            outbox.close(self.close_reason)
        return session

    # Called by sessions.

    def disconnected(self, session: Session) -> None:
        """Forget a connection that has ended, and leave all its topics."""
        if self._sessions.pop(session.conn, None) is None:
            return
        session.outbox.close(GONE)
        assert session.outbox.disconnect is not None
        disconnect = session.outbox.disconnect
        reason = disconnect.reason
        self._closed[disconnect] = self._closed.get(disconnect, 0) + 1
        self._frames_of_ended += session.socket.frames
        self._conflated_of_ended += session.outbox.conflated
        if disconnect.at_fault is Party.CLIENT:
            self._log_client("client disconnected", session, reason, code=disconnect.code, reason=reason)
        if not self.ended:
            session.carry_out(session.socket.gone())
        if not self._sessions:
            self._empty.set()

    @property
    def congested(self) -> bool:
        """Whether the bus asks for fewer messages at the moment."""
        backpressure = self._backpressure()
        return backpressure is not None and backpressure.congested

    async def wait_uncongested(self) -> None:
        """Return when the bus takes messages again."""
        backpressure = self._backpressure()
        if backpressure is not None:
            await backpressure.wait_uncongested()

    def publish(self, messages: Sequence[tuple[str, bytes | Pieces]], done: Done | None = None) -> None:
        """Hand ``(channel, payload)`` messages to the bus, in order.

        ``done`` is called with the outcome.
        """
        if not messages:
            return
        try:
            self._publish_all(messages, done)
        except BrokerUnavailable as error:
            if done is not None:
                done(dict.fromkeys(range(len(messages)), error))

    def _announce(self, publications: Sequence[tuple[str, bytes]]) -> None:
        """Publish announcements of the hub: memberships may have ended, which changes presence."""
        if publications:
            self.publish(publications)
            self._presence.changed()

    def publish_batch(self, batch: Batch) -> None:
        """Publish the messages of a batch; its pushes are replied to once Redis has taken them."""
        messages = batch.messages
        if messages:
            self.publish(messages, batch.done if any(batch.replies) else None)

    def authorize(self, session: Session, request: Authorize) -> None:
        """Check a join; it waits in line if many clients join at once."""
        recovers = self._recovery is not None and self._recovery.serves(request)
        if not self._joining.put((session, request), RECOVERY if recovers else DIRECT):
            self._check_join(session, request)

    def _check_next(self, join: tuple[Session, Authorize]) -> None:
        """Check a join that has waited, unless its client has gone."""
        session, request = join
        try:
            if session.socket.waits(request):
                self._check_join(session, request)
        except Exception:
            # As in a transport, an error of the channels ends this connection only.
            log.exception("channel connection crashed", conn=session.conn)
            session.outbox.close(CRASH)

    def _check_join(self, session: Session, request: Authorize) -> None:
        """Check a join: at once without ``authorize`` functions, else in a task of this child."""
        verdict = self.gate.check_join(request.topic, request.token, session.user_token, session.info)
        if isinstance(verdict, Refusal) or not self.gate.authorizers:
            self._admit(session, request, verdict)
        elif self._nursery is None:
            self._admit(session, request, UNAVAILABLE)
        else:
            self._nursery.start_soon(self._ask_plugins, session, request, verdict)

    async def _ask_plugins(self, session: Session, request: Authorize, id_: str) -> None:
        refusal = await self.gate.ask(request.topic, id_, session.info)
        self._admit(session, request, id_ if refusal is None else refusal)

    def _admit(self, session: Session, request: Authorize, verdict: str | Refusal) -> None:
        """Answer a join: with its missed messages, if it asks for them."""
        recovery, nursery = self._recovery, self._nursery
        if recovery is None or isinstance(verdict, Refusal) or not recovery.serves(request):
            session.carry_out(session.socket.authorized(request, verdict, answer_without_history(request)))
        elif nursery is None:
            session.carry_out(session.socket.authorized(request, UNAVAILABLE))
        else:
            recovery.enter(session, request, verdict, nursery)

    def note_malformed(self, session: Session, error: FrameError) -> None:
        """Log a malformed frame, once a minute for each address."""
        self._log_client("malformed frame", session, "malformed", cause=str(error)[:200])

    def _note_slowed(self, address: str) -> None:
        """Log that a client sends so much that it has to wait for other clients."""
        if self._log_limit.allows("slowed down", address, trio.current_time()):
            log.warning("client slowed down", address=address)

    def _log_client(self, event: str, session: Session, kind: str, **fields: object) -> None:
        """Log misbehaviour of a client, once a minute for each kind and address."""
        address = session.info.address
        if self._log_limit.allows(kind, address, trio.current_time()):
            log.warning(event, address=address, conn=session.conn, **fields)

    def presence_changed(self) -> None:
        """Schedule a flush of presence, if there is anything to flush."""
        self._presence.changed()

    # Called by the bus.

    def deliver(self, batch: Sequence[tuple[bytes, bytes]]) -> None:
        """Deliver a batch of (Redis channel, payload) to the members; this is the sink of the bus."""
        if self._has_gap:
            self._announce_gap()
        if self._recovery is None:
            publications = self.hub.deliver(batch)
            if publications:
                self._announce(publications)
        else:
            self._recovery.deliver(batch)

    def on_up(self, up: bool) -> None:
        """Note that Redis is available or not.

        After an outage members join again, because they have missed messages.
        """
        self.hub.available = up
        if not up:
            self._has_gap = True
            if self._recovery is not None:
                self._recovery.interrupted()
            return
        if self._has_gap:
            self._announce_gap()
        if self._recovery is not None:
            self._recovery.restored()
        if self._nodes is not None:
            self._nodes.restored()

    def node_gone(self) -> None:
        """Remove the members of a node that is gone, if no other node does."""
        if self._nodes is not None:
            self._nodes.keeper.look_now()

    async def presence(self, topic: str) -> Mapping[str, str]:
        """Return the external ids of a topic's members on all nodes, by agent.

        Raises:
            BrokerUnavailable: Redis is away.
            LookupError: the topic has no presence.
        """
        known = self.presence_nowait(topic)
        if known is None and self._nodes is not None:
            return await self._nodes.members(topic)
        await trio.lowlevel.checkpoint()
        return known or {}

    def presence_nowait(self, topic: str) -> Mapping[str, str] | None:
        """Return a topic's external ids by agent, or None if there may be other nodes.

        Another thread may call it: a program that runs the server beside its own loop.

        Raises:
            LookupError: the topic has no presence.
        """
        if self._rules is None or not self._rules.tracks(topic):
            raise LookupError(f"topic {topic!r} has no presence: [channel] presence excludes it")
        if self._nodes is not None:
            return None
        return {member.agent: member.id for member in tuple(self.hub.members(topic).values())}

    def _announce_gap(self) -> None:
        """Make every member join again, before the first message after an outage.

        That message may come before the bus is up: the subscription of the channels is confirmed, and those
        of plugins are not yet.
        """
        self._has_gap = False
        self.publish(self.hub.interrupted())

    # The life of the child.

    async def run(self, *, task_status: trio.TaskStatus[Channels] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled, then close all connections in batches.

        With an ``outer_nursery`` this returns at once when cancelled, and the connections are closed there.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._joining.run)
                nursery.start_soon(self._presence.run)
                nursery.start_soon(self._sweep)
                if self._recovery is not None:
                    nursery.start_soon(self._recovery.run)
                if self._nodes is not None:
                    nursery.start_soon(self._nodes.run)
                task_status.started(self)
                try:
                    await trio.sleep_forever()
                finally:
                    # A nursery takes no tasks once its last one has ended, a pass before its block does.
                    self._nursery = None
        finally:
            if self._nodes is not None:
                self._nodes.end()
            if self._outer_nursery is None:
                with trio.CancelScope(shield=True):  # bounded: by drain_timeout
                    await self.drain(self.close_reason, within=self._drain_timeout)
            elif self._sessions:
                # Leave events are not published: this hub is about to be discarded, and members of the next
                # incarnation would receive them.
                self._draining = self.ended = True
                self._outer_nursery.start_soon(self._drain_later)

    async def _drain_later(self) -> None:
        await trio.sleep(DEFERRED_DRAIN_PAUSE)
        await self.drain(self.close_reason, within=self._drain_timeout)

    async def _sweep(self) -> None:
        while True:
            await trio.sleep_until(next_tick(trio.current_time(), SWEEP_INTERVAL))
            now = trio.current_time()
            oldest = now - self.settings.idle_timeout
            for session in list(self._sessions.values()):
                if session.last_seen < oldest:
                    session.outbox.close(IDLE)
            self._presence.tick()
            if self._streams is not None:
                self.publish(self._streams.compare(self.hub.topics, now))

    async def wait_settled(self) -> None:
        """Return when no client is about to join, after ``JOIN_TIME`` at the latest.

        Await it before connections are closed because the server ends, and no others are accepted: a client
        that has just connected gets the answer to its join.
        """
        while self._has_newcomer():  # noqa: ASYNC110 - for a second, of any of many clients
            await trio.sleep(JOIN_LOOK)

    @property
    def away(self) -> int:
        """The members whose connection was closed here, and who have joined no other node yet."""
        return 0 if self._nodes is None else self._nodes.roll.away

    def _has_newcomer(self) -> bool:
        oldest = trio.current_time() - JOIN_TIME
        for session in reversed(self._sessions.values()):
            if session.began <= oldest or self.ended:
                return False
            if session.outbox.disconnect is None and not session.socket.settled:
                return True
        return False

    async def drain(self, disconnect: Disconnect | None = None, *, within: float = DRAIN_TIMEOUT) -> None:
        """Refuse new connections, close all others in batches, and wait until they have ended.

        It may be called more than once.

        Args:
            disconnect: the code and reason; ``close_reason`` by default.
            within: seconds after which connections that have not ended are forgotten.
        """
        self._draining = True
        with trio.move_on_after(within):
            sessions = list(self._sessions.values())
            for start in range(0, len(sessions), DRAIN_BATCH):
                for session in sessions[start : start + DRAIN_BATCH]:
                    session.outbox.close(disconnect or self.close_reason)
                await trio.sleep(DRAIN_PAUSE)
            while self._sessions:
                self._empty = trio.Event()
                await self._empty.wait()
        for session in list(self._sessions.values()):
            session.gone()
        if not self.ended:
            self.publish(self.hub.flush())

    def statistics(self) -> ChannelsStatistics:
        """Return the numbers of the channels."""
        frames = malformed = pending = furthest = conflated = 0
        for session in self._sessions.values():  # one pass: with 10,000 connections each costs a millisecond
            socket, outbox = session.socket, session.outbox
            frames += socket.frames
            malformed += socket.malformed_frames
            conflated += outbox.conflated
            if waiting := outbox.pending:
                pending += waiting
                furthest = max(furthest, waiting)
        closed: dict[str, int] = {}
        for disconnect, count in self._closed.items():
            closed[disconnect.reason] = closed.get(disconnect.reason, 0) + count
        counters, received = self.counters, self._frames_of_ended + frames
        return ChannelsStatistics(
            hub=self.hub.statistics(),
            connections=len(self._sessions),
            accepted=self._accepted,
            frames=frames,
            malformed=malformed,
            pending=pending,
            furthest_behind=furthest,
            closed=closed,
            disconnects=tuple(DisconnectCount(one.code, one.reason, n) for one, n in self._closed.items()),
            received=received,
            conflated=self._conflated_of_ended + conflated,
            pushes={
                "ok": received - counters.controls - counters.failed,
                "failed": counters.failed,
                "refused": counters.refused - counters.refused_joins,
            },
            joins={"ok": counters.joins, "refused": counters.refused_joins},
            recoveries={} if self._recovery is None else dict(self._recovery.results),
        )

    @property
    def connection_count(self) -> int:
        """The number of connections that have not ended."""
        return len(self._sessions)

    def connections(self, limit: int) -> Sequence[ConnectionStatistics]:
        """Return the connections with the largest backlogs, longest silent first among equals.

        Args:
            limit: the number of connections to return.
        """
        now = trio.current_time()
        chosen = nsmallest(
            limit, self._sessions.values(), key=lambda one: (-one.outbox.pending, one.last_seen)
        )
        return [statistics_of(session, now) for session in chosen]

    def disconnect(self, conn: str) -> bool:
        """Close one connection for the operator; return False if there is none of this id."""
        session = self._sessions.get(conn)
        if session is not None:
            session.outbox.close(DISCONNECTED)
        return session is not None


def _random_id(length: int) -> str:
    """Return an id of random letters and digits, each as likely as the others."""
    found = ""
    while len(found) < length:
        # One call for all: a call for each character is a tenth of the cost of a connection.
        drawn = secrets.token_bytes(2 * length)
        found += "".join([_ALPHABET[byte % len(_ALPHABET)] for byte in drawn if byte < _EVEN])
    return found[:length]
