from __future__ import annotations

from collections import defaultdict
from typing import Any, cast

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tangram.channels.disconnects import DISCONNECTED
from tangram.channels.frames import BINARY, TEXT
from tangram.channels.hub import MAX_AGENTS, SEND_COST, Hub, Membership, Publication
from tangram.channels.outbox import Outbox
from tests.channels.fakes import drained, open_outbox

MUCH = 1 << 30
"""Bytes of presence that are never used up."""


def join(hub: Hub, conn: str, topic: str, outbox: Outbox | None = None, id_: str = "") -> Membership:
    membership = Membership(
        conn, topic, "1", id_ or f"id-{conn}", open_outbox() if outbox is None else outbox
    )
    hub.join(membership, "1")
    return membership


def joined(hub: Hub, conn: str, topic: str, id_: str = "") -> Membership:
    """Join, and read everything that the join caused."""
    membership = join(hub, conn, topic, id_=id_)
    drained(membership.outbox)
    return membership


def frames(outbox: Outbox) -> list[list[Any]]:
    """Return the waiting text messages, decoded."""
    return cast("list[list[Any]]", drained(outbox))


def test_all_members_get_the_same_object() -> None:
    """A broadcast is encoded once, with nulls for the fields that differ between members."""
    hub = Hub()
    members = [joined(hub, conn, "obs") for conn in "abc"]
    hub.deliver([(b"to:obs:update", b'{"t":1}'), (b"to:obs:raw", b"\x00\xff")])

    first, *rest = [member.outbox.take_all() for member in members]
    assert [item.opcode for item in first] == [TEXT, BINARY]
    assert first[0].data == b'[null,null,"obs","update",{"t":1}]'
    assert first[1].data == b"\x02\x03\x03obsraw\x00\xff"
    for items in rest:
        assert all(one is other for one, other in zip(first, items, strict=True))


def test_dispatch_is_exact() -> None:
    """Neither glob characters nor prefixes match other topics, and the last colon splits."""
    hub = Hub()
    members = {
        topic: joined(hub, "a" + topic, topic) for topic in ("obs*", "obs", "*", "obs:d", "o?s", "obs[a]")
    }
    hub.deliver(
        [
            (b"to:obs*:e", b"[1]"),
            (b"to:obs:e", b"[2]"),
            (b"to:obs:d:e", b"[3]"),
            (b"to:other:e", b"[4]"),
            (b"from:obs:e", b"[5]"),
            (b"to:obs", b"[6]"),
            (b"to:\xff:e", b"[7]"),
            (b"to:obs:\xff", b"[8]"),
            (b"to:obs:", b"[9]"),
        ]
    )

    got = {topic: drained(member.outbox) for topic, member in members.items()}
    assert got["obs*"] == [[None, None, "obs*", "e", [1]]]
    assert got["obs"] == [[None, None, "obs", "e", [2]], [None, None, "obs", "", [9]]]
    assert got["obs:d"] == [[None, None, "obs:d", "e", [3]]]
    assert got["*"] == got["o?s"] == got["obs[a]"] == []


def test_the_protocols_own_events_are_not_forwarded() -> None:
    """No message from Redis can answer a push, or reset or close a channel."""
    hub = Hub()
    member = joined(hub, "a", "obs")
    hub.deliver([(b"to:obs:phx_%b" % name, b"{}") for name in (b"reply", b"close", b"error", b"join", b"x")])

    assert drained(member.outbox) == []
    assert hub.statistics().dropped == 5


def test_a_bad_message_does_not_lose_its_batch() -> None:
    """Messages that cannot be encoded are left out; the others arrive in order."""
    hub = Hub()
    member = joined(hub, "a", "obs")
    long = b"to:obs:" + b"e" * 256
    hub.deliver(
        [(b"to:obs:a", b"[1]"), (b"to:obs:a", b""), (long, b"\x00"), (long, b"{}"), (b"to:obs:a", b"[2]")]
    )

    payloads = [frame[4] for frame in drained(member.outbox) if isinstance(frame, list)]
    assert payloads == [[1], {}, [2]]


