"""The supervised child that owns the hub: gate, connections, the presence timer, the sweep, and the good-bye.

One per incarnation. It knows no transport: a transport calls ``admit`` and ``connect``, feeds frames, and
empties the outbox. Everything here but the timers and ``drain`` is synchronous.
"""

from __future__ import annotations

import math
import secrets
import string
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol
from urllib.parse import parse_qsl

import attrs
import structlog
import trio

from tangram.channels.codec import decode
from tangram.channels.disconnects import (
    BUSY,
    GONE,
    IDLE,
    RESTART,
    TWO_TOKENS,
    UNAVAILABLE,
    VERSION,
    Disconnect,
    Refusal,
)
from tangram.channels.frames import FrameError
from tangram.channels.hub import Hub, HubStatistics, Publication
from tangram.channels.origins import OriginPolicy
from tangram.channels.outbox import Outbox
from tangram.channels.policy import Authorizer, ConnectInfo, Gate, GateSettings
from tangram.channels.socket import Authorize, Effect, Publish, Socket
from tangram.channels.streaming import StreamWatch
from tangram.channels.tokens import bearer
from tangram.errors import BrokerUnavailable
from tangram.gateway.publishing import Backpressure, Batch, Done, PublishAll

__all__ = ["Admission", "ChannelSettings", "Channels", "ChannelsStatistics", "Session", "connect_info"]

log = structlog.get_logger("tangram.channels")

PRESENCE_WINDOW: Final = 0.05
"""Seconds over which joins and leaves of a topic are gathered into one difference."""
SWEEP_INTERVAL: Final = 1.0
"""Seconds between two looks for idle connections and vanished streams."""
DRAIN_BATCH: Final = 50
"""Connections closed at once. phoenix.js comes back after 10 ms without jitter: 1,000 at once would be a
wave."""
DRAIN_PAUSE: Final = 0.02
"""Seconds between two batches."""
PART_PAUSE: Final = 0.05
"""Seconds before the first batch where nobody waits for it: the next incarnation's start goes first."""
DRAIN_TIMEOUT: Final = 3.0
"""Seconds for the connections to take their close frames when the child is stopped."""
_ALPHABET: Final = string.ascii_letters + string.digits


class ChannelSettings(GateSettings, Protocol):
    """What is read of ``[channel]``."""

    @property
    def id_length(self) -> int: ...
    @property
    def max_backlog(self) -> int: ...
    @property
    def max_message(self) -> int: ...
    @property
    def conflate(self) -> Sequence[str]: ...
    @property
    def max_joins(self) -> int: ...
    @property
    def idle_timeout(self) -> float: ...
    @property
    def presence(self) -> bool: ...
    @property
    def push_replies(self) -> bool: ...


class Admission(NamedTuple):
    """An upgrade that may go on."""

    user_token: str | None
    """The connection's own token, from the query or from the bearer subprotocol; not checked yet."""
    subprotocol: str | None
    """What to select in the answer."""


@attrs.frozen
class ChannelsStatistics:
    """What the channels do now, and did since the incarnation began."""

    hub: HubStatistics
    connections: int
    """Connections now."""
    accepted: int
    """Connections ever."""
    frames: int
    """Frames received from connections that are still there."""
    malformed: int
    """Frames that were no messages, from connections that are still there."""
    pending: int
    """Bytes in outboxes."""
    furthest_behind: int
    """Bytes in the fullest of them."""
    closed: Mapping[str, int]
    """Reason of the disconnect to how often."""


