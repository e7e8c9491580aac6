"""Presence on one node: the bytes of its frames, numbers instead of lists, and topics without presence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tangram.channels.hub import Hub, Membership
from tangram.channels.presence_rules import PresenceRule, PresenceRules
from tangram.presence.roll import Roll
from tests.channels.fakes import open_outbox
from tests.presence.world import World

MUCH = 1 << 30
ANN = b'"ann":{"metas":[{"phx_ref":"a:obs:1"}]}'
BOB = b'"b\\"ob":{"metas":[{"phx_ref":"b:obs:1"}]}'


def reply(conn: str) -> bytes:
    agent = f"{conn}:obs:1".encode()
    return b'["1","1","obs","phx_reply",{"status":"ok","response":{"id":"%b"}}]' % agent


def state(text: bytes) -> bytes:
    return b'[null,null,"obs","presence_state",{%b}]' % text


def difference(joins: bytes = b"", leaves: bytes = b"") -> bytes:
    return b'[null,null,"obs","presence_diff",{"joins":{%b},"leaves":{%b}}]' % (joins, leaves)


class Room:
    """The topic of one hub; ``pass_window`` is a window of 50 ms, and ``tick`` a second."""

    def __init__(self, rules: PresenceRules | None = None) -> None:
        self.hub = Hub(presence_rules=rules)

    def join(self, conn: str, id_: str) -> Membership:
        membership = Membership(conn, "obs", "1", id_, open_outbox(max_backlog=MUCH))
        self.hub.join(membership, "1")
        return membership

    def pass_window(self) -> int:
        """Send states and differences, and return the number of differences."""
        self.hub.send_states(MUCH)
        found = self.hub.flush()
        self.hub.deliver([(one.channel.encode(), one.payload) for one in found])
        return len(found)

    def tick(self) -> None:
        self.pass_window()
        self.hub.send_numbers()


def sent(membership: Membership) -> list[bytes]:
    """Return the frames that a member was sent since the last call, as on the wire."""
    items = membership.outbox.take_all()
    membership.outbox.written(sum(len(item.data) for item in items))
    return [bytes(item.data) for item in items]


FULL = PresenceRules([PresenceRule("*", "full", None)])
BELOW = PresenceRules([PresenceRule("obs", "full", 1000)])


@pytest.mark.parametrize("rules", [None, PresenceRules(), FULL, BELOW])
def test_lists_have_the_bytes_of_servers_without_modes(rules: PresenceRules | None) -> None:
    """With ``full`` the frames are, byte for byte, those of servers that know no modes."""
    room = Room(rules)
    ann = room.join("a", "ann")
    room.pass_window()
    assert sent(ann) == [reply("a"), state(ANN), difference(ANN)]
    bob = room.join("b", 'b"ob')
    room.pass_window()
    assert sent(ann) == [difference(BOB)]
    assert sent(bob) == [reply("b"), state(ANN + b"," + BOB), difference(BOB)]
    room.hub.leave(bob)
    room.pass_window()
    room.tick()
    assert sent(ann) == [difference(leaves=BOB)]


def test_lists_of_all_nodes_have_the_same_bytes() -> None:
    """The functions on Redis write differences, and the roll writes states, as one node does."""
    world = World("")
    roll: Roll[Membership] = Roll("n", "n/1")
    hub = Hub(shared=roll)

    def pass_window() -> None:
        before = len(world.published)
        answers = [(flush, world.call(flush.call)) for flush in roll.flush()]
        hub.deliver(world.published[before:])
        for flush, answer in answers:
            roll.answered(flush, answer)
        hub.send_states(MUCH)

    members = []
    for conn, id_ in (("a", "ann"), ("b", 'b"ob')):
        member = Membership(conn, "obs", "1", id_, open_outbox())
        hub.join(member, "1")
        members.append(member)
        pass_window()
    ann, bob = members
    assert sent(ann) == [reply("a"), state(ANN), difference(BOB)]
    assert sent(bob) == [reply("b"), state(ANN + b"," + BOB)]
    hub.leave(bob)
    pass_window()
    assert sent(ann) == [difference(leaves=BOB)]


def count(number: int) -> bytes:
    return b'[null,null,"obs","presence_count",{"count":%d}]' % number


def test_count_sends_numbers_and_no_list() -> None:
    """With ``count`` a newcomer gets the number, and others each new number once a second."""
    room = Room(PresenceRules([PresenceRule("obs", "count")]))
    ann = room.join("a", "ann")
    room.pass_window()
    assert sent(ann) == [reply("a"), count(1)]
    room.tick()
    assert sent(ann) == [count(1)]
    others = [room.join(f"c{number}", f"id{number}") for number in range(50)]
    assert room.pass_window() == 0
    assert sent(ann) == []
    assert [sent(one) for one in others] == [[reply(f"c{number}"), count(51)] for number in range(50)]
    room.hub.send_numbers()
    assert sent(ann) == [count(51)]
    room.tick()
    assert sent(ann) == []
    assert _present(room) == 51
    for one in others:
        room.hub.leave(one)
    room.tick()
    assert sent(ann) == [count(1)]


def test_none_sends_nothing() -> None:
    """With ``none`` neither list nor number nor difference is sent; the topic's members are still counted."""
    room = Room(PresenceRules([PresenceRule("obs", "none")]))
    members = [room.join(conn, "ann") for conn in "abc"]
    assert room.pass_window() == 0
    room.tick()
    room.hub.leave(members.pop())
    room.tick()
    assert [sent(one) for one in members] == [[reply("a")], [reply("b")]]
    assert _present(room) == 2


def _present(room: Room) -> int:
    (topic,) = room.hub.topic_statistics()
    return topic.present


def test_a_member_that_comes_and_goes_at_the_limit_causes_no_lists() -> None:
    """Above 10 there are numbers until 9 are left; then all get the list once, and differences again."""
    room = Room(PresenceRules([PresenceRule("obs", "full", 10)]))
    ann = room.join("a", "ann")
    others = [room.join(f"c{number}", f"id{number}") for number in range(9)]
    room.tick()
    assert [_event(frame) for frame in sent(ann)] == ["phx_reply", "presence_state", "presence_diff"]
    eleventh = room.join("x", "x")
    assert room.pass_window() == 0
    room.hub.send_numbers()
    assert sent(ann) == [count(11)]
    for _ in range(3):
        room.hub.leave(eleventh)
        room.tick()
        assert sent(ann) == [count(10)]
        eleventh = room.join("x", "x")
        room.tick()
        assert sent(ann) == [count(11)]
    room.hub.leave(eleventh)
    for one in others:
        sent(one)
    room.hub.leave(others.pop())
    room.tick()
    for member in (ann, *others):
        (frame,) = sent(member)
        assert frame.startswith(state(ANN)[:-2])
        assert frame.count(b"phx_ref") == 9
    late = room.join("y", "y")
    room.tick()
    assert [_event(frame) for frame in sent(ann)] == ["presence_diff"]
    assert _event(sent(late)[1]) == "presence_state"


def _event(frame: bytes) -> Any:
    return json.loads(frame)[3]