def test_the_reply_to_a_join_comes_first() -> None:
    """The newcomer's first frame is the reply with its agent id, and it misses no later event."""
    hub = Hub()
    member = join(hub, "c", "obs")
    hub.deliver([(b"to:obs:e", b"[1]")])

    reply, event = drained(member.outbox)
    assert reply == ["1", "1", "obs", "phx_reply", {"status": "ok", "response": {"id": "c:obs:1"}}]
    assert event == [None, None, "obs", "e", [1]]


def test_a_join_and_a_leave_are_published() -> None:
    """The admin events list all agents and topics that are left."""
    hub = Hub()
    first = Membership("a", "obs", "1", "alice", open_outbox())

    assert hub.join(first, "1") == [
        Publication(
            "to:admin:channel.add", b'{"channel":"obs","channels":["admin","phoenix","system","obs"]}'
        ),
        Publication("to:admin:channel.join", b'{"agent":"a:obs:1","agents":["a:obs:1"],"channel":"obs"}'),
    ]
    second = join(hub, "b", "obs")
    assert hub.leave(first) == [
        Publication("to:admin:channel.leave", b'{"agent":"a:obs:1","agents":["b:obs:1"],"channel":"obs"}')
    ]
    assert hub.leave(second) == [
        Publication("to:admin:channel.leave", b'{"agent":"b:obs:1","agents":[],"channel":"obs"}'),
        Publication("to:admin:channel.remove", b'{"channel":"obs","channels":["admin","phoenix","system"]}'),
    ]
    assert hub.leave(second) == []


def test_special_topics_are_neither_added_nor_removed() -> None:
    """admin, system and phoenix always exist."""
    hub = Hub()
    member = Membership("a", "system", "1", "alice", open_outbox())

    assert [told.channel for told in hub.join(member, "1")] == ["to:admin:channel.join"]
    assert [told.channel for told in hub.leave(member)] == ["to:admin:channel.leave"]


def test_admin_events_do_not_grow_with_the_square() -> None:
    """Up to 100 agents are listed; above it only the newcomer, with the count."""
    hub = Hub()
    for number in range(MAX_AGENTS - 1):
        join(hub, f"c{number}", "obs")
    hundredth = Membership("x", "obs", "1", "x", open_outbox())
    about = msgspec.json.decode(hub.join(hundredth, "1")[1].payload)
    assert len(about["agents"]) == MAX_AGENTS

    next_one = Membership("y", "obs", "1", "y", open_outbox())
    about = msgspec.json.decode(hub.join(next_one, "1")[1].payload)
    assert about == {"agent": "y:obs:1", "agents": ["y:obs:1"], "channel": "obs", "count": MAX_AGENTS + 1}


def test_a_newcomer_on_admin_gets_the_list_directly() -> None:
    """Every existing topic is one channel.list frame for the newcomer alone."""
    hub = Hub()
    old = joined(hub, "a", "admin")
    joined(hub, "b", "obs")
    new = join(hub, "c", "admin")

    _, *frames = drained(new.outbox)
    listed = {frame[4]["channel"]: frame[4]["agents"] for frame in frames if isinstance(frame, list)}
    assert listed == {"admin": ["a:admin:1", "c:admin:1"], "phoenix": [], "system": [], "obs": ["b:obs:1"]}
    assert drained(old.outbox) == []


def test_a_long_topic_list_does_not_overflow_the_outbox() -> None:
    """The list stops at half of the outbox."""
    hub = Hub()
    for number in range(2000):
        join(hub, f"c{number}", f"topic-{number}")
    new = join(hub, "admin", "admin", open_outbox(max_backlog=20_000))

    assert new.outbox.disconnect is None
    assert len(drained(new.outbox)) > 50


