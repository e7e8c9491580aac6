"""The roll of all nodes: in every order of events each node and each browser has the same members."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tangram.presence import roll
from tangram.presence.library import flush_call
from tests.presence.world import LIMIT, World

TOPICS = ("list", "small", "number")
STEP = st.tuples(
    st.sampled_from(
        ["join"] * 6
        + ["leave"] * 3
        + ["flush"] * 5
        + ["read"] * 6
        + ["answer"] * 5
        + [
            "states",
            "numbers",
            "kill",
            "end",
            "sweep",
            "reconnect",
            "lose",
            "lose-call",
            "lose-answer",
            "tick",
        ]
    ),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(0, 5),
)


def step(world: World, what: str, number: int, topic: str, draw: int) -> None:  # noqa: PLR0912 - a table of steps
    """Make one step of a node, or of the world."""
    node = world.nodes[number]
    if what == "lose":
        if draw == 0:
            world.lose_data()
    elif what == "sweep":
        world.sweep()
    elif not node.alive:
        if what == "join":
            node.start()
    elif what == "join":
        node.join(topic, f"id{draw}")
    elif what == "leave":
        if node.browsers:
            node.leave(list(node.browsers.values())[draw % len(node.browsers)])
    elif what in ("flush", "lose-call", "lose-answer"):
        node.flush(lose_call=what == "lose-call", lose_answer=what == "lose-answer")
    elif what == "read":
        node.read(draw + 1)
    elif what == "answer":
        node.take_answers(draw + 1)
    elif what == "states":
        node.send_states(draw + 1)
    elif what == "numbers":
        node.send_numbers()
    elif what == "tick":
        node.roll.tick()
    elif what == "reconnect":
        node.reconnect()
    elif what == "kill":
        if draw == 0:
            world.kill(node)
    elif draw < 3:
        world.end(node)


def check(world: World) -> None:
    """Compare Redis, each roll and each browser with the members that are connected."""
    for topic in TOPICS:
        true = world.true_members(topic)
        count = sum(len(refs) for refs in true.values())
        assert world.members(topic) == true
        numbers = set()
        for node in world.nodes:
            browsers = [one for one in node.browsers.values() if one.topic == topic and node.alive]
            if not browsers:
                continue
            number = node.roll.number(topic)
            numbers.add(number is None)
            assert node.roll.present(topic) == count
            if number is None:
                assert topic == "list" or (topic == "small" and count <= LIMIT)
                assert [one.view for one in browsers] == [true] * len(browsers)
                assert [one.number for one in browsers] == [None] * len(browsers)
            else:
                assert topic == "number" or (topic == "small" and count > LIMIT * 9 // 10)
                assert [one.number for one in browsers] == [count] * len(browsers)
        assert len(numbers) < 2


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=80))
def test_every_node_and_every_browser_agree_in_the_end(steps: list[tuple[str, int, int, int]]) -> None:
    """Any interleaving of joins, leaves, deaths, ends, losses and reconnects converges."""
    converge(steps)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEP, max_size=80), st.integers(1, 3))
def test_a_topic_in_several_calls_converges_as_well(
    steps: list[tuple[str, int, int, int]], most: int
) -> None:
    """With one to three members in a call every node and every browser agree, and no call has more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roll, "MAX_FLUSHED", most)
        converge(steps, most)


def converge(steps: list[tuple[str, int, int, int]], most: int | None = None) -> None:
    world = World()
    if most is not None:
        world.bound = most
    for what, number, topic, draw in steps:
        step(world, what, number, TOPICS[topic], draw)
    world.settle()
    check(world)


@pytest.mark.parametrize("lost", ["data", "feed"])
def test_members_keep_their_view_while_a_large_topic_is_stated_again(
    monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Seven members in calls of two: each has a difference, and no member flickers on the node itself."""
    monkeypatch.setattr(roll, "MAX_FLUSHED", 2)
    world = World("ab")
    world.bound = 2
    for number in range(7):
        world.nodes[0].join("list", f"id{number}")
    world.settle()
    world.nodes[0].leave(next(iter(world.nodes[0].browsers.values())))
    before = len(world.published)
    if lost == "data":
        world.lose_data()
    else:
        world.nodes[0].reconnect()
    world.settle()
    check(world)
    joins = [
        len(json.loads(payload)["joins"])
        for channel, payload in world.published[before:]
        if channel.endswith(b"presence_diff")
    ]

    assert all(not browser.flickers for browser in world.nodes[0].browsers.values())
    assert all(count <= 2 for count in joins)
    assert sum(joins) == (6 if lost == "data" else 0)


def test_a_member_that_redis_has_kept_leaves_after_a_statement_in_several_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A failover has brought a member of this session back, of which this node knows nothing."""
    monkeypatch.setattr(roll, "MAX_FLUSHED", 2)
    world = World("a")
    for number in range(5):
        world.nodes[0].join("list", f"id{number}")
    world.settle()
    node = world.nodes[0]
    ghost = {"a:list:99": "ghost"}
    world.call(flush_call("list", node.session, "a", joins=ghost, leaves={}, limit=None))
    node.reconnect()
    world.settle()

    check(world)


def test_many_leaves_go_in_several_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five members leave at once, in calls of two; the other node follows each difference."""
    monkeypatch.setattr(roll, "MAX_FLUSHED", 2)
    world = World("ab")
    for number in range(7):
        world.nodes[0].join("list", f"id{number}")
    world.nodes[1].join("list", "other")
    world.settle()
    before = len(world.published)
    for browser in list(world.nodes[0].browsers.values())[:5]:
        world.nodes[0].leave(browser)
    world.settle()
    check(world)
    differences = [json.loads(payload) for channel, payload in world.published[before:] if b"diff" in channel]

    assert [len(one["leaves"]) for one in differences] == [2, 2, 1]


def test_members_that_move_are_away_until_they_have_joined_another_node() -> None:
    """A node that closes its clients counts those that are not back, while it has members and a list."""
    world = World("ab")
    here, there = world.nodes
    there.join("list", "other")
    for topic in ("list", "number"):
        for number in range(4):
            here.join(topic, f"id{number}")
    here.join("list", "id0")  # a second window of the same client
    world.settle()

    def exchange() -> None:
        for node in [*world.nodes, *world.nodes]:
            node.flush()
            node.read(1000)
            node.take_answers(1000)

    def close(ids: set[str]) -> None:
        for browser in [one for one in here.browsers.values() if one.id in ids]:
            del here.browsers[browser.ref]
            here.roll.leave(browser.topic, browser.id, browser.ref, browser, moving=True)
        exchange()

    found = [here.roll.away]
    close({"id0", "id1"})
    found.append(here.roll.away)
    there.join("list", "id0")
    exchange()
    found.append(here.roll.away)
    for _ in range(7):
        here.roll.tick()
        exchange()
    found.append(here.roll.away)
    close({"id2", "id3"})
    found.append(here.roll.away)

    assert found == [0, 3, 1, 0, 0]
