"""The roll of all nodes: in every order of events each node and each browser has the same members."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

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
    world = World()
    for what, number, topic, draw in steps:
        step(world, what, number, TOPICS[topic], draw)
    world.settle()
    check(world)
