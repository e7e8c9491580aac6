"""The socket state machine: the effects of a client's frames, given its joined topics.

1. Frames in, effects out. Replies go into the connection's outbox. Work for other parts (publishing on
   Redis, checking a token, closing the connection) is returned as an effect, and its result is fed back.
2. The table below gives the effect of a frame: state of its topic x kind of frame. Kinds that do not depend
   on the state (heartbeats, binary control frames, malformed frames) are handled before it.
3. While a join waits for its verdict, later frames of the same topic wait behind it, in order: a leave must
   not overtake its join. Other topics are not delayed.
4. A single frame never ends the connection. Malformed frames are counted, and hundreds of them end it.

    state of the topic | phx_join           | phx_leave             | anything else
    -------------------+--------------------+-----------------------+-----------------------------------
    ABSENT             | ask the gate       | reply ok, {}          | reply error, unmatched topic
    JOINING            | wait for verdict   | wait for verdict      | wait for verdict
    JOINED             | same join_ref:     | join_ref same or null:| join_ref same: publish, reply when
                       |   reply ok again   |   leave, reply ok     |   Redis has taken it
                       | other: phx_close   | other: reply ok, {}   | other: reply error, unmatched topic
                       |   the old, ask     |                       |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

import attrs
import msgspec

from tangram import defaults
from tangram.channels import codec
from tangram.channels.catchup import Catchup
from tangram.channels.disconnects import (
    ABUSE,
    BAD_EVENT,
    BUSY,
    COLON_IN_EVENT,
    EVENT_TOO_LONG,
    MALFORMED,
    REF_TOO_LONG,
    TOO_LARGE,
    TOO_MANY_JOINS,
    TOPIC_TOO_LONG,
    UNAVAILABLE,
    UNMATCHED_TOPIC,
    Disconnect,
    Refusal,
)
from tangram.channels.frames import CLOSE, HEARTBEAT, JOIN, LEAVE, MAX_FIELD, PHOENIX, ReplyTo, SocketMessage
from tangram.channels.hub import Hub, ListAllowance, Membership, Publication
from tangram.channels.outbox import Outbox
from tangram.pieces import Pieces

__all__ = ["Authorize", "Effect", "Publish", "Socket", "SocketCounters", "SocketStatistics"]

MAX_DEFERRED: Final = 100
"""Frames that wait behind one join. A verdict takes milliseconds; phoenix.js sends one leave meanwhile."""
SHORT: Final = MAX_FIELD // 4
"""Characters of any kind that take at most MAX_FIELD bytes in UTF-8."""
MAX_DEFERRED_BYTES: Final = 65_536
"""Bytes of the payloads that wait behind one join; phoenix.js sends less than a packet meanwhile."""
MALFORMED_BURST: Final = 100.0
"""Malformed frames at once that do not yet end the connection."""
MALFORMED_RATE: Final = 1.0
"""Malformed frames a second that are tolerated for ever, so that a confused client keeps its connection."""


NO_PAYLOAD: Final = Pieces(())


class Publish(NamedTuple):
    """Effect: publish, then call ``published`` or ``unpublished`` if ``reply`` is set."""

    channel: str
    payload: bytes | Pieces
    reply: ReplyTo | None = None
    push: SocketMessage | None = None
    """The client's push, without its payload if that is large; None for announcements of the server."""


class Authorize(NamedTuple):
    """Effect: ask the gate, then call ``authorized`` with its verdict."""

    topic: str
    join_ref: str
    ref: str | None
    token: str | None
    """The token of the join itself, which then is the only one that counts; None for the connection's."""
    payload: bytes
    recover: str | None = None
    """The position behind which messages are wanted; empty for a first join that asks for positions. None if
    the join does not ask, and any other text if the client sent no text."""


_CONTROL: Final = frozenset({JOIN, LEAVE, HEARTBEAT})

Effect = Publish | Authorize | Disconnect


# These are integers, because members of other Enums are hashed in Python code, twice a frame.


class _State(IntEnum):
    ABSENT = 0
    JOINING = 1
    JOINED = 2


