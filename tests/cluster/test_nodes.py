"""The task of a node, on a broker in memory."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tangram.cluster import NodeRecord, Nodes, Placement, new_node_id
from tangram.testing.fakes.memory_broker import MemoryBroker


def url(memory: MemoryBroker) -> str:
    return f"redis://127.0.0.1:{memory._port}"


def record(node: str, *plugins: str) -> NodeRecord:
    return NodeRecord(node, 1.0, "0.1.0", None, 1, 0, plugins, run=f"run-{node}")


class Node:
    """One running node, which can be stopped or killed."""

    def __init__(self, memory: MemoryBroker, node: str, *plugins: str) -> None:
        self.nodes = Nodes(url(memory), record(node, *plugins), describe=lambda: {"members": self.members})
        self.members = 0
        self.gone: list[str] = []
        self.nodes.on_gone(lambda one: self.gone.append(one.id))
        self.scope = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self.scope:
            await self.nodes.run(task_status=task_status)  # type: ignore[arg-type]

    @property
    def alive(self) -> list[str]:
        return list(self.nodes.alive())


async def open_node(nursery: trio.Nursery, memory: MemoryBroker, node: str, *plugins: str) -> Node:
    made = Node(memory, node, *plugins)
    await nursery.start(made.run)
    return made


async def test_nodes_see_each_other_within_one_beat(
    autojump_clock: MockClock, nursery: trio.Nursery, memory: MemoryBroker
) -> None:
    """A node that joins is known to the others at once, with its numbers two seconds later at most."""
    first = await open_node(nursery, memory, "a")
    second = await open_node(nursery, memory, "b")
    await trio.testing.wait_all_tasks_blocked()

    assert first.alive == second.alive == ["a", "b"]
    second.members = 7
    await trio.sleep(2.01)
    await first.nodes.wait_change()
    assert first.nodes.alive()["b"].members == 7


async def test_a_node_that_stops_is_gone_at_once(
    autojump_clock: MockClock, nursery: trio.Nursery, memory: MemoryBroker
) -> None:
    """It removes its record and notifies the others."""
    first = await open_node(nursery, memory, "a")
    second = await open_node(nursery, memory, "b")
    await trio.testing.wait_all_tasks_blocked()
    began = trio.current_time()
    second.scope.cancel()
    while not first.gone:
        await first.nodes.wait_change()

    assert trio.current_time() - began < 0.1
    assert first.gone == ["b"]
    assert first.alive == ["a"]


async def test_a_node_that_hangs_is_gone_when_its_record_expires(
    autojump_clock: MockClock, nursery: trio.Nursery, memory: MemoryBroker
) -> None:
    """Six seconds after its last renewal, and at most two more until the next answer."""
    first = await open_node(nursery, memory, "a")
    second = await open_node(nursery, memory, "b")
    await trio.testing.wait_all_tasks_blocked()
    began = trio.current_time()

    async def hang() -> float:
        await trio.sleep_forever()
        raise AssertionError

    second.nodes._beat = hang  # type: ignore[method-assign]
    second.nodes.renew_now()
    while not first.gone:
        await first.nodes.wait_change()

    assert 4.0 < trio.current_time() - began < 8.1
    assert first.gone == ["b"]


async def test_an_outage_of_redis_makes_no_node_a_dead_one(
    autojump_clock: MockClock, nursery: trio.Nursery, memory: MemoryBroker
) -> None:
    """Redis loses everything and its connections; all nodes write their records again."""
    first = await open_node(nursery, memory, "a")
    second = await open_node(nursery, memory, "b")
    await trio.testing.wait_all_tasks_blocked()
    memory._valkey.execute(memory._valkey.connect(lambda: None, lambda: None), [b"FLUSHALL"])
    memory.drop()
    await trio.sleep(20)

    assert first.gone == second.gone == []
    assert first.alive == second.alive == ["a", "b"]


async def test_the_start_does_not_wait_for_a_redis_that_is_away(
    autojump_clock: MockClock, nursery: trio.Nursery, memory: MemoryBroker
) -> None:
    """After two seconds a node goes on without an answer, and knows no other."""
    memory.freeze()
    began = trio.current_time()
    node = await open_node(nursery, memory, "a")

    assert trio.current_time() - began == pytest.approx(2.0, abs=0.1)
    assert node.alive == []
    memory.thaw()
    with trio.fail_after(5):
        while not node.alive:
            await node.nodes.wait_change()
    assert node.alive == ["a"]


def test_a_server_alone_answers_for_everything() -> None:
    """Without nodes every plugin is this server's own, and no node holds one."""
    placement = Placement(lambda: None, lambda: ["globe"])

    assert placement.is_mine("globe")
    assert placement.holder("globe") is None


def test_ids_are_new_and_may_stand_in_a_key() -> None:
    """Two starts on one host have different ids of letters, digits and a few signs."""
    made = {new_node_id() for _ in range(20)}

    assert len(made) == 20
    assert all(
        set(one) <= {*"._-"} or one.replace("-", "").replace(".", "").replace("_", "").isalnum()
        for one in made
    )
