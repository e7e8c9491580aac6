from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import trio
import trio.testing

from tangram.channels.hub import Hub, Membership, Publication
from tangram.channels.outbox import Outbox
from tangram.channels.slices import SEND_COST, SLICE
from tangram.gateway.joining import Joining
from tangram.gateway.presence import MAX_SLICE, PRESENCE_WINDOW, PresenceSender
from tangram.gateway.publishing import Done
from tests.channels.fakes import drained as drain
from tests.channels.fakes import open_outbox

RATE = 1_000_000.0
NO_CROWD: Joining[None] = Joining(lambda _join: None)


def drained(outbox: Outbox) -> list[list[Any]]:
    return cast("list[list[Any]]", drain(outbox))


class Node:
    """A hub with its sender, and a Redis that sends every difference back at once."""

    def __init__(self, rate: float = RATE, slice_size: int = SLICE, turns: trio.Lock | None = None) -> None:
        self.hub = Hub(slice_size=slice_size)
        self.sender = PresenceSender(
            self.hub, rate, self.publish, trio.lowlevel.checkpoint, joining=NO_CROWD, turns=turns
        )
        self.differences = 0

    def publish(self, publications: Sequence[Publication], done: Done) -> None:
        self.differences += len(publications)
        done({})
        self.hub.deliver([(one.channel.encode(), one.payload) for one in publications])

    def join(self, count: int, first: int = 0) -> list[Outbox]:
        boxes = []
        for number in range(first, first + count):
            box = open_outbox(max_backlog=1 << 30)
            self.hub.join(Membership(f"c{number}", "system", "1", f"id{number}", box), "1")
            boxes.append(box)
            self.sender.changed()
        return boxes


async def test_states_are_paced_and_the_newest_is_sent_once(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Eighty newcomers get one state each, of all members, within the rate; replies do not wait."""
    node = Node()
    nursery.start_soon(node.sender.run)
    boxes = node.join(80)
    assert all(drained(box)[0][3] == "phx_reply" for box in boxes)
    begun = trio.current_time()
    with trio.fail_after(20):
        while node.hub.states_due:  # noqa: ASYNC110 - the hub has no event
            await trio.sleep(0.01)
    seconds = trio.current_time() - begun

    cost = node.hub.presence_cost
    assert 0.8 * cost / RATE < seconds + 0.1 < 1.3 * cost / RATE
    states = [[frame[4] for frame in drained(box) if frame[3] == "presence_state"] for box in boxes]
    assert [len(sent) for sent in states] == [1] * 80
    assert {len(sent[0]) for sent in states} == {80}
    nursery.cancel_scope.cancel()


async def test_differences_go_on_while_states_wait(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """A member that has its state hears of a join although others still wait for theirs."""
    node = Node(rate=50_000.0)
    nursery.start_soon(node.sender.run)
    (first,) = node.join(1)
    await trio.sleep(1)
    assert [frame[3] for frame in drained(first)] == ["phx_reply", "presence_state", "presence_diff"]
    node.join(50, 1)
    await trio.sleep(2)

    assert node.hub.states_due
    (difference,) = drained(first)
    assert len(difference[4]["joins"]) == 50
    nursery.cancel_scope.cancel()


async def test_differences_of_a_large_topic_are_gathered_for_longer(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Joins one after the other cost no more than the rate: a window grows with the cost of the last one."""
    node = Node(rate=2_000_000.0)
    nursery.start_soon(node.sender.run)
    node.join(200)
    await trio.sleep(5)
    assert not node.hub.states_due
    before, differences = node.hub.presence_cost, node.differences
    boxes = []
    for number in range(100):
        boxes += node.join(1, 200 + number)
        await trio.sleep(0.05)
    await trio.sleep(5)

    assert node.hub.presence_cost - before < 1.2 * 2_000_000.0 * 10
    assert 5 < node.differences - differences < 30
    views = [_view(box) for box in boxes]
    assert all(len(view) == 300 for view in views)
    nursery.cancel_scope.cancel()


def _view(box: Outbox) -> set[str]:
    """Return the ids of a view that is kept as phoenix.js keeps it."""
    view: set[str] = set()
    for frame in drained(box):
        if frame[3] == "presence_state":
            view = set(frame[4])
        elif frame[3] == "presence_diff":
            view |= set(frame[4]["joins"])
    return view


async def test_a_difference_for_many_members_takes_several_passes(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Each pass has one slice, and none while another part has the turn."""
    turns = trio.Lock()
    node = Node(slice_size=1, turns=turns)
    nursery.start_soon(node.sender.run)
    boxes = node.join(20)
    await trio.sleep(5)
    for box in boxes:
        drained(box)
    node.join(1, 20)
    got: list[int] = []
    async with turns:
        await trio.sleep(5)
        got.append(sum(len(drained(box)) for box in boxes))
    with trio.fail_after(5):
        while sum(got) < 20:
            await trio.lowlevel.checkpoint()
            got.append(sum(len(drained(box)) for box in boxes))

    assert got[0] == 0
    assert max(got) <= 2  # the two tasks may change places from pass to pass
    nursery.cancel_scope.cancel()


async def test_lists_for_many_newcomers_take_several_passes(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """A pass sends two mebibytes of them, also where the rate allows more."""
    node = Node(rate=1e12)
    boxes = node.join(400)
    for box in boxes:
        drained(box)
    got: list[int] = []
    nursery.start_soon(node.sender.run)
    await trio.sleep(PRESENCE_WINDOW)
    for _ in range(1000):
        await trio.lowlevel.checkpoint()
        got.append(sum(frame[3] == "presence_state" for box in boxes for frame in drained(box)))

    each = MAX_SLICE // (SEND_COST + 400 * 50)  # an entry has 60 bytes and more
    assert sum(got) == 400
    assert max(got) <= 2 * each  # the two tasks may change places from pass to pass
    nursery.cancel_scope.cancel()