class Session:
    """One connection, as a transport sees it: feed it frames, empty its ``outbox``, say when it is
    ``gone``.
    """

    __slots__ = ("_channels", "conn", "info", "last_seen", "outbox", "socket", "user_token")

    def __init__(
        self, channels: Channels, conn: str, info: ConnectInfo, user_token: str | None, outbox: Outbox
    ) -> None:
        self._channels = channels
        self.conn = conn
        self.info = info
        self.user_token = user_token
        self.outbox = outbox
        self.last_seen = trio.current_time()
        settings = channels.settings
        self.socket = Socket(
            conn,
            channels.hub,
            outbox,
            max_joins=settings.max_joins,
            push_replies=settings.push_replies,
        )

    def feed(self, frames: Sequence[tuple[int, bytes | str]]) -> None:
        """Frames of one read: ``(opcode, payload)``, text as bytes or str. Never raises for what a peer
        sent.
        """
        now = self.last_seen = trio.current_time()
        channels, outbox, machine = self._channels, self.outbox, self.socket
        push, replying = machine.push, machine.push_replies
        batch = Batch(machine)
        try:
            for opcode, data in frames:
                if outbox.disconnect is not None or channels.ended:
                    break
                try:
                    message = decode(opcode, data)
                except FrameError as error:
                    channels.note_malformed(self, error)
                    self._carry_out(machine.malformed(now), batch)
                    continue
                channel = push(message)
                if channel is None:
                    batch = self._carry_out(machine.receive(message), batch)
                else:
                    batch.messages.append((channel, message.payload))
                    batch.replies.append(message if replying else None)
        finally:
            channels.publish_batch(batch)
        channels.touch()

    def alive(self) -> None:
        """Something arrived that is no message (a pong): the peer is still there."""
        self.last_seen = trio.current_time()

    def carry_out(self, effects: Sequence[Effect]) -> None:
        """Do what the socket machine asks for."""
        self._channels.publish_batch(self._carry_out(effects, Batch(self.socket)))
        self._channels.touch()

    def _carry_out(self, effects: Sequence[Effect], batch: Batch) -> Batch:
        """Publications are gathered; whatever may publish for itself comes after them. Answers the batch to
        go on with.
        """
        for effect in effects:
            if isinstance(effect, Publish):
                batch.messages.append((effect.channel, effect.payload))
                batch.replies.append(effect.reply)
            elif isinstance(effect, Authorize):
                self._channels.publish_batch(batch)
                batch = Batch(self.socket)
                self._channels.authorize(self, effect)
            else:
                self.outbox.close(effect)
        return batch

    @property
    def congested(self) -> bool:
        """Whether a transport should ``wait_uncongested`` before it reads more."""
        return self._channels.congested

    async def wait_uncongested(self) -> None:
        """Return when there is room for pushes again. Meanwhile the peer's own buffers fill, and it slows."""
        await self._channels.wait_uncongested()

    def gone(self) -> None:
        """The connection has ended, whoever ended it. May be said twice."""
        self._channels.disconnected(self)


