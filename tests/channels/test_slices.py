"""Presence for many members, put in slices."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tangram.channels.hub import SEND_COST, Hub, Membership, Publication
from tangram.channels.outbox import Outbox
from tangram.channels.presence_rules import PresenceRule, PresenceRules
from tangram.channels.serializers import V1
from tangram.channels.slices import MAX_WAITING
from tests.channels.fakes import drained, open_outbox

MUCH = 1 << 30
TWO = 2 * SEND_COST + 1
"""Bytes of a slice for two members, and a third that begins within it."""


def make_hub(
    members: int, slice_size: int = 1, rules: PresenceRules | None = None
) -> tuple[Hub, list[Membership]]:
    """Return a hub whose members have their lists, and have read everything."""
    hub = Hub(slice_size=slice_size, presence_rules=rules)
    found = [join(hub, f"c{number}") for number in range(members)]
    settle(hub)
    hub.deliver([(b"to:room:n", b"{}")])
    for member in found:
        drained(member.outbox)
    return hub, found


def join(hub: Hub, conn: str, outbox: Outbox | None = None, join_ref: str = "1") -> Membership:
    membership = Membership(conn, "room", join_ref, f"id-{conn}", open_outbox() if outbox is None else outbox)
    hub.join(membership, join_ref)
    return membership


def settle(hub: Hub) -> None:
    """Let all members have the list, and everything that waits."""
    hub.send_states(MUCH)
    circulate(hub, hub.flush())
    while len(hub.slices):
        hub.slices.put_slice()


def circulate(hub: Hub, publications: list[Publication]) -> None:
    """Let Redis send back what the hub has published."""
    hub.deliver([(one.channel.encode(), one.payload) for one in publications])


def change(hub: Hub, conn: str = "new") -> Membership:
    """Let a client join, and its difference come from Redis."""
    member = join(hub, conn)
    circulate(hub, hub.flush())
    return member


def read(members: list[Membership]) -> list[list[str]]:
    """Return the events that each member has got."""
    return [[frame[3] for frame in cast("list[list[Any]]", drained(member.outbox))] for member in members]


def test_a_difference_for_many_members_is_put_in_slices() -> None:
    """A slice goes to as many members as fit; the caller is woken for it once."""
    hub, members = make_hub(5, TWO)
    woken: list[int] = []
    hub.slices.wake = lambda: woken.append(len(hub.slices))
    change(hub)
    got = [sum(map(len, read(members)))]
    while len(hub.slices):
        hub.slices.put_slice()
        got.append(sum(map(len, read(members))))

    assert got == [0, 2, 2, 1]
    assert woken == [1]


def test_a_difference_for_few_members_is_put_at_once() -> None:
    """It costs no more than a slice."""
    hub, members = make_hub(3, 4 * SEND_COST)
    change(hub)

    assert read(members) == [["presence_diff"]] * 3
    assert not len(hub.slices)


def test_members_get_the_form_that_they_need() -> None:
    """Slices do not mix serializers."""
    hub = Hub(slice_size=1)
    members = [join(hub, f"c{number}", Outbox(lambda: None, serializer=V1)) for number in range(2)]
    members += [join(hub, f"c{number}") for number in range(2, 4)]
    settle(hub)
    for member in members:
        drained(member.outbox)
    change(hub)
    while len(hub.slices):
        hub.slices.put_slice()

    frames: list[Any] = [drained(member.outbox) for member in members]
    assert [one["event"] for (one,) in frames[:2]] == ["presence_diff"] * 2
    assert [one[3] for (one,) in frames[2:]] == ["presence_diff"] * 2


def test_a_message_of_the_topic_comes_after_waiting_presence() -> None:
    """The rest is put before it; messages of other topics do not wait for it, and it does not for them."""
    hub, members = make_hub(3)
    change(hub)
    hub.slices.put_slice()
    other = Membership("c0", "other", "1", "id", members[0].outbox)
    hub.join(other, None)
    hub.deliver([(b"to:other:n", b"{}")])
    before = read(members)
    hub.deliver([(b"to:room:n", b"{}")])

    assert before == [["presence_diff", "n"], [], []]
    assert read(members) == [["n"], ["presence_diff", "n"], ["presence_diff", "n"]]
    assert not len(hub.slices)


def test_differences_keep_their_order() -> None:
    """A later one waits behind an earlier one, also if it is for few members; the caller is woken once."""
    hub, members = make_hub(3, TWO)
    woken: list[int] = []
    hub.slices.wake = lambda: woken.append(len(hub.slices))
    changed = change(hub)
    for member in (changed, *members[:2]):
        hub.leave(member)
    circulate(hub, hub.flush())
    while len(hub.slices):
        hub.slices.put_slice()

    first, second = cast("list[list[Any]]", drained(members[2].outbox))
    assert list(first[4]["joins"]) == ["id-new"]
    assert sorted(second[4]["leaves"]) == ["id-c0", "id-c1", "id-new"]
    assert woken == [1]


def test_a_message_leaves_those_of_other_topics_waiting() -> None:
    """Each topic has an order of its own."""
    hub = Hub(slice_size=1)
    for topic in ("one", "two"):
        for number in range(3):
            hub.join(Membership(f"c{number}", topic, "1", f"id{number}", open_outbox()), None)
    settle(hub)
    for topic in ("one", "two"):
        hub.join(Membership("new", topic, "1", "new", open_outbox()), None)
    circulate(hub, hub.flush())
    before = len(hub.slices)
    hub.deliver([(b"to:two:n", b"{}")])

    assert (before, len(hub.slices)) == (2, 1)


def test_a_member_that_has_left_gets_nothing_more() -> None:
    """One that has joined again gets the list alone, which contains the difference."""
    hub, members = make_hub(3)
    change(hub)
    hub.leave(members[0])
    hub.leave(members[1])
    again = join(hub, "c1", members[1].outbox, join_ref="2")
    hub.send_states(MUCH)
    while len(hub.slices):
        hub.slices.put_slice()

    assert read([members[0], again, members[2]]) == [[], ["phx_reply", "presence_state"], ["presence_diff"]]


def test_a_member_that_gets_the_list_needs_no_older_difference() -> None:
    """The list is newer: the join of a client that has left meanwhile would bring it back."""
    rules = PresenceRules([PresenceRule("room", limit=10)])
    hub, members = make_hub(9, rules=rules)
    leaving = [change(hub), join(hub, "more")]  # above the limit: members get a number
    for one in leaving:
        hub.leave(one)  # below it again: all of them get the list
    hub.send_states(MUCH)
    while len(hub.slices):
        hub.slices.put_slice()

    assert read(members) == [["presence_state"]] * 9


def test_numbers_for_many_members_are_put_in_slices() -> None:
    """The number of the members of a topic above its limit goes to all of them."""
    rules = PresenceRules([PresenceRule("room", "count")])
    hub, members = make_hub(4, rules=rules)
    settle(hub)
    hub.send_numbers()
    settle(hub)
    read(members)
    join(hub, "new")
    hub.send_numbers()
    before = read(members)
    hub.slices.put_slice()

    assert before == [[]] * 4
    assert read(members) == [["presence_count"], [], [], []]


def test_an_interruption_comes_after_waiting_presence() -> None:
    """Members join again after it."""
    hub, members = make_hub(2)
    change(hub)
    hub.interrupted()

    assert read(members) == [["presence_diff", "phx_error"]] * 2


def test_a_bounded_number_of_messages_waits() -> None:
    """Further ones are put at once, the oldest first."""
    hub, members = make_hub(2)
    for number in range(MAX_WAITING + 3):
        change(hub, f"x{number}")

    assert len(hub.slices) == MAX_WAITING
    assert [len(events) for events in read(members)] == [3, 3]
    hub.deliver([(b"to:room:n", b"{}")])
    assert [len(events) for events in read(members)] == [MAX_WAITING + 1] * 2


@pytest.mark.parametrize("payload", [b'{"joins":{},"leaves":{}}', b'"text"'])
def test_a_difference_of_another_server_is_put_at_once(payload: bytes) -> None:
    """No list of this hub contains it."""
    hub, members = make_hub(2)
    change(hub)
    hub.deliver([(b"to:room:presence_diff", payload)])

    assert not len(hub.slices)
    assert [len(drained(member.outbox)) for member in members] == [2, 2]
