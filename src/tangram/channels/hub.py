"""The hub: who is on which topic, and one encoding for all of them.

1. No I/O, no clock. What must be published is returned, what members get goes into their outboxes.
2. Dispatch is exact on (topic, event). A client's string is never a pattern: ``*`` is a character.
3. A message is encoded once, with a null ``join_ref`` (text) or as a broadcast (binary), and every member's
   outbox gets the same object.
4. ``phx_*`` from Redis is not forwarded: it would act as the protocol's own voice in every browser.
5. One message never costs its batch: whatever cannot be encoded is counted and left out.
6. A membership that the hub has ended says so itself (``alive``): sockets look, nobody calls them.
7. What plugins may ask for comes over Redis too, on the protocol's own topic: ``to:phoenix:disconnect`` with
   ``{"id": ID}`` ends the connections of that external id, ``to:phoenix:close`` and ``to:phoenix:reset`` with
   ``{"topic": TOPIC}`` end its memberships, for good or so that the members join again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import translate
from typing import Final, NamedTuple

import attrs
import msgspec

from tangram.channels import codec
from tangram.channels.disconnects import DISCONNECTED
from tangram.channels.frames import (
    BINARY,
    CLOSE,
    ERROR,
    MAX_FIELD,
    PHOENIX,
    PRESENCE_DIFF,
    PRESENCE_STATE,
    REPLY,
    TEXT,
    Encoded,
    Message,
    Run,
)
from tangram.channels.outbox import Outbox
from tangram.channels.presence import Presence

__all__ = ["ADMIN", "MAX_AGENTS", "SPECIAL", "Hub", "HubStatistics", "Membership", "Publication", "Reply"]

ADMIN: Final = "admin"
SPECIAL: Final = ("admin", PHOENIX, "system")
"""Topics that are always there: no ``channel.add`` and no ``channel.remove`` tells of them."""

MAX_AGENTS: Final = 100
"""Agents (and topics) named in one admin event. Above it an event names the newcomer alone, and the
``count``: the whole list at every join costs the square of the members when all come back after a restart."""
_MAX_ROUTES: Final = 8192
"""Redis channel names remembered with their frame headers; forgotten all at once when full."""


class Reply(NamedTuple):
    """Whom to answer."""

    join_ref: str | None
    ref: str | None
    topic: str


class Publication(NamedTuple):
    """Something to publish on Redis."""

    channel: str
    payload: bytes


@attrs.define(eq=False)
class Membership:
    """One connection on one topic."""

    conn: str
    topic: str
    join_ref: str
    id: str
    """The external id: the token's."""
    outbox: Outbox
    alive: bool = True

    @property
    def agent(self) -> str:
        """``conn:topic:join_ref``, which is also its ``phx_ref``."""
        return f"{self.conn}:{self.topic}:{self.join_ref}"


@attrs.define(eq=False)
class _Room:
    topic: str
    members: dict[str, Membership] = attrs.Factory(dict)
    outboxes: tuple[Outbox, ...] | None = None


class _Route:
    """What is known about a Redis channel: the room, and the frame headers of its events."""

    __slots__ = ("binary_header", "key", "room", "text_header")

    def __init__(self, room: _Room | None, text: bytes, binary: bytes | None, key: str | None) -> None:
        self.room = room
        self.text_header = text
        self.binary_header = binary
        self.key = key


_NOWHERE: Final = _Route(None, b"", None, None)
_COMMAND: Final = _Route(None, b"", None, None)
_COMMANDS: Final = frozenset({b"to:phoenix:disconnect", b"to:phoenix:close", b"to:phoenix:reset"})


class _Command(msgspec.Struct):
    id: str | None = None
    topic: str | None = None


_decode_command: Final = msgspec.json.Decoder(_Command).decode


@attrs.frozen
class HubStatistics:
    """Numbers of the hub since it was made."""

    topics: int
    """Topics with members now."""
    members: int
    """Memberships now."""
    messages: int
    """Messages from Redis that had a member to go to."""
    deliveries: int
    """Messages times members."""
    unheard: int
    """Messages for topics without members."""
    dropped: int
    """Messages that were empty, reserved (``phx_*``) or could not be encoded."""
    interruptions: int
    """How often the feed from Redis was interrupted and the members told."""