class _Kind(IntEnum):
    JOIN = 0
    LEAVE = 1
    PUSH = 2


@attrs.frozen
class SocketStatistics:
    """Numbers of one connection."""

    conn: str
    topics: int
    """Topics joined now."""
    frames: int
    """Frames received."""
    malformed: int
    """Frames that were not messages of the protocol."""
    refused: int
    """Joins and pushes that got an error reply."""


@attrs.define(eq=False)
class SocketCounters:
    """Counters that all sockets of one hub share, so that a scrape reads them once."""

    controls: int = 0
    """Frames that were no pushes, or pushes that were refused."""
    joins: int = 0
    """Joins that were accepted."""
    refused_joins: int = 0
    """Joins that got an error reply."""
    refused: int = 0
    """Joins, pushes and malformed frames that got an error reply because of their contents."""
    failed: int = 0
    """Pushes that Redis has not taken."""


class _Join(msgspec.Struct):
    token: msgspec.Raw = msgspec.Raw()
    recover: msgspec.Raw = msgspec.Raw()


NO_POSITION: Final = "?"
"""Stands for a ``recover`` of any other shape than a text: no position has this text."""
_OTHER_RECOVER: Final = {b"": None, b"null": ""}

_decode_join: Final = msgspec.json.Decoder(_Join).decode
_decode_string: Final = msgspec.json.Decoder(str).decode