def test_newcomers_share_one_state_and_one_difference() -> None:
    """Newcomers get the whole state, and a flush publishes one difference."""
    hub = Hub()
    alice = joined(hub, "a", "obs")
    assert hub.dirty
    hub.flush()
    hub.send_states(MUCH)
    drained(alice.outbox)
    bob = join(hub, "b", "obs")
    drained(bob.outbox)
    told = hub.flush()
    assert hub.states_due
    hub.send_states(MUCH)
    assert not hub.states_due

    state = {"id-a": {"metas": [{"phx_ref": "a:obs:1"}]}, "id-b": {"metas": [{"phx_ref": "b:obs:1"}]}}
    assert drained(bob.outbox) == [[None, None, "obs", "presence_state", state]]
    assert drained(alice.outbox) == []
    joins = {"id-b": {"metas": [{"phx_ref": "b:obs:1"}]}}
    assert [(one.channel, msgspec.json.decode(one.payload)) for one in told] == [
        ("to:obs:presence_diff", {"joins": joins, "leaves": {}})
    ]
    assert not hub.dirty


def test_a_state_larger_than_the_backlog_does_not_close_the_connection() -> None:
    """Each of many newcomers gets a state far above the bound behind its reply."""
    hub = Hub()
    boxes = [open_outbox(max_backlog=1000) for _ in range(300)]
    for number, box in enumerate(boxes):
        join(hub, f"c{number}", "system", box)
    hub.send_states(MUCH)

    assert all(box.disconnect is None for box in boxes)
    assert boxes[0].pending > 10_000


def test_states_are_sent_within_a_budget_and_each_is_the_newest() -> None:
    """A used budget leaves the other newcomers for the next call, which sends the state of then."""
    hub = Hub()
    members = [join(hub, f"c{number}", "system") for number in range(5)]
    for member in members:
        drained(member.outbox)
    hub.send_states(2 * SEND_COST)
    assert [len(member.outbox) for member in members] == [1, 1, 0, 0, 0]
    hub.leave(members.pop())
    hub.send_states(MUCH)

    states = [frames(member.outbox)[0][4] for member in members]
    assert [len(state) for state in states] == [5, 5, 4, 4]
    sent = sum(len(msgspec.json.encode(state)) for state in states)
    assert hub.statistics().presence_bytes == sent
    assert hub.presence_cost == sent + 4 * SEND_COST


def test_a_newcomer_gets_no_difference_of_this_hub_before_the_state() -> None:
    """The state will contain it; differences of other nodes are sent at once, because the state does not."""
    hub = Hub()
    alice = joined(hub, "a", "obs")
    hub.send_states(MUCH)
    drained(alice.outbox)
    bob = joined(hub, "b", "obs")
    (own,) = hub.flush()
    foreign = msgspec.json.encode({"joins": {"carol": {"metas": [{"phx_ref": "x:obs:1"}]}}, "leaves": {}})
    hub.deliver([(b"to:obs:n", b"[1]"), (own.channel.encode(), own.payload), (b"to:obs:n", b"[2]")])
    hub.deliver([(own.channel.encode(), foreign)])
    hub.send_states(MUCH)

    events = [(frame[3], frame[4]) for frame in frames(alice.outbox)]
    assert [event for event, _ in events] == ["n", "presence_diff", "n", "presence_diff"]
    events = [(frame[3], frame[4]) for frame in frames(bob.outbox)]
    assert [event for event, _ in events] == ["n", "n", "presence_diff", "presence_state"]
    assert events[2][1]["joins"].keys() == {"carol"}
    assert events[3][1].keys() == {"id-a", "id-b"}
    # The same bytes again are not this hub's.
    carol = joined(hub, "c", "obs")
    hub.deliver([(own.channel.encode(), own.payload)])
    assert [frame[3] for frame in frames(carol.outbox)] == ["presence_diff"]


def test_presence_can_be_switched_off() -> None:
    """Without presence no state and no differences are sent."""
    hub = Hub(presence=False)
    member = joined(hub, "a", "obs")

    assert not hub.dirty
    assert not hub.states_due
    assert hub.flush() == []
    hub.send_states(MUCH)
    assert drained(member.outbox) == []