class Hub:
    """Topics and their members."""

    def __init__(self, *, presence: bool = True, conflate: Iterable[str] = ()) -> None:
        self.available = True
        """Is Redis there? Joins and pushes are refused while it is not."""
        self._presence: Presence[Membership] | None = Presence() if presence else None
        self._conflate = [re.compile(translate(pattern)) for pattern in conflate]
        self._rooms: dict[str, _Room] = {}
        self._routes: dict[bytes, _Route] = {}
        self._messages = self._deliveries = self._unheard = self._dropped = self._interruptions = 0

    # The way of a message: from Redis to the outboxes.

    def deliver(self, batch: Sequence[tuple[bytes, bytes]]) -> Sequence[Publication]:
        """Put a batch of (Redis channel, payload) into the outboxes of those who are on its topics, in
        order. Answers what Redis should hear of memberships that were ended by it.
        """
        told: list[Publication] = []
        routes = self._routes
        current: _Room | None = None
        run: list[Encoded] = []
        for channel, payload in batch:
            route = routes.get(channel)
            if route is None:
                route = self._learn(channel)
            room = route.room
            if room is None:
                if route is _COMMAND:
                    if run:
                        self._spread(current, run)
                        run = []
                    told += self._obey(channel, payload)
                else:
                    self._unheard += 1
                continue
            item = self._encode(route, payload)
            if item is None:
                self._dropped += 1
                continue
            if run and (room is not current or item.key is not None):
                self._spread(current, run)
                run = []
            if item.key is not None:
                self._spread_one(room, item)
                continue
            current = room
            run.append(item)
        if run:
            self._spread(current, run)
        return told

    def _obey(self, channel: bytes, payload: bytes) -> Sequence[Publication]:
        try:
            command = _decode_command(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            self._dropped += 1
            return []
        if command.topic is not None and not channel.endswith(b":disconnect"):
            return self.close_topic(command.topic, CLOSE if channel.endswith(b":close") else ERROR)
        for room in self._rooms.values() if command.id is not None else ():
            for membership in room.members.values():
                if membership.id == command.id:
                    membership.outbox.close(DISCONNECTED)
        return []

    def _spread(self, room: _Room | None, items: list[Encoded]) -> None:
        assert room is not None
        run = Run(items)
        outboxes = room.outboxes
        if outboxes is None:
            outboxes = room.outboxes = tuple(member.outbox for member in room.members.values())
        for outbox in outboxes:
            outbox.put_run(run)
        self._messages += run.length
        self._deliveries += run.length * len(outboxes)

    def _spread_one(self, room: _Room, item: Encoded) -> None:
        for member in room.members.values():
            member.outbox.put(item)
        self._messages += 1
        self._deliveries += len(room.members)

    def _learn(self, channel: bytes) -> _Route:
        route = self._route(channel)
        if len(self._routes) >= _MAX_ROUTES:
            self._routes.clear()
        self._routes[channel] = route
        return route

    def _route(self, channel: bytes) -> _Route:
        if channel in _COMMANDS:
            return _COMMAND
        prefix, _, rest = channel.partition(b":")
        name, colon, event_bytes = rest.rpartition(b":")
        try:
            topic, event = name.decode(), event_bytes.decode()
        except UnicodeDecodeError:
            return _NOWHERE
        room = self._rooms.get(topic)
        if prefix != b"to" or not colon or room is None:
            return _NOWHERE
        if event.startswith("phx_"):
            return _Route(room, b"", None, None)
        binary = codec.encode_binary_broadcast(topic, event) if len(event_bytes) <= MAX_FIELD else None
        full = f"{topic}:{event}"
        key = full if any(pattern.match(full) for pattern in self._conflate) else None
        return _Route(room, codec.text_header(None, None, topic, event), binary, key)

    @staticmethod
    def _encode(route: _Route, payload: bytes) -> Encoded | None:
        if not payload or not route.text_header:
            return None
        if codec.is_document(payload):
            return Encoded(TEXT, route.text_header + payload + b"]", route.key)
        if route.binary_header is None:
            return None
        return Encoded(BINARY, route.binary_header + payload, route.key)

    # Memberships.

    def join(self, membership: Membership, ref: str | None) -> list[Publication]:
        """Answer the join, register the member, and return what Redis should hear.

        The answer goes into the outbox first, so that no event can come before it; the member is registered
        before anything is published, so that it misses nothing.
        """
        topic = membership.topic
        to = Reply(membership.join_ref, ref, topic)
        self.reply(membership.outbox, to, "ok", {"id": membership.agent})
        special = topic in SPECIAL
        room = self._rooms.get(topic)
        if room is None:
            room = self._rooms[topic] = _Room(topic)
            self._routes.clear()
        room.members[membership.conn] = membership
        room.outboxes = None
        if self._presence is not None:
            self._presence.join(topic, membership.id, membership.agent, membership)
        if topic == ADMIN:
            self._list_topics(membership.outbox)
        told = [] if special else [self._admin("add", {"channel": topic, **self._topic_names(topic)})]
        told.append(self._admin("join", self._agents(room, membership, here=True)))
        return told

    def leave(self, membership: Membership) -> list[Publication]:
        """End a membership, and return what Redis should hear. One that has ended already says nothing."""
        if not membership.alive:
            return []
        membership.alive = False
        topic = membership.topic
        room = self._rooms[topic]
        del room.members[membership.conn]
        room.outboxes = None
        if self._presence is not None:
            self._presence.leave(topic, membership.id, membership.agent, membership)
        told = [self._admin("leave", self._agents(room, membership, here=False))]
        if not room.members:
            del self._rooms[topic]
            self._routes.clear()
            if topic not in SPECIAL:
                told.append(self._admin("remove", {"channel": topic, **self._topic_names(None)}))
        return told

    def interrupted(self) -> None:
        """The feed from Redis had a gap: every member is told by ``phx_error``, and will join again.

        Until then it stays a member: phoenix.js joins again after a second, and meanwhile hands on what
        comes for the topic. So the first message after an outage need not wait for the join.
        """
        self._interruptions += 1
        for topic, room in self._rooms.items():
            item = codec.encode_text(None, None, topic, ERROR, b"{}")
            for membership in room.members.values():
                membership.outbox.put(item)

    def close_topic(self, topic: str, event: str = CLOSE) -> Sequence[Publication]:
        """End all memberships of a topic; with ``phx_error`` instead of ``phx_close`` the members come
        back.
        """
        room = self._rooms.get(topic)
        if room is None:
            return []
        item = codec.encode_text(None, None, topic, event, b"{}")
        told: list[Publication] = []
        for membership in list(room.members.values()):
            membership.outbox.put(item)
            told += self.leave(membership)
        return told

    @property
    def topics(self) -> Sequence[str]:
        """Topics with members now."""
        return list(self._rooms)

    def members(self, topic: str) -> Mapping[str, Membership]:
        """Who is on ``topic``: connection to membership. Read only."""
        room = self._rooms.get(topic)
        return {} if room is None else room.members

    # Presence, and what the admin topic hears.

    @property
    def dirty(self) -> bool:
        """Is there presence to flush?"""
        return self._presence is not None and self._presence.dirty

    def flush(self) -> list[Publication]:
        """Tell newcomers who is there, and return the differences to publish."""
        if self._presence is None:
            return []
        told = []
        for change in self._presence.flush():
            if change.newcomers:
                state = codec.encode_text(
                    None, None, change.topic, PRESENCE_STATE, codec.encode_json(change.state)
                )
                for membership in change.newcomers:
                    membership.outbox.put_exempt(state)
            if change.joins or change.leaves:
                payload = codec.encode_json({"joins": change.joins, "leaves": change.leaves})
                told.append(Publication(f"to:{change.topic}:{PRESENCE_DIFF}", payload))
        return told

    def restore(self, difference: Publication) -> None:
        """A difference of `flush` may have reached nobody: the next one says it anew."""
        if self._presence is not None:
            said = msgspec.json.decode(difference.payload)
            topic = difference.channel.removeprefix("to:").removesuffix(f":{PRESENCE_DIFF}")
            self._presence.restore(topic, said["joins"], said["leaves"])

    def _list_topics(self, outbox: Outbox) -> None:
        # Straight to the newcomer. It must not fill half of the outbox: a list is not worth a connection.
        for topic in {**dict.fromkeys(sorted(SPECIAL)), **dict.fromkeys(self._rooms)}:
            if outbox.room < outbox.max_backlog // 2:
                return
            members = self.members(topic)
            agents = [member.agent for member, _ in zip(members.values(), range(MAX_AGENTS), strict=False)]
            payload: dict[str, object] = {"agents": agents, "channel": topic}
            if len(members) > MAX_AGENTS:
                payload["count"] = len(members)
            outbox.put(codec.encode_text(None, None, ADMIN, "channel.list", codec.encode_json(payload)))

    def _agents(self, room: _Room, membership: Membership, *, here: bool) -> dict[str, object]:
        agent = membership.agent
        about: dict[str, object] = {"agent": agent, "channel": room.topic}
        if len(room.members) <= MAX_AGENTS:
            about["agents"] = [member.agent for member in room.members.values()]
        else:
            about["agents"] = [agent] if here else []
            about["count"] = len(room.members)
        return about

    def _topic_names(self, newcomer: str | None) -> dict[str, object]:
        if len(self._rooms) <= MAX_AGENTS:
            return {"channels": list({**dict.fromkeys(SPECIAL), **dict.fromkeys(self._rooms)})}
        return {"channels": [newcomer] if newcomer is not None else [], "count": len(self._rooms)}

    @staticmethod
    def _admin(what: str, payload: Mapping[str, object]) -> Publication:
        return Publication(f"to:{ADMIN}:channel.{what}", codec.encode_json(dict(sorted(payload.items()))))

    @staticmethod
    def reply(outbox: Outbox, to: Reply, status: str, response: object) -> None:
        """Answer one frame; without a ``ref`` there is nobody who waits for it."""
        if to.ref is not None:
            payload = codec.encode_json({"status": status, "response": response})
            outbox.put(codec.encode_text(to.join_ref, to.ref, to.topic, REPLY, payload))

    @staticmethod
    def acknowledge(outbox: Outbox, replies: Sequence[Reply | Message | None]) -> None:
        """Answer ``ok`` and nothing else, to all of these at once; to nobody where there is None, or no
        ``ref``.
        """
        acknowledged = codec.encode_acknowledgements(replies)
        if acknowledged:
            outbox.put_run(Run(texts=acknowledged))

    def statistics(self) -> HubStatistics:
        return HubStatistics(
            topics=len(self._rooms),
            members=sum(len(room.members) for room in self._rooms.values()),
            messages=self._messages,
            deliveries=self._deliveries,
            unheard=self._unheard,
            dropped=self._dropped,
            interruptions=self._interruptions,
        )
