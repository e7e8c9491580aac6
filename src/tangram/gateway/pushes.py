"""Hand pushes of declared events to the handlers of their plugins, and send the replies.

The push is published on Redis as well, as any other, so that subscribers of ``from:`` receive it. Its reply
is the handler's, not that of Redis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import msgspec
import trio

from tangram.channels.disconnects import INVALID, RESTARTING, Refusal
from tangram.channels.frames import REPLY, Run, SocketMessage
from tangram.channels.membership import Membership
from tangram.channels.outbox import Outbox
from tangram.channels.policy import ConnectInfo
from tangram.channels.socket import Socket
from tangram.channels.tokens import private_claims
from tangram.declared.binding import Handler
from tangram.declared.lanes import Lane, Unanswered, WaitingPush
from tangram.declared.payload import too_large
from tangram.declared.pool import PushPool, refused
from tangram.declared.sender import Sender
from tangram.declared.table import Declaration, DeclaredTable
from tangram.routing.exceptions import InvalidRequest

__all__ = ["DeclaredPushes", "OutboxReplies", "PushingSession", "SessionPushes"]

MAX_KNOWN: Final = 1_000
"""Pairs of topic and event whose arguments a connection keeps for one plugin."""


class SessionPushes:
    """The pushes of one connection that have handlers."""

    __slots__ = ("_room", "lanes", "unanswered")

    def __init__(self) -> None:
        self._room: trio.Event | None = None
        self.unanswered = Unanswered()
        self.lanes: dict[PushPool, Lane] = {}
        """The lane in each plugin that runs."""

    @property
    def full(self) -> bool:
        """Whether no more should be read from the connection."""
        return self.unanswered.full

    async def wait_room(self) -> None:
        """Return when half of the pushes are answered, each of which has a deadline."""
        if not self.unanswered.full:
            return
        # Several requests of one long-polling client may wait for the same event.
        if self._room is None or self._room.is_set():
            self._room = trio.Event()
            self.unanswered.when_room(self._room.set)
        await self._room.wait()


class PushingSession(Protocol):
    """The part of a session whose pushes are handled."""

    outbox: Outbox
    socket: Socket
    info: ConnectInfo
    user_token: str | None
    last_seen: float
    pushes: SessionPushes | None


class DeclaredPushes:
    """The handlers of all plugins, for the sessions.

    Args:
        table: the declarations.
        pools: returns the running handlers of a plugin, or None.
        relays: returns the way to the handlers of a plugin that runs on another node, or None.
        why: returns the refusal for a plugin that does not run.
    """

    def __init__(
        self,
        table: DeclaredTable,
        pools: Callable[[str], PushPool | None],
        relays: Callable[[str], PushPool | None] = lambda _: None,
        why: Callable[[str], Refusal] = lambda _: RESTARTING,
    ) -> None:
        self.find: Callable[[str, str], Declaration | None] = table.find
        """Returns the declaration of a push by topic and event."""
        self._pools = pools
        self._relays = relays
        self._why = why

    def accept(self, session: PushingSession, found: Declaration, message: SocketMessage) -> None:
        """Hand a push of a joined topic to its handler, or refuse it."""
        pool = self._pools(found.plugin) or self._relays(found.plugin)
        pushes = session.pushes
        if pushes is None:
            pushes = session.pushes = SessionPushes()
        if pool not in pushes.lanes:
            pool = _unfinished(pushes, found.plugin) or pool
        handler = None if pool is None else pool.handler(found.incoming)
        if pool is None or handler is None:
            _refuse(session.outbox, message, self._why(found.plugin))
            return
        bound = found.incoming.max_payload
        if bound and len(message.payload) > bound:
            pool.results["invalid"] += 1
            _refuse(session.outbox, message, INVALID, too_large(len(message.payload), bound))
            return
        lane = pushes.lanes.get(pool)
        if lane is None:
            lane = _add_lane(pushes, pool, session.outbox)
        known = lane.known.get((message.topic, message.event))
        if known is not None and known[0] is session.socket.joined_as(message.topic):
            arguments = known[1]
        else:
            try:
                arguments = _bind(session, lane, handler, found, message, pool)
            except InvalidRequest as error:
                pool.results["invalid"] += 1
                _refuse(session.outbox, message, INVALID, error)
                return
        pool.put(lane, WaitingPush(handler, arguments, message, session.last_seen + handler.timeout))


class OutboxReplies:
    """The replies to the pushes of one connection, put into its outbox together."""

    __slots__ = ("_outbox", "_texts")

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._texts: list[bytes] = []

    def add(self, push: SocketMessage, status: str, response: bytes) -> None:
        """Add a reply, if the push has a ``ref``; without one no client waits for a reply."""
        if push.ref is not None:
            payload = b'{"status":"%b","response":%b}' % (status.encode(), response)
            encode = self._outbox.serializer.encode_text
            self._texts.append(encode(push.join_ref, push.ref, push.topic, REPLY, payload).data)

    def flush(self) -> None:
        """Put all replies into the outbox."""
        if self._texts:
            texts, self._texts = self._texts, []
            self._outbox.put_run(Run(texts=texts))


def _refuse(
    outbox: Outbox, message: SocketMessage, refusal: Refusal, error: InvalidRequest | None = None
) -> None:
    answers = OutboxReplies(outbox)
    answers.add(message, "error", msgspec.json.encode(refused(refusal, error)))
    answers.flush()


def _unfinished(pushes: SessionPushes, plugin: str) -> PushPool | None:
    """Return another pool of a plugin that has pushes of this connection.

    A plugin that has moved to this node, or away from it, has two pools for a moment. Further pushes come
    after those of the first one.
    """
    return next((one for one, lane in pushes.lanes.items() if one.plugin == plugin and lane.scheduled), None)


def _add_lane(pushes: SessionPushes, pool: PushPool, outbox: Outbox) -> Lane:
    # Lanes of pools that have ended are of no use; there are few.
    for ended in [one for one in pushes.lanes if one.plugin == pool.plugin]:
        del pushes.lanes[ended]
    lane = pushes.lanes[pool] = Lane(OutboxReplies(outbox), pushes.unanswered)
    return lane


def _bind(  # noqa: PLR0917 - the parts of a push
    session: PushingSession,
    lane: Lane,
    handler: Handler,
    found: Declaration,
    message: SocketMessage,
    pool: PushPool,
) -> dict[str, Any]:
    """Return the arguments for one membership, and keep them; raises InvalidRequest."""
    membership = session.socket.joined_as(message.topic)
    arguments = pool.bind(handler, _sender(session, membership), found.parameters)
    if len(lane.known) >= MAX_KNOWN:
        lane.known.clear()
    lane.known[message.topic, message.event] = membership, arguments
    return arguments


def _sender(session: PushingSession, membership: Membership) -> Sender:
    token = membership.token if membership.token is not None else session.user_token
    metadata: Mapping[str, Any] = {} if token is None else private_claims(token)
    return Sender(
        id=membership.id,
        connection=membership.conn,
        topic=membership.topic,
        address=session.info.address,
        metadata=metadata,
    )