def test_after_an_interruption_members_get_phx_error_and_still_receive() -> None:
    """Members must join again, and receive messages until they do."""
    hub = Hub()
    members = [joined(hub, "a", "obs"), joined(hub, "a", "system"), joined(hub, "b", "obs")]
    hub.interrupted()

    assert [frame for member in members for frame in drained(member.outbox)] == [
        [None, None, member.topic, "phx_error", {}] for member in members
    ]
    hub.deliver([(b"to:obs:e", b"[1]")])
    received = [frame for member in members for frame in drained(member.outbox)]
    assert received == [[None, None, "obs", "e", [1]]] * 2
    assert hub.statistics().interruptions == 1


def test_closing_a_topic_ends_its_memberships_and_publishes_the_leaves() -> None:
    """With phx_error, the memberships end, the members get it, and their leaves are published."""
    hub = Hub()
    members = [joined(hub, "a", "obs"), joined(hub, "b", "obs")]
    told = hub.close_topic("obs", "phx_error")

    assert [frame for member in members for frame in drained(member.outbox)] == [
        [None, None, "obs", "phx_error", {}]
    ] * 2
    assert not any(member.alive for member in members)
    assert hub.statistics().members == 0
    assert [one.channel for one in told].count("to:admin:channel.leave") == 2


def test_a_plugin_ends_the_connections_of_an_id() -> None:
    """``to:phoenix:disconnect`` closes the connections with a membership of that external id."""
    hub = Hub()
    members = [
        joined(hub, "a", "obs", "eve"),
        joined(hub, "b", "system", "eve"),
        joined(hub, "c", "obs", "bob"),
    ]
    hub.deliver([(b"to:phoenix:disconnect", b'{"id":"eve"}')])

    assert [member.outbox.disconnect for member in members] == [DISCONNECTED, DISCONNECTED, None]


@pytest.mark.parametrize(("command", "event"), [(b"close", "phx_close"), (b"reset", "phx_error")])
def test_a_plugin_ends_the_memberships_of_a_topic(command: bytes, event: str) -> None:
    """Members get the event, their leaves are published, and other topics go on."""
    hub = Hub()
    member, other = joined(hub, "a", "obs"), joined(hub, "a", "system")
    told = hub.deliver([(b"to:obs:e", b"[1]"), (b"to:phoenix:" + command, b'{"topic":"obs"}')])

    assert [cast("Any", frame)[3] for frame in drained(member.outbox)] == ["e", event]
    assert (member.alive, other.alive) == (False, True)
    assert "to:admin:channel.leave" in [one.channel for one in told]


@pytest.mark.parametrize("payload", [b"", b"{}", b"[", b'{"id":1}', b'{"topic":null}', b"[" * 10_000])
@pytest.mark.parametrize("command", [b"disconnect", b"close", b"reset"])
def test_malformed_commands_have_no_effect(command: bytes, payload: bytes) -> None:
    """A malformed command ends no membership and no connection."""
    hub = Hub()
    member = joined(hub, "a", "obs")

    assert hub.deliver([(b"to:phoenix:" + command, payload)]) == []
    assert member.alive
    assert member.outbox.disconnect is None


def test_conflated_events_keep_their_newest() -> None:
    """Of conflated events only the newest waits; all other events wait."""
    hub = Hub(conflate=["streaming-*:new-*-data"])
    member = joined(hub, "a", "streaming-x")
    channel = b"to:streaming-x:new-jet1090-data"
    hub.deliver(
        [
            (channel, b"[1]"),
            (b"to:streaming-x:other", b"[2]"),
            (channel, b"[3]"),
            (b"to:streaming-x:other", b"[4]"),
        ]
    )

    assert [frame[4] for frame in drained(member.outbox) if isinstance(frame, list)] == [[3], [2], [4]]