class Socket:
    """The memberships of one connection."""

    def __init__(
        self,
        conn: str,
        hub: Hub,
        outbox: Outbox,
        *,
        max_joins: int = defaults.MAX_JOINS,
        push_replies: bool = True,
        counters: SocketCounters | None = None,
    ) -> None:
        self.conn = conn
        self.counters = counters or SocketCounters()
        self.outbox = outbox
        self.frames = 0
        self.malformed_frames = 0
        self.refused = 0
        self._hub = hub
        self._max_joins = max_joins
        self.push_replies = push_replies
        self._join_refs = outbox.serializer.join_refs
        self._joined: dict[str, Membership] = {}
        self._joining: dict[str, list[SocketMessage]] = {}
        self.allowance = ListAllowance()
        """Bounds the lists that joins and leaves of this connection cause on Redis."""
        self._forgiven = MALFORMED_BURST
        self._forgiven_at = 0.0

    @property
    def topics(self) -> Sequence[str]:
        """The topics that are joined now."""
        return [topic for topic, membership in self._joined.items() if membership.alive]

    @property
    def joined(self) -> bool:
        """Whether any topic is joined now."""
        return any(membership.alive for membership in self._joined.values())

    @property
    def settled(self) -> bool:
        """Whether the client has sent something, and none of its joins waits for its answer."""
        return self.frames > 0 and not self._joining

    def refuse_large(self, message: SocketMessage) -> list[Effect] | None:
        """Refuse a large frame by its header; return None for a push that would be published.

        So the payload of a frame that is refused need not be checked.
        """
        effects = self.receive_large(message, NO_PAYLOAD)
        if not any(isinstance(effect, Publish) for effect in effects):
            return effects
        self.frames -= 1  # it is counted when it is handled
        return None

    def receive_large(self, message: SocketMessage, payload: Pieces) -> list[Effect]:
        """Handle a large frame, of which ``message`` is the header, and return its effects."""
        self.frames += 1
        self.counters.controls += 1
        if message.event == JOIN:
            return self._refuse_join(message, message.join_ref or message.ref or "", TOO_LARGE)
        if message.event in _CONTROL or message.topic == PHOENIX:
            refusal = TOO_LARGE
        elif message.topic in self._joining:
            refusal = BUSY
        elif self._state(message.topic) is _State.ABSENT:
            refusal = UNMATCHED_TOPIC
        else:
            return [
                effect._replace(payload=payload) if isinstance(effect, Publish) else effect
                for effect in self._push(message)
            ]
        return self._refuse(message, refusal)

    def push(self, message: SocketMessage) -> str | None:
        """Return the Redis channel of a push that only needs to be published and replied to.

        Nearly every frame is such a push. For all other frames this returns None, and ``receive`` must be
        called. The decision is the same as in the table; this is the faster way to it.
        """
        join_ref, _, topic, event, _, _ = message
        membership = self._joined.get(topic)
        if (
            membership is None
            or (join_ref != membership.join_ref and (join_ref is not None or self._join_refs))
            or not membership.alive
            or event in _CONTROL
            or topic == PHOENIX
            or len(event) > SHORT
            or ":" in event
        ):
            return None
        self.frames += 1
        return f"from:{topic}:{event}"

    def receive(self, message: SocketMessage) -> list[Effect]:
        """Handle one frame of the client, and return its effects."""
        self.frames += 1
        self.counters.controls += 1
        if message.event == HEARTBEAT and message.topic == PHOENIX and not message.binary:
            return self._heartbeat(message)
        if message.event == JOIN:
            kind = _Kind.JOIN
        elif message.event == LEAVE:
            kind = _Kind.LEAVE
        else:
            kind = _Kind.PUSH
        if message.binary and (kind is not _Kind.PUSH or message.topic == PHOENIX):
            return self._refuse(message, BAD_EVENT)
        return _TABLE[self._state(message.topic), kind](self, message)

    def _state(self, topic: str) -> _State:
        if topic in self._joining:
            return _State.JOINING
        membership = self._joined.get(topic)
        if membership is None:
            return _State.ABSENT
        if membership.alive:
            return _State.JOINED
        del self._joined[topic]
        return _State.ABSENT

    def malformed(self, now: float, reply_to: ReplyTo | None = None) -> list[Effect]:
        """Count a frame that is not a message, and close the connection after too many.

        ``MALFORMED_BURST`` at once, and ``MALFORMED_RATE`` a second, are tolerated. If the frame has a ref,
        it gets an error reply, so that the client does not wait for its timeout.
        """
        self.frames += 1
        self.malformed_frames += 1
        self.counters.controls += 1
        if reply_to is not None:
            self._refuse(reply_to, MALFORMED)
        elapsed = max(0.0, now - self._forgiven_at)
        self._forgiven_at = now
        self._forgiven = min(MALFORMED_BURST, self._forgiven + elapsed * MALFORMED_RATE) - 1.0
        return [ABUSE] if self._forgiven < 0.0 else []

    def waits(self, request: Authorize) -> bool:
        """Return whether the join still waits for its verdict."""
        return self.outbox.disconnect is None and request.topic in self._joining

    def membership(self, request: Authorize, id_: str) -> Membership:
        """Return the membership that a join asks for."""
        return Membership(
            self.conn,
            request.topic,
            request.join_ref,
            id_,
            self.outbox,
            allowance=self.allowance,
            token=request.token,
        )

    def joined_as(self, topic: str) -> Membership:
        """Return the membership of a topic that is joined."""
        return self._joined[topic]

    def authorized(
        self, request: Authorize, verdict: str | Refusal, catchup: Catchup | None = None
    ) -> list[Effect]:
        """Finish a join with the gate's verdict, then handle the frames that waited behind it.

        Args:
            request: the effect that asked for the verdict.
            verdict: the external id, or the refusal.
            catchup: the messages that were missed, if the join asks for them and the topic has a history.
        """
        deferred = self._joining.pop(request.topic, [])
        if self.outbox.disconnect is not None:
            return []
        if not isinstance(verdict, Refusal) and not self._hub.available:
            verdict = UNAVAILABLE
        if isinstance(verdict, Refusal):
            message = SocketMessage(request.join_ref, request.ref, request.topic, JOIN, request.payload)
            effects = self._refuse_join(message, request.join_ref, verdict)
        else:
            effects = self._enter(request, verdict, catchup)
        for message in deferred:
            effects += self.receive(message)
            self.frames -= 1  # they were counted when they came
            self.counters.controls -= 1
        return effects

    def published(self, replies: Sequence[ReplyTo | SocketMessage | None]) -> None:
        """ReplyTo to pushes that Redis has taken; None stands for a push without a reply."""
        self._hub.acknowledge(self.outbox, replies)

    def unpublished(self, reply: ReplyTo | SocketMessage) -> None:
        """ReplyTo to a push that Redis has not taken."""
        self.counters.failed += 1
        if reply.ref is not None:
            self.refused += 1
            self._reply_error(reply, UNAVAILABLE)

    def gone(self) -> list[Effect]:
        """Leave all topics after the end of the connection."""
        memberships, self._joined = self._joined, {}
        self._joining.clear()
        return [effect for one in memberships.values() for effect in _publishing(self._hub.leave(one))]

    # The functions of the table.

    def _ask(self, message: SocketMessage) -> list[Effect]:
        join_ref = message.join_ref if message.join_ref is not None else message.ref
        if join_ref is None:
            # Without a ref no reply and no agent id are possible.
            self.malformed_frames += 1
            return []
        if len(message.topic.encode()) > MAX_FIELD:
            return self._refuse_join(message, join_ref, TOPIC_TOO_LONG)
        if len(join_ref.encode()) > MAX_FIELD or len((message.ref or "").encode()) > MAX_FIELD:
            # It is kept for the whole membership, and sent to all clients that follow presence.
            return self._refuse_join(message, join_ref, REF_TOO_LONG)
        if not self._hub.available:
            return self._refuse_join(message, join_ref, UNAVAILABLE)
        if len(self.topics) + len(self._joining) >= self._max_joins:
            return self._refuse_join(message, join_ref, TOO_MANY_JOINS)
        self._joining[message.topic] = []
        token, recover = _read_join(message.payload)
        return [Authorize(message.topic, join_ref, message.ref, token, message.payload, recover)]

    def _enter(self, request: Authorize, id_: str, catchup: Catchup | None) -> list[Effect]:
        membership = self.membership(request, id_)
        self._joined[request.topic] = membership
        self.counters.joins += 1
        effects = _publishing(self._hub.join(membership, request.ref, catchup))
        effects.append(Publish(f"from:{request.topic}:{JOIN}", codec.without_token(request.payload)))
        return effects

    def _rejoin(self, message: SocketMessage) -> list[Effect]:
        membership = self._joined[message.topic]
        join_ref = message.join_ref if message.join_ref is not None else message.ref
        if join_ref == membership.join_ref:
            response = {"id": membership.agent}
            self._hub.reply(self.outbox, ReplyTo(join_ref, message.ref, message.topic), "ok", response)
            return []
        self._close(membership.join_ref, message.topic)
        del self._joined[message.topic]
        return _publishing(self._hub.leave(membership)) + self._ask(message)

    def _leave(self, message: SocketMessage) -> list[Effect]:
        membership = self._joined[message.topic]
        if message.join_ref not in (None, membership.join_ref):
            return self._left_already(message)
        del self._joined[message.topic]
        response = {"id": membership.agent}
        self._hub.reply(self.outbox, ReplyTo(*message[:3]), "ok", response)
        effects = _publishing(self._hub.leave(membership))
        effects.append(Publish(f"from:{message.topic}:{LEAVE}", message.payload))
        return effects

    def _left_already(self, message: SocketMessage) -> list[Effect]:
        self._hub.reply(self.outbox, ReplyTo(*message[:3]), "ok", {})
        return []

    def _push(self, message: SocketMessage) -> list[Effect]:
        join_ref = self._joined[message.topic].join_ref
        if message.join_ref != join_ref and (message.join_ref is not None or self._join_refs):
            return self._refuse(message, UNMATCHED_TOPIC)
        if len(message.event) > SHORT and len(message.event.encode()) > MAX_FIELD:
            return self._refuse(message, EVENT_TOO_LONG)
        if ":" in message.event:
            return self._refuse(message, COLON_IN_EVENT)
        self.counters.controls -= 1
        wanted = self.push_replies and message.ref is not None
        reply = ReplyTo(message.join_ref, message.ref, message.topic) if wanted else None
        return [Publish(f"from:{message.topic}:{message.event}", message.payload, reply, message)]

    def _unmatched(self, message: SocketMessage) -> list[Effect]:
        return self._refuse(message, UNMATCHED_TOPIC)

    def _defer(self, message: SocketMessage) -> list[Effect]:
        deferred = self._joining[message.topic]
        waiting = sum(len(one.payload) for one in deferred)
        if len(deferred) >= MAX_DEFERRED or waiting + len(message.payload) > MAX_DEFERRED_BYTES:
            return self._refuse(message, BUSY)
        deferred.append(message)
        return []

    def _heartbeat(self, message: SocketMessage) -> list[Effect]:
        self._hub.reply(self.outbox, ReplyTo(None, message.ref, PHOENIX), "ok", {})
        channel = f"from:{PHOENIX}:{HEARTBEAT}"
        # Existing subscribers expect the blank after the colon.
        return [
            Publish(channel, b'{"conn_id": "%b"}' % self.conn.encode()),
            Publish(channel, message.payload),
        ]

    def _refuse(self, message: SocketMessage | ReplyTo, refusal: Refusal) -> list[Effect]:
        self.refused += 1
        self.counters.refused += 1
        self._reply_error(message, refusal)
        return []

    def _reply_error(self, message: SocketMessage | ReplyTo, refusal: Refusal) -> None:
        response = {"reason": refusal.reason}
        self._hub.reply(self.outbox, ReplyTo(*message[:3]), "error", response)

    def _refuse_join(self, message: SocketMessage, join_ref: str, refusal: Refusal) -> list[Effect]:
        """Refuse a join.

        Unless a retry could help, ``phx_close`` follows, so that phoenix.js does not retry for ever.
        """
        self.counters.refused_joins += 1
        self._refuse(message, refusal)
        if not refusal.retry:
            self._close(join_ref, message.topic)
        return []

    def _close(self, join_ref: str, topic: str) -> None:
        self.outbox.put(self.outbox.serializer.encode_text(join_ref, None, topic, CLOSE, b"{}"))

    def statistics(self) -> SocketStatistics:
        """Return the numbers of this connection."""
        return SocketStatistics(
            conn=self.conn,
            topics=len(self.topics),
            frames=self.frames,
            malformed=self.malformed_frames,
            refused=self.refused,
        )


