"""Two servers with one node name, on a broker in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from tangram.cluster import NodeRecord, Nodes
from tangram.cluster.identity import ANSWER_TIME
from tangram.cluster.library import node_key
from tangram.errors import BrokerUnavailable, NodeNameTaken
from tangram.groups import leaves
from tangram.testing.fakes.memory_broker import MemoryBroker
from tests.cluster.test_nodes import url


@attrs.define(eq=False)
class Run:
    """One run of a node called ``a``, and its end."""

    nodes: Nodes
    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    failure: list[BaseException] = attrs.Factory(list)
    ended: trio.Event = attrs.Factory(trio.Event)
    held_back: list[Callable[[], None]] = attrs.Factory(list)

    async def run(self, *, task_status: trio.TaskStatus[Any]) -> None:
        try:
            with self.scope:
                await self.nodes.run(task_status=task_status)
        except BaseExceptionGroup as group:
            self.failure += leaves(group)
        finally:
            self.ended.set()

    def pause(self) -> None:
        """Let it neither beat nor hear, as a process that is stopped."""
        beat, take = self.nodes._beat, self.nodes._listener._sink

        async def never() -> float:
            await go_on.wait()
            return await beat()

        go_on = trio.Event()
        self.nodes._beat = never  # type: ignore[method-assign]
        self.nodes._listener._sink = lambda _batch: None

        def resume() -> None:
            self.nodes._beat = beat  # type: ignore[method-assign]
            self.nodes._listener._sink = take
            go_on.set()

        self.held_back.append(resume)

    def resume(self) -> None:
        self.held_back.pop()()

    async def kill(self) -> None:
        """End it without a word."""

        async def nothing() -> None:
            await trio.lowlevel.checkpoint()

        self.nodes._leave = nothing  # type: ignore[method-assign]
        self.scope.cancel()
        await self.ended.wait()


async def start(nursery: trio.Nursery, memory: MemoryBroker, run: str, node: str = "a") -> Run:
    made = Run(Nodes(url(memory), NodeRecord(node, 1.0, "0.1.0", None, 1, 0, (), run=run)))

    async def started(*, task_status: trio.TaskStatus[Any]) -> None:
        # A start that fails has no value for the nursery.
        async with trio.open_nursery() as inner:
            up = trio.Event()

            class Status:
                def started(self, _value: object = None) -> None:
                    up.set()

            inner.start_soon(lambda: made.run(task_status=Status()))
            while not (up.is_set() or made.ended.is_set()):  # noqa: ASYNC110 - two events
                await trio.sleep(0.01)
            task_status.started()

    await nursery.start(started)
    return made


def is_refused(run: Run) -> bool:
    return [type(one) for one in run.failure] == [NodeNameTaken]


async def test_the_newer_of_two_servers_is_refused(
    autojump_clock: MockClock, nursery: trio.Nursery, memory: MemoryBroker
) -> None:
    """Its start fails within a second by an error that names both; the older one goes on, and says so."""
    first, other = await start(nursery, memory, "run1"), await start(nursery, memory, "run", "b")
    with capture_logs() as logs:
        began = trio.current_time()
        second = await start(nursery, memory, "run2")

    assert trio.current_time() - began < 1.0
    assert is_refused(second)
    text = str(second.failure[0])
    assert "'a'" in text
    assert "process " in text
    assert "cluster.node" in text
    event = "server with the name of this node refused: give it another cluster.node"
    assert [one["node"] for one in logs if one["event"] == event] == ["a"]
    await trio.sleep(20)
    for one in (first, other):
        assert not one.ended.is_set()
        assert one.nodes.alive()["a"].run == "run1"


async def test_a_refused_server_touches_nothing(
    autojump_clock: MockClock, nursery: trio.Nursery, memory: MemoryBroker
) -> None:
    """While it asks it knows no node, takes no lease, and its end removes no record."""
    first = await start(nursery, memory, "run1")
    second = Nodes(url(memory), NodeRecord("a", 1.0, "0.1.0", None, 1, 0, (), run="run2"))
    lease = second.book.lease("globe")
    lease.want()
    refused = trio.Event()

    async def run() -> None:
        try:
            await second.run()
        except BaseExceptionGroup:
            refused.set()

    async with trio.open_nursery() as inner:
        inner.start_soon(run)
        while not refused.is_set():
            assert second.alive() == {}
            with pytest.raises(BrokerUnavailable, match="name of this one"):
                await second.take(lease)
            await trio.sleep(0.01)
    await first.nodes.wait_change()
    assert first.nodes.alive()["a"].run == "run1"


async def test_a_killed_server_starts_again_at_once(
    autojump_clock: MockClock, nursery: trio.Nursery, memory: MemoryBroker
) -> None:
    """Its record is still there, and its last run does not answer any more."""
    first = await start(nursery, memory, "run1")
    await trio.sleep(3)
    await first.kill()
    began = trio.current_time()
    second = await start(nursery, memory, "run2")

    assert trio.current_time() - began < ANSWER_TIME + 0.1
    assert second.nodes.alive()["a"].run == "run2"
    await trio.sleep(20)
    assert second.nodes.alive()["a"].run == "run2"


async def test_a_server_that_was_taken_for_dead_ends_when_it_comes_back(
    autojump_clock: MockClock, nursery: trio.Nursery, memory: MemoryBroker
) -> None:
    """It was stopped while another one took its name, which keeps it."""
    first = await start(nursery, memory, "run1")
    await trio.sleep(3)
    first.pause()
    second = await start(nursery, memory, "run2")
    assert second.nodes.alive()["a"].run == "run2"
    await trio.sleep(8)
    first.resume()
    with trio.fail_after(3):
        await first.ended.wait()

    assert is_refused(first)
    await trio.sleep(20)
    assert not second.ended.is_set()
    assert second.nodes.alive()["a"].run == "run2"


async def test_two_servers_that_start_without_redis_are_noticed_when_it_is_there(
    autojump_clock: MockClock, nursery: trio.Nursery, memory: MemoryBroker
) -> None:
    """Both have started; one of them ends within two seconds."""
    memory.freeze()
    runs = [await start(nursery, memory, name) for name in ("run1", "run2")]
    assert not any(one.ended.is_set() for one in runs)
    memory.thaw()
    await trio.sleep(5)

    assert sorted(map(is_refused, runs)) == [False, True]
    assert sum(one.ended.is_set() for one in runs) == 1


@pytest.mark.parametrize("lost", ["everything", "the last seconds"])
async def test_a_redis_that_lost_the_name_ends_no_server(
    autojump_clock: MockClock, nursery: trio.Nursery, memory: MemoryBroker, lost: str
) -> None:
    """It writes its record again, also where a failover has brought that of its last run back."""
    only = await start(nursery, memory, "run1")
    session = memory._valkey.connect(lambda: None, lambda: None)
    if lost == "everything":
        memory._valkey.execute(session, [b"FLUSHALL"])
    else:
        memory._valkey.execute(session, [b"HSET", node_key("a").encode(), b"run", b"run0"])
    memory.drop()
    await trio.sleep(20)

    assert not only.ended.is_set()
    assert only.nodes.alive()["a"].run == "run1"