def test_a_slow_member_does_not_delay_the_others() -> None:
    """A member too far behind is closed with 1013, and the others get everything."""
    hub = Hub()
    slow, fast = joined(hub, "slow", "obs"), joined(hub, "fast", "obs")
    slow.outbox.max_backlog = 100
    for number in range(50):
        hub.deliver([(b"to:obs:e", b"[%d]" % number)])
        drained(fast.outbox) if number % 2 else None

    assert slow.outbox.disconnect is not None
    assert slow.outbox.disconnect.code == 1013
    assert fast.outbox.disconnect is None


def test_destinations_are_forgotten_with_their_topic() -> None:
    """A topic delivers while it has members, also if its first message came before."""
    hub = Hub()
    hub.deliver([(b"to:obs:e", b"[1]")])
    member = joined(hub, "a", "obs")
    hub.deliver([(b"to:obs:e", b"[2]")])
    hub.leave(member)
    hub.deliver([(b"to:obs:e", b"[3]")])

    assert [frame[4] for frame in drained(member.outbox) if isinstance(frame, list)] == [[2]]
    assert hub.statistics().undelivered == 2


def test_members_come_and_go_between_messages() -> None:
    """A member receives the messages between its join and its leave."""
    hub = Hub()
    first = joined(hub, "a", "obs")
    hub.deliver([(b"to:obs:e", b"[1]")])
    second = joined(hub, "b", "obs")
    hub.deliver([(b"to:obs:e", b"[2]")])
    hub.leave(first)
    hub.deliver([(b"to:obs:e", b"[3]")])

    assert [frame[4] for frame in drained(first.outbox) if isinstance(frame, list)] == [[1], [2]]
    assert [frame[4] for frame in drained(second.outbox) if isinstance(frame, list)] == [[2], [3]]


TOPICS = ["system", "obs", "obs:a", "admin"]
CONNS = ["a", "b", "c", "d"]