_TABLE: Final[dict[tuple[_State, _Kind], Callable[[Socket, SocketMessage], list[Effect]]]] = {
    (_State.ABSENT, _Kind.JOIN): Socket._ask,  # noqa: SLF001 - the table is part of the class
    (_State.ABSENT, _Kind.LEAVE): Socket._left_already,  # noqa: SLF001 - the table is part of the class
    (_State.ABSENT, _Kind.PUSH): Socket._unmatched,  # noqa: SLF001 - the table is part of the class
    (_State.JOINING, _Kind.JOIN): Socket._defer,  # noqa: SLF001 - the table is part of the class
    (_State.JOINING, _Kind.LEAVE): Socket._defer,  # noqa: SLF001 - the table is part of the class
    (_State.JOINING, _Kind.PUSH): Socket._defer,  # noqa: SLF001 - the table is part of the class
    (_State.JOINED, _Kind.JOIN): Socket._rejoin,  # noqa: SLF001 - the table is part of the class
    (_State.JOINED, _Kind.LEAVE): Socket._leave,  # noqa: SLF001 - the table is part of the class
    (_State.JOINED, _Kind.PUSH): Socket._push,  # noqa: SLF001 - the table is part of the class
}


def _publishing(publications: Sequence[Publication]) -> list[Effect]:
    return [Publish(channel, payload) for channel, payload in publications]


def _read_join(payload: bytes) -> tuple[str | None, str | None]:
    """Return the join's own token and the position from which it recovers.

    The token is a string in an object; None means the connection's. A position that is no string stands for
    one that no server made.
    """
    if not payload.lstrip().startswith(b"{"):
        return None, None
    join = _decode_join(payload)
    token, recover = bytes(join.token), bytes(join.recover)
    return (
        _decode_string(token) if token[:1] == b'"' else None,
        _decode_string(recover) if recover[:1] == b'"' else _OTHER_RECOVER.get(recover, NO_POSITION),
    )
