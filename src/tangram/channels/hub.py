"""The hub: the members of each topic, and one encoding of a message for all of them.

1. There is no I/O and no clock here. Publications are returned; messages go into the members' outboxes.
2. Dispatch is exact on (topic, event). A client's string is never a pattern: ``*`` is a character.
3. A message is encoded once for each form that members need: a serializer, and the member's ``join_ref`` if
   broadcasts must have one. All members with the same form get the same object; usually there is one form.
4. ``phx_*`` events from Redis are not forwarded, because browsers would take them for the protocol's own.
5. One bad message never costs its batch: a message that cannot be encoded is counted and left out.
6. When the hub ends a membership it sets ``alive`` to False. Sockets read that; they are not called.
7. Plugins send commands over Redis on the protocol's own topic: ``to:phoenix:disconnect`` with
   ``{"id": ID}`` ends the connections of that external id. ``to:phoenix:close`` and ``to:phoenix:reset`` with
   ``{"topic": TOPIC}`` end the memberships of a topic, for good or so that the members join again.
8. Members that asked for positions get them in the same write as the messages that they cover, and must
   join again after a gap, from the last position that they saw. Other members see no difference.
9. Presence for many members is put in slices (``slices``); the caller asks for them in later passes.
10. On several nodes the presence is shared: differences are published by functions on Redis, and pass through
   the roll before members get them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import translate
from typing import Final, NamedTuple

import msgspec

from tangram.channels import codec
from tangram.channels.catchup import REPLY_ROOM, Catchup, Form, encode_position
from tangram.channels.destinations import COMMAND, NO_MEMBERS, POSITIONS, WHO, Destination, Pending, Topic
from tangram.channels.disconnects import DISCONNECTED, MOVING
from tangram.channels.frames import (
    CLOSE,
    ERROR,
    PHOENIX,
    PRESENCE_COUNT,
    PRESENCE_DIFF,
    PRESENCE_STATE,
    REPLY,
    TEXT,
    Encoded,
    ReplyTo,
    Run,
    SocketMessage,
)
from tangram.channels.hub_statistics import HubStatistics, TopicStatistics
from tangram.channels.json_text import is_document
from tangram.channels.membership import LIST_CREDIT, LIST_FACTOR, ListAllowance, Membership, may_list
from tangram.channels.outbox import Outbox, put_replies, put_run_all
from tangram.channels.presence import Presence, PresenceTracker, SharedPresence
from tangram.channels.presence_rules import PresenceRules
from tangram.channels.slices import SEND_COST, SLICE, Slices

__all__ = [
    "ADMIN",
    "LIST_CREDIT",
    "LIST_FACTOR",
    "MAX_AGENTS",
    "POSITION",
    "SEND_COST",
    "SPECIAL",
    "Hub",
    "HubStatistics",
    "ListAllowance",
    "Membership",
    "Publication",
    "TopicStatistics",
]

ADMIN: Final = "admin"
SPECIAL: Final = ("admin", PHOENIX, "system")
"""Topics that always exist: they cause no ``channel.add`` and no ``channel.remove``."""

MAX_AGENTS: Final = 100
"""Agents (and topics) listed in one admin event. Above it an event has only the newcomer and the ``count``,
because the whole list at every join costs the square of the members when all rejoin after a restart."""
_MAX_OWN: Final = 1000
"""Differences that are on their way through Redis at once; there are 20 a second for each topic."""
_MAX_DESTINATIONS: Final = 8192
"""Redis channel names whose frame headers are remembered; all are forgotten at once when there are more."""


POSITION: Final = b"tangram:position"
"""The channel of positions in a batch: the feed puts them behind the messages that they cover. Redis never
sends it, because the bus subscribes to ``to:*``."""


class Publication(NamedTuple):
    """A message to publish on Redis."""

    channel: str
    payload: bytes


_CHANNELS: Final[Mapping[bytes, Destination]] = {
    POSITION: POSITIONS,
    b"to:phoenix:at": NO_MEMBERS,  # the stamps of histories
    b"to:phoenix:who": WHO,
    b"to:phoenix:disconnect": COMMAND,
    b"to:phoenix:close": COMMAND,
    b"to:phoenix:reset": COMMAND,
}
"""Channels that are not for members."""


class _Command(msgspec.Struct):
    id: str | None = None
    topic: str | None = None


_decode_command: Final = msgspec.json.Decoder(_Command).decode


class Hub:
    """The topics of one incarnation, with their members."""

    def __init__(
        self,
        *,
        presence: bool = True,
        presence_rules: PresenceRules | None = None,
        shared: SharedPresence[Membership] | None = None,
        conflate: Iterable[str] = (),
        broadcast_join_ref: bool = False,
        slice_size: int = SLICE,
    ) -> None:
        """Make a hub.

        Args:
            presence: whether presence is tracked and published.
            presence_rules: how the members of each topic are shown.
            shared: the presence of all nodes, if there may be several.
            conflate: patterns over ``topic:event``; of such events only the newest waits for a slow client.
            broadcast_join_ref: whether broadcasts have the ``join_ref`` of their receiver.
            slice_size: bytes of presence that are put at once.
        """
        self._broadcast_join_ref = broadcast_join_ref
        self.available = True
        """Whether Redis is available. While it is not, joins and pushes are refused."""
        self.is_kept: Callable[[bytes], bool] = lambda _channel: False
        """Whether the messages of a Redis channel are for the feed of histories."""
        self.rest: Sequence[tuple[bytes, bytes]] = ()
        """The messages that the last ``deliver`` has left."""
        self._shared = shared if presence else None
        self._local = Presence[Membership](presence_rules) if presence and shared is None else None
        self._presence: PresenceTracker[Membership] | None = self._shared or self._local
        self._conflate = [re.compile(translate(pattern)) for pattern in conflate]
        self._topics: dict[str, Topic] = {}
        self.slices = Slices(self._form, slice_size)
        """The messages of presence that wait."""
        self._destinations: dict[bytes, Destination] = {}
        self._own_differences: dict[bytes, None] = {}
        """The differences of this hub that Redis has not sent back yet, the oldest first."""
        self._messages = self._deliveries = self._undelivered = self._dropped = self._interruptions = 0
        self._presence_bytes = self._presence_sends = 0
        self._sent_bytes_of_ended = 0
        """``sent_bytes`` of the topics whose last member has left."""

    # Messages from Redis, into the outboxes.

    def deliver(
        self, batch: Sequence[tuple[bytes, bytes]], *, until_kept: bool = False
    ) -> Sequence[Publication]:
        """Put a batch of (Redis channel, payload) into the outboxes of the members, in order.

        Consecutive messages for one topic are put as one run, which is framed once for all members.

        Args:
            batch: pairs of channel and payload.
            until_kept: end before the first message of a channel for which ``is_kept`` is true; ``rest`` has
                the messages from there on.

        Returns:
            The publications that announce the memberships which commands in the batch have ended.
        """
        publications: list[Publication] = []
        destinations = self._destinations
        current: Topic | None = None
        run: list[Pending] = []
        messages = iter(batch)
        self.rest = ()
        for channel, payload in messages:
            destination = destinations.get(channel)
            if destination is None:
                destination = self._remember(channel)
            topic = destination.topic
            if topic is None:
                if until_kept and destination.kept is not None:
                    self.rest = ((channel, payload), *messages)
                    break
                destination = destination.kept or destination
                topic = destination.topic
                if topic is None:
                    publications += self._take_other(destination, channel, payload, current, run)
                    continue
            document = is_document(payload)
            if not payload or destination.reserved or not (document or destination.binary):
                self._dropped += 1
                continue
            if run and (topic is not current or destination.alone):
                self._put_run(current, run)
                run = []
            if destination.alone:
                self._put_one(topic, (destination, payload, document))
                continue
            current = topic
            run.append((destination, payload, document))
        if run:
            self._put_run(current, run)
        return publications

    def _take_other(
        self,
        destination: Destination,
        channel: bytes,
        payload: bytes,
        current: Topic | None,
        run: list[Pending],
    ) -> Sequence[Publication]:
        """Take a message without members; put the run before a command or a position."""
        if destination is NO_MEMBERS:
            self._undelivered += 1
            return ()
        pending = run[:]
        run.clear()
        if destination is POSITIONS:
            self._put_position(current, pending, payload)
            return ()
        if pending:
            self._put_run(current, pending)
        if destination is WHO:
            if self._shared is not None:
                self._shared.take_stamp(payload)
                self.put_corrections()
            return ()
        return self._execute(channel, payload)

    def _put_position(self, current: Topic | None, run: list[Pending], payload: bytes) -> None:
        """Put a run and a position, in one write if they are of the same topic."""
        name, _, position = payload.partition(b"\0")
        topic = self._topics.get(name.decode())
        if run and topic is not current:
            self._put_run(current, run)
            run = []
        if topic is not None and (run or topic.followers):
            self._put_run(topic, run, position=position)

    def _execute(self, channel: bytes, payload: bytes) -> Sequence[Publication]:
        try:
            command = _decode_command(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            self._dropped += 1
            return []
        if command.topic is not None and not channel.endswith(b":disconnect"):
            return self.close_topic(command.topic, CLOSE if channel.endswith(b":close") else ERROR)
        for topic in self._topics.values() if command.id is not None else ():
            for membership in topic.members.values():
                if membership.id == command.id:
                    membership.outbox.close(DISCONNECTED)
        return []

    def _put_run(
        self,
        topic: Topic | None,
        pending: list[Pending],
        groups: Mapping[Form, list[Outbox]] | None = None,
        position: bytes = b"",
    ) -> None:
        """Put messages into the outboxes of a topic's members, or of some of them (``groups``).

        Behind them comes the ``position``, if there is one, for the members that asked for positions.
        """
        assert topic is not None
        for form, outboxes in (groups or topic.groups or self._group(topic)).items():
            items = []
            for destination, payload, document in pending:
                header = destination.headers.get(form) or destination.header(form)
                if document:
                    items.append(Encoded(TEXT, header.text, payload, header.tail))
                elif (item := header.encode(payload, None, document=False)) is not None:
                    items.append(item)
            delivered = len(items) * len(outboxes)
            if position and form[2]:
                items.append(encode_position(topic.name, form, position))
            if items:
                run = Run(items)
                put_run_all(outboxes, run)
                topic.sent_bytes += run.size * len(outboxes)
            topic.deliveries += delivered
            self._deliveries += delivered
        topic.messages += len(pending)
        self._messages += len(pending)

    def _put_one(self, topic: Topic, pending: Pending) -> None:
        """Put a message that may be replaced by a newer one, or a difference of presence."""
        destination, payload, document = pending
        if destination.key is None:
            self._put_difference(topic, pending)
            return
        for form, outboxes in (topic.groups or self._group(topic)).items():
            header = destination.headers.get(form) or destination.header(form)
            item = header.encode(payload, destination.key, document=document)
            if item is not None:
                for outbox in outboxes:
                    outbox.put(item)
                self._count(topic, len(outboxes), item.size * len(outboxes))
        topic.messages += 1
        self._messages += 1

    def _put_difference(self, topic: Topic, pending: Pending) -> None:
        """Put a difference of presence into the outboxes of the members that need it.

        Newcomers that wait for the state need none of this hub's own: the state will contain it.
        """
        _, payload, listed = pending
        if self._shared is not None:
            if not self._shared.take_difference(topic.name, payload):
                return
            waiting = self._shared.newcomers(topic.name)
        else:
            listed = payload in self._own_differences
            self._own_differences.pop(payload, None)
            presence = self._presence
            waiting = presence.newcomers(topic.name) if presence is not None and listed else ()
        members = [member for member in topic.members.values() if member not in waiting]
        self._count_presence(len(members), len(payload))
        if listed:
            self._count(topic, len(members), self.slices.put(topic, members, PRESENCE_DIFF, payload))
            topic.messages += 1
            self._messages += 1
        elif members:  # of another server: no list contains it
            self.slices.finish(topic)
            self._put_run(topic, [pending], self._grouped(members))

    def put_corrections(self) -> None:
        """Send the differences of presence that members have missed."""
        for name, payload in self._shared.take_corrections() if self._shared is not None else ():
            waiting = self._shared.newcomers(name) if self._shared is not None else ()
            members = [member for member in self.members(name).values() if member not in waiting]
            self._put_presence(name, members, PRESENCE_DIFF, payload)

    def _put_presence(self, name: str, members: Sequence[Membership], event: str, payload: bytes) -> None:
        if members:
            self.slices.put(self._topics[name], members, event, payload)
            self._count_presence(len(members), len(payload))

    def _count(self, topic: Topic, deliveries: int, size: int) -> None:
        topic.sent_bytes += size
        topic.deliveries += deliveries
        self._deliveries += deliveries

    def _count_presence(self, receivers: int, size: int) -> None:
        self._presence_sends += receivers
        self._presence_bytes += receivers * size

    def _group(self, topic: Topic) -> dict[Form, list[Outbox]]:
        """Group the outboxes of a topic by the form that they need, for a message to all of them."""
        if topic.unfinished:
            self.slices.finish(topic)
        topic.groups = groups = self._grouped(topic.members.values())
        return groups

    def _grouped(self, members: Iterable[Membership]) -> dict[Form, list[Outbox]]:
        groups: dict[Form, list[Outbox]] = {}
        for member in members:
            groups.setdefault(self._form(member), []).append(member.outbox)
        return groups

    def _form(self, member: Membership) -> Form:
        join_ref = member.join_ref if self._broadcast_join_ref else None
        return member.outbox.serializer, join_ref, member.follows

    def _put_event(self, topic: str, members: Iterable[Membership], event: str, payload: bytes) -> None:
        """Put one event into the outboxes of some members, encoded once for each form."""
        encoded: dict[Form, Encoded] = {}
        for member in members:
            form = serializer, join_ref, _ = self._form(member)
            item = encoded.get(form)
            if item is None:
                item = encoded[form] = serializer.encode_text(join_ref, None, topic, event, payload)
            if event == PRESENCE_STATE:
                member.outbox.put_exempt(item)
            else:
                member.outbox.put(item)

    def _remember(self, channel: bytes) -> Destination:
        destination = self._find_destination(channel)
        if self.is_kept(channel):
            destination = Destination(None, kept=destination)
        if len(self._destinations) >= _MAX_DESTINATIONS:
            self._destinations.clear()
        self._destinations[channel] = destination
        return destination

    def _find_destination(self, channel: bytes) -> Destination:
        special = _CHANNELS.get(channel)
        if special is not None:
            return special
        prefix, _, rest = channel.partition(b":")
        name, colon, event_bytes = rest.rpartition(b":")
        try:
            topic_name, event = name.decode(), event_bytes.decode()
        except UnicodeDecodeError:
            return NO_MEMBERS
        topic = self._topics.get(topic_name)
        if prefix != b"to" or not colon or topic is None:
            return NO_MEMBERS
        full = f"{topic_name}:{event}"
        key = full if any(pattern.match(full) for pattern in self._conflate) else None
        return Destination(topic, event, key)

    # Memberships.

    def join(
        self, membership: Membership, ref: str | None, catchup: Catchup | None = None
    ) -> list[Publication]:
        """Reply to the join, register the member, and return the publications that announce it.

        If the member asked for positions, the messages of ``catchup`` follow the reply.

        The reply goes into the outbox first, so that no event can come before it. The member is registered
        before anything is published, so that it misses nothing.
        """
        name = membership.topic
        to = ReplyTo(membership.join_ref, ref, name)
        response = {"id": membership.agent}
        self.reply(membership.outbox, to, "ok", {**response, **catchup.response} if catchup else response)
        special = name in SPECIAL
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = Topic(name)
            self._destinations.clear()
        topic.members[membership.conn] = membership
        membership.follows = catchup is not None and catchup.follows
        topic.followers += membership.follows
        if catchup is not None:
            membership.outbox.put_run(catchup.encode(name, self._form(membership)))
        if topic.groups is not None:
            # One joins after the other: grouping all of them anew at each message would cost the square.
            topic.groups.setdefault(self._form(membership), []).append(membership.outbox)
        if self._presence is not None:
            self._presence.join(name, membership.id, membership.agent, membership)
        if name == ADMIN:
            self._list_topics(membership.outbox)
        publications = []
        if not special:
            publications.append(
                self._admin("add", {"channel": name, **self._topic_names(name, membership.allowance)})
            )
        publications.append(self._admin("join", self._agents(topic, membership, present=True)))
        return publications

    def has_room(self, membership: Membership, catchup: Catchup) -> bool:
        """Return whether the messages of ``catchup`` fit into the member's outbox."""
        form = (*self._form(membership)[:2], True)
        return catchup.encode(membership.topic, form).size + REPLY_ROOM <= membership.outbox.free

    def leave(self, membership: Membership) -> list[Publication]:
        """End a membership, and return the publications that announce it."""
        if not membership.alive:
            return []
        membership.alive = False
        name = membership.topic
        topic = self._topics[name]
        del topic.members[membership.conn]
        topic.groups = None
        topic.followers -= membership.follows
        if self._local is not None:
            self._local.leave(name, membership.id, membership.agent, membership)
        elif self._shared is not None:
            moving = membership.outbox.disconnect in MOVING
            self._shared.leave(name, membership.id, membership.agent, membership, moving=moving)
        publications = [self._admin("leave", self._agents(topic, membership, present=False))]
        if not topic.members:
            del self._topics[name]
            self._sent_bytes_of_ended += topic.sent_bytes
            self._destinations.clear()
            if name not in SPECIAL:
                names = self._topic_names(None, membership.allowance)
                publications.append(self._admin("remove", {"channel": name, **names}))
        return publications

    def interrupted(self) -> Sequence[Publication]:
        """Make every member join again after a gap in the subscription, by ``phx_error``.

        It stays a member until then. phoenix.js joins again after a second and meanwhile still accepts
        messages for the topic, so that the first message after an outage need not wait for the join. A member
        that asked for positions does not stay, because it gets the messages after the gap when it is back.

        Returns:
            The publications that announce the end of memberships.
        """
        self._interruptions += 1
        publications: list[Publication] = []
        for name, topic in list(self._topics.items()):
            self.slices.finish(topic)
            staying = [member for member in topic.members.values() if not member.follows]
            self._put_event(name, staying, ERROR, b"{}")
            publications += self.expel_followers(name)
        return publications

    def expel_followers(self, name: str) -> Sequence[Publication]:
        """Make the members that asked for positions join again, from the last one.

        Returns:
            The publications that announce the end of their memberships.
        """
        topic = self._topics.get(name)
        if topic is None or not topic.followers:
            return []
        members = [member for member in topic.members.values() if member.follows]
        self._put_event(name, members, ERROR, b"{}")
        publications: list[Publication] = []
        for membership in members:
            publications += self.leave(membership)
        return publications

    def has_followers(self, name: str) -> bool:
        """Return whether a topic has members that asked for positions."""
        topic = self._topics.get(name)
        return topic is not None and topic.followers > 0

    def close_topic(self, name: str, event: str = CLOSE) -> Sequence[Publication]:
        """End all memberships of a topic, and return the publications that announce it.

        Args:
            name: the topic.
            event: ``phx_close``, or ``phx_error`` after which the members join again.
        """
        topic = self._topics.get(name)
        if topic is None:
            return []
        members = list(topic.members.values())
        self._put_event(name, members, event, b"{}")
        publications: list[Publication] = []
        for membership in members:
            publications += self.leave(membership)
        return publications

    @property
    def topics(self) -> Sequence[str]:
        """The topics that have members now."""
        return list(self._topics)

    def members(self, name: str) -> Mapping[str, Membership]:
        """Return the members of a topic, as a read-only map of connection id to membership."""
        topic = self._topics.get(name)
        return {} if topic is None else topic.members

    # Presence, and the events of the admin topic.

    @property
    def dirty(self) -> bool:
        """Whether there is presence to flush."""
        return self._local is not None and self._local.dirty

    @property
    def states_due(self) -> bool:
        """Whether newcomers wait for the presence state."""
        return self._presence is not None and bool(self._presence.waiting)

    @property
    def presence_cost(self) -> int:
        """Bytes of presence that members were sent, and ``SEND_COST`` for each message."""
        return self._presence_bytes + SEND_COST * self._presence_sends

    def flush(self) -> list[Publication]:
        """Return the differences of presence to publish."""
        publications: list[Publication] = []
        own = self._own_differences
        for change in self._local.flush() if self._local is not None else ():
            payload = codec.encode_json({"joins": change.joins, "leaves": change.leaves})
            publications.append(Publication(f"to:{change.topic}:{PRESENCE_DIFF}", payload))
            own[payload] = None
        while len(own) > _MAX_OWN:
            del own[next(iter(own))]
        return publications

    def send_states(self, budget: int) -> None:
        """Send the presence state to newcomers, until ``budget`` bytes are used or none is left.

        Topics take turns, and each newcomer gets the state as it is now.
        """
        presence = self._presence
        while presence is not None and presence.waiting and budget > 0:
            topic = next(iter(presence.waiting))
            number = presence.number(topic)
            state = presence.state(topic) if number is None else _encode_number(number)
            members = presence.take_newcomers(topic, max(1, budget // (len(state) + SEND_COST)))
            self.slices.stated(members)
            self._put_event(topic, members, PRESENCE_STATE if number is None else PRESENCE_COUNT, state)
            self._count_presence(len(members), len(state))
            budget -= len(members) * (len(state) + SEND_COST)

    def send_numbers(self) -> None:
        """Send members of topics above their limits the number of members, where it changed."""
        for topic, number in self._presence.take_numbers() if self._presence is not None else ():
            members = list(self.members(topic).values())
            self._put_presence(topic, members, PRESENCE_COUNT, _encode_number(number))

    def restore(self, difference: Publication) -> None:
        """Repeat a difference of ``flush`` that may not have been published, with the next flush."""
        self._own_differences.pop(difference.payload, None)
        if self._local is not None:
            listed = msgspec.json.decode(difference.payload)
            topic = difference.channel.removeprefix("to:").removesuffix(f":{PRESENCE_DIFF}")
            self._local.restore(topic, listed["joins"], listed["leaves"])

    def _list_topics(self, outbox: Outbox) -> None:
        # Directly to the newcomer, and at most half of its outbox: a full outbox would end the connection.
        for topic in {**dict.fromkeys(sorted(SPECIAL)), **dict.fromkeys(self._topics)}:
            if outbox.free < outbox.max_backlog // 2:
                return
            members = self.members(topic)
            agents = [member.agent for member, _ in zip(members.values(), range(MAX_AGENTS), strict=False)]
            payload: dict[str, object] = {"agents": agents, "channel": topic}
            if len(members) > MAX_AGENTS:
                payload["count"] = len(members)
            encoded = codec.encode_json(payload)
            outbox.put(outbox.serializer.encode_text(None, None, ADMIN, "channel.list", encoded))

    def _agents(self, topic: Topic, membership: Membership, *, present: bool) -> dict[str, object]:
        agent = membership.agent
        about: dict[str, object] = {"agent": agent, "channel": topic.name}
        if len(topic.members) <= MAX_AGENTS:
            agents = [member.agent for member in topic.members.values()]
            if may_list(agents, membership.allowance):
                about["agents"] = agents
                return about
        about["agents"] = [agent] if present else []
        about["count"] = len(topic.members)
        return about

    def _topic_names(self, newcomer: str | None, allowance: ListAllowance | None) -> dict[str, object]:
        if len(self._topics) <= MAX_AGENTS:
            names = list({**dict.fromkeys(SPECIAL), **dict.fromkeys(self._topics)})
            if may_list(names, allowance):
                return {"channels": names}
        return {"channels": [newcomer] if newcomer is not None else [], "count": len(self._topics)}

    @staticmethod
    def _admin(event: str, payload: Mapping[str, object]) -> Publication:
        return Publication(f"to:{ADMIN}:channel.{event}", codec.encode_json(dict(sorted(payload.items()))))

    @staticmethod
    def reply(outbox: Outbox, to: ReplyTo, status: str, response: object) -> None:
        """Reply to one frame, if it has a ``ref``; without one no client waits for a reply."""
        if to.ref is not None:
            payload = codec.encode_json({"status": status, "response": response})
            outbox.put(outbox.serializer.encode_text(to.join_ref, to.ref, to.topic, REPLY, payload))

    @staticmethod
    def acknowledge(outbox: Outbox, replies: Sequence[ReplyTo | SocketMessage | None]) -> None:
        """Reply ``ok`` to all of these at once, except None and frames without ``ref``."""
        acknowledged = outbox.serializer.encode_acknowledgements(replies)
        if acknowledged:
            put_replies(outbox, Run(texts=acknowledged))

    def statistics(self) -> HubStatistics:
        """Return the numbers of this hub."""
        members, sent_bytes = 0, self._sent_bytes_of_ended
        for topic in self._topics.values():
            members += len(topic.members)
            sent_bytes += topic.sent_bytes
        return HubStatistics(
            topics=len(self._topics),
            members=members,
            sent_bytes=sent_bytes,
            messages=self._messages,
            deliveries=self._deliveries,
            undelivered=self._undelivered,
            dropped=self._dropped,
            interruptions=self._interruptions,
            presence_bytes=self._presence_bytes,
        )

    def topic_statistics(self) -> Sequence[TopicStatistics]:
        """Return the numbers of each topic that has members now."""
        return [
            TopicStatistics(
                topic=topic.name,
                members=len(topic.members),
                present=self._count_present(topic),
                messages=topic.messages,
                deliveries=topic.deliveries,
                sent_bytes=topic.sent_bytes,
                backlog=sum(member.outbox.pending for member in topic.members.values()),
            )
            for topic in self._topics.values()
        ]

    def _count_present(self, topic: Topic) -> int:
        present = None if self._presence is None else self._presence.present(topic.name)
        return len(topic.members) if present is None else present


def _encode_number(number: int) -> bytes:
    return b'{"count":%d}' % number