class HubAgainstAModel(RuleBasedStateMachine):
    """Four clients join, leave, vanish and receive; each keeps presence as phoenix.js does."""

    def __init__(self) -> None:
        super().__init__()
        self.hub = Hub(slice_size=1)  # each slice has one member
        self.members: dict[tuple[str, str], Membership] = {}
        self.sent: dict[str, list[object]] = defaultdict(list)
        """The messages and differences of each topic, in the order of Redis."""
        self.read_up_to: dict[tuple[str, str], int] = defaultdict(int)
        self.boxes = {conn: open_outbox() for conn in CONNS}
        self.refs = 0
        self.number = 0
        self.expected: dict[tuple[str, str], list[int]] = defaultdict(list)
        self.got: dict[tuple[str, str], list[int]] = defaultdict(list)
        self.views: dict[tuple[str, str], dict[str, set[str]]] = {}
        self.told: list[Publication] = []

    def publish(self, told: list[Publication]) -> None:
        self.told += told

    @rule(conn=st.sampled_from(CONNS), topic=st.sampled_from(TOPICS), same_id=st.booleans())
    def join(self, conn: str, topic: str, same_id: bool) -> None:
        if (conn, topic) in self.members:
            return
        self.refs += 1
        id_ = "shared" if same_id else conn
        membership = Membership(conn, topic, str(self.refs), id_, self.boxes[conn])
        self.members[conn, topic] = membership
        self.views.pop((conn, topic), None)
        self.publish(self.hub.join(membership, str(self.refs)))

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.members)))
        self.read()
        self.publish(self.hub.leave(self.members.pop(key)))

    @rule()
    def interrupt(self) -> None:
        self.read()
        self.hub.interrupted()

    @rule(topics=st.lists(st.sampled_from([*TOPICS, "nobody"]), min_size=1, max_size=6))
    def deliver(self, topics: list[str]) -> None:
        batch = []
        for topic in topics:
            self.number += 1
            batch.append((f"to:{topic}:n".encode(), b"[%d]" % self.number))
            self.sent[topic].append([self.number])
            for conn, joined_topic in self.members:
                if joined_topic == topic:
                    self.expected[conn, topic].append(self.number)
        self.hub.deliver(batch)

    @rule()
    def flush(self) -> None:
        self.publish(self.hub.flush())

    @rule(budget=st.sampled_from([1, 100, 500]) | st.integers(1, 100_000))
    def send_states(self, budget: int) -> None:
        self.hub.send_states(budget)

    @rule()
    def put_slice(self) -> None:
        self.hub.slices.put_slice()

    @rule()
    def redis_comes_round(self) -> None:
        told, self.told = self.told, []
        for one in told:
            if one.channel.endswith(":presence_diff"):
                self.sent[one.channel.split(":", 1)[1].removesuffix(":presence_diff")].append(
                    msgspec.json.decode(one.payload)
                )
        self.hub.deliver([(one.channel.encode(), one.payload) for one in told])

    @rule()
    def read(self) -> None:
        for conn, box in self.boxes.items():
            for frame in drained(box):
                assert isinstance(frame, list)
                self.read_one(conn, frame)

    def read_one(self, conn: str, frame: list[Any]) -> None:
        _, _, topic, event, payload = frame
        if event in {"n", "presence_diff"}:
            # Fails if a message was overtaken, or came twice.
            at = self.sent[topic].index(payload, self.read_up_to[conn, topic])
            self.read_up_to[conn, topic] = at + 1
        if event == "n":
            self.got[conn, topic] += payload
        elif event == "presence_state":
            self.views[conn, topic] = {id_: refs(entry) for id_, entry in payload.items()}
        elif event == "presence_diff" and (conn, topic) in self.views:
            view = self.views[conn, topic]
            for id_, entry in payload["joins"].items():
                view[id_] = view.get(id_, set()) | refs(entry)
            for id_, entry in payload["leaves"].items():
                view[id_] = view.get(id_, set()) - refs(entry)

    @rule()
    def settle(self) -> None:
        """After a flush and its delivery, the view of each member equals the members."""
        self.flush()
        self.hub.send_states(MUCH)
        self.redis_comes_round()
        while len(self.hub.slices):
            self.hub.slices.put_slice()
        self.read()
        for conn, topic in self.members:
            there: dict[str, set[str]] = defaultdict(set)
            for (_, other), membership in self.members.items():
                if other == topic:
                    there[membership.id].add(membership.agent)
            view = {id_: refs_ for id_, refs_ in self.views[conn, topic].items() if refs_}
            assert view == there
        assert self.got == self.expected

    @invariant()
    def members_are_the_models(self) -> None:
        assert self.hub.statistics().members == len(self.members)
        assert set(self.hub.topics) == {topic for _, topic in self.members}
        assert all(membership.alive for membership in self.members.values())


def refs(entry: dict[str, list[dict[str, str]]]) -> set[str]:
    return {meta["phx_ref"] for meta in entry["metas"]}


TestHubAgainstAModel = pytest.mark.slow(HubAgainstAModel.TestCase)
TestHubAgainstAModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_batch_ends_before_the_first_message_of_a_history() -> None:
    """Messages before it go the usual way; it and all behind it are left for the feed."""
    hub = Hub(presence=False)
    hub.is_kept = lambda channel: channel == b"to:kept:n"
    member = joined(hub, "a", "room")
    joined(hub, "b", "kept")
    batch = [(b"to:room:n", b"{}"), (b"to:kept:n", b"{}"), (b"to:nowhere:n", b"{}"), (b"to:room:n", b"{}")]

    hub.deliver(batch, until_kept=True)

    assert [*hub.rest] == batch[1:]
    assert len(drained(member.outbox)) == 1
    hub.deliver(batch[:1], until_kept=True)
    assert not hub.rest
    hub.deliver(batch[1:])
    assert not hub.rest
    assert len(drained(member.outbox)) == 2
    assert hub.statistics().undelivered == 1