class Channels:
    """Hub, gate and connections of one incarnation."""

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
    ) -> None:
        """``up``: is Redis there already? ``streaming_grace``: seconds after which a vanished browser's
        stream is told to end (None: never). ``publish_all(messages, done)`` must not block.
        ``outer_nursery`` outlives this child: connections that are left when it ends are closed there.
        ``backpressure``: returns the object that says, before more is read from a connection, whether there
        is room for it.
        """
        self.settings = settings
        self.new_id = new_id or partial(_random_id, settings.id_length)
        self.hub = Hub(presence=settings.presence, conflate=settings.conflate)
        self.hub.available = up
        self.gate = Gate(
            settings,
            secret,
            origins=origins or OriginPolicy(),
            new_id=self.new_id,
            clock=wall_clock,
            operator_token=operator_token,
            authorizers=authorizers,
        )
        self.close_reason = RESTART
        """What connections are told when this child is stopped: set it to ``SHUTDOWN`` if nobody comes after
        us."""
        self._publish_all = publish_all
        self._sessions: dict[str, Session] = {}
        self._nursery: trio.Nursery | None = None
        self._dirty = trio.Event()
        self._empty = trio.Event()
        self._draining = False
        self._drain_timeout = drain_timeout
        self._outer_nursery = outer_nursery
        self._backpressure = backpressure
        self.ended = False
        """Whether the child has ended: what connections still say is not heard."""
        self._streams = None if streaming_grace is None else StreamWatch(streaming_grace)
        self._accepted = 0
        self._malformed_logged = -math.inf
        self._closed: dict[str, int] = {}

    # What transports call.

    def admit(
        self, info: ConnectInfo, query_string: bytes, subprotocols: Sequence[str] = ()
    ) -> Admission | Refusal:
        """May this request become a WebSocket? Ask before accepting: who is accepted and closed at once comes
        back every 10 ms.
        """
        if self._draining:
            return BUSY
        refusal = self.gate.check_upgrade(info)
        if refusal is not None:
            return refusal
        parameters = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True)
        versions = [value for name, value in parameters if name == "vsn"]
        if any(not value.startswith("2.") for value in versions):
            return VERSION
        given = [value for name, value in parameters if name == "userToken"]
        if len(given) > 1:
            return TWO_TOKENS
        subprotocol = "phoenix" if "phoenix" in subprotocols else None
        return Admission(given[0] if given else bearer(subprotocols), subprotocol)

    def connect(self, info: ConnectInfo, admission: Admission, wake: Callable[[], None]) -> Session:
        """A new connection. ``wake`` is called when its outbox has something to do; it must not block."""
        conn = self.new_id()
        while conn in self._sessions:
            conn = self.new_id()
        settings = self.settings
        outbox = Outbox(wake, max_backlog=settings.max_backlog, max_exempt=settings.max_joins)
        session = Session(self, conn, info, admission.user_token, outbox)
        self._sessions[conn] = session
        self._accepted += 1
        if self._draining:
            outbox.close(self.close_reason)
        return session

    def disconnected(self, session: Session) -> None:
        """A connection has ended: it leaves everything."""
        if self._sessions.pop(session.conn, None) is None:
            return
        session.outbox.close(GONE)
        assert session.outbox.disconnect is not None
        reason = session.outbox.disconnect.reason
        self._closed[reason] = self._closed.get(reason, 0) + 1
        if not self.ended:
            session.carry_out(session.socket.gone())
        if not self._sessions:
            self._empty.set()

    # What sessions call.

    @property
    def congested(self) -> bool:
        """Whether the bus has enough to do already."""
        backpressure = self._backpressure()
        return backpressure is not None and backpressure.congested

    async def wait_uncongested(self) -> None:
        """Return once it has not."""
        backpressure = self._backpressure()
        if backpressure is not None:
            await backpressure.wait_uncongested()

    def publish(self, messages: Sequence[tuple[str, bytes]], done: Done | None = None) -> None:
        """Hand ``(channel, payload)`` messages over to the bus, in order; ``done`` hears the outcome."""
        if not messages:
            return
        try:
            self._publish_all(messages, done)
        except BrokerUnavailable as error:
            if done is not None:
                done(dict.fromkeys(range(len(messages)), error))

    def publish_batch(self, batch: Batch) -> None:
        """Hand over what a session has gathered, and see that it is answered where somebody waits."""
        if batch.messages:
            self.publish(batch.messages, batch.done if any(batch.replies) else None)

    def authorize(self, session: Session, request: Authorize) -> None:
        """Judge a join: at once if no plugin wants a say, else in a task of our own."""
        verdict = self.gate.check_join(request.topic, request.token, session.user_token, session.info)
        if isinstance(verdict, Refusal) or not self.gate.authorizers:
            session.carry_out(session.socket.authorized(request, verdict))
        elif self._nursery is None:
            session.carry_out(session.socket.authorized(request, UNAVAILABLE))
        else:
            self._nursery.start_soon(self._ask, session, request, verdict)

    async def _ask(self, session: Session, request: Authorize, id_: str) -> None:
        refusal = await self.gate.ask(request.topic, id_, session.info)
        verdict = id_ if refusal is None else refusal
        session.carry_out(session.socket.authorized(request, verdict))

    def note_malformed(self, session: Session, error: FrameError) -> None:
        """One line a minute is enough to find a broken client; the rest is counted."""
        now = trio.current_time()
        if now - self._malformed_logged >= 60.0:
            self._malformed_logged = now
            log.warning("malformed frame", conn=session.conn, cause=str(error)[:200])

    def touch(self) -> None:
        """Presence may have changed."""
        if self.hub.dirty:
            self._dirty.set()

    # What the bus calls.

    def deliver(self, batch: Sequence[tuple[bytes, bytes]]) -> None:
        """The bus's sink."""
        self.publish(self.hub.deliver(batch))

    def on_up(self, up: bool) -> None:
        """Redis came or went. After an absence members are told to join anew, for they have missed
        something.
        """
        if up and not self.hub.available:
            self.hub.available = True
            self.hub.interrupted()
        self.hub.available = up

    # Life.

    async def run(self, *, task_status: trio.TaskStatus[Channels] = trio.TASK_STATUS_IGNORED) -> None:
        """The supervised child: until cancelled; then everybody is told, in batches, and given time to hear
        it. With an ``outer_nursery`` that goes on after this has returned.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._flush_presence)
                nursery.start_soon(self._sweep)
                task_status.started(self)
        finally:
            self._nursery = None
            if self._outer_nursery is None:
                with trio.CancelScope(shield=True):  # bounded: by drain_timeout
                    await self.drain(self.close_reason, within=self._drain_timeout)
            elif self._sessions:
                # Who hears nothing from its members' departure is gone with us; the next incarnation's
                # members must not be told.
                self._draining = self.ended = True
                self._outer_nursery.start_soon(self._part)

    async def _part(self) -> None:
        await trio.sleep(PART_PAUSE)
        await self.drain(self.close_reason, within=self._drain_timeout)

    async def _flush_presence(self) -> None:
        while True:
            await self._dirty.wait()
            await trio.sleep(PRESENCE_WINDOW)
            await self.wait_uncongested()
            self._dirty = trio.Event()
            told = self.hub.flush()
            self.publish(told, partial(self._untold, told))

    def _untold(self, told: Sequence[Publication], failures: Mapping[int, Exception]) -> None:
        # Tried again with the next change, or by the sweep: an outage is not knocked at all the time.
        for at in failures:
            self.hub.restore(told[at])

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(SWEEP_INTERVAL)
            now = trio.current_time()
            oldest = now - self.settings.idle_timeout
            for session in list(self._sessions.values()):
                if session.last_seen < oldest:
                    session.outbox.close(IDLE)
            self.touch()
            if self._streams is not None:
                self.publish(self._streams.compare(self.hub.topics, now))

    async def drain(self, disconnect: Disconnect | None = None, *, within: float = DRAIN_TIMEOUT) -> None:
        """Close all connections in batches and wait until they have ended.

        Admits no further connection. ``disconnect`` (default: ``close_reason``) is what clients are told;
        ``within`` is the longest wait in seconds. Idempotent.
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
        sessions = self._sessions.values()
        return ChannelsStatistics(
            hub=self.hub.statistics(),
            connections=len(sessions),
            accepted=self._accepted,
            frames=sum(session.socket.frames for session in sessions),
            malformed=sum(session.socket.malformed_frames for session in sessions),
            pending=sum(session.outbox.pending for session in sessions),
            furthest_behind=max((session.outbox.pending for session in sessions), default=0),
            closed=dict(self._closed),
        )


def _random_id(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def connect_info(scope: Mapping[str, object]) -> ConnectInfo:
    """What an ASGI scope tells about who asks."""
    client = scope.get("client")
    address = str(client[0]) if isinstance(client, (tuple, list)) and client else ""
    raw = scope.get("headers")
    headers: dict[str, str] = {}
    if isinstance(raw, (tuple, list)):
        headers = {
            bytes(name).decode("latin-1").lower(): bytes(value).decode("latin-1") for name, value in raw
        }
    query_string = scope.get("query_string", b"")
    assert isinstance(query_string, bytes)
    query = dict(parse_qsl(query_string.decode("latin-1"), keep_blank_values=True))
    query.pop("userToken", None)
    return ConnectInfo(address, headers, query, headers.get("origin"), str(scope.get("path", "")))
