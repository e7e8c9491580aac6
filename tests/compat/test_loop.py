"""The order of callbacks, timers and first steps on an island's loop."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sniffio
import trio
import trio_asyncio
from trio.testing import MockClock, wait_all_tasks_blocked

from tangram.compat.island import Island, Resident, open_island
from tangram.compat.loop import MIN_CANCELLED


@pytest.fixture
async def island(autojump_clock: MockClock) -> AsyncIterator[Island]:
    async with open_island("test") as island:
        yield island


async def test_callbacks_run_in_order_and_once(island: Island, autojump_clock: MockClock) -> None:
    """Callbacks run in the order of their scheduling, also those that others schedule; not cancelled ones."""
    ran: list[object] = []
    loop = island.loop

    def first() -> None:
        ran.append(1)
        loop.call_soon(ran.append, 4)

    loop.call_soon(first)
    loop.call_soon(ran.append, 2)
    loop.call_soon(ran.append, "cancelled").cancel()
    loop.call_soon(ran.append, 3)
    await wait_all_tasks_blocked()

    assert ran == [1, 2, 3, 4]


async def test_other_tasks_run_beside_callbacks_that_go_on_for_ever(
    island: Island, autojump_clock: MockClock
) -> None:
    """A callback that schedules itself again leaves room for the tasks of Trio."""
    loop, turns, on = island.loop, 0, True

    def again() -> None:
        nonlocal turns
        turns += 1
        if on:
            loop.call_soon(again)

    loop.call_soon(again)
    for _ in range(20):
        await trio.lowlevel.checkpoint()
    on = False

    assert 5 <= turns <= 40


async def test_timers_run_when_they_are_due(island: Island, autojump_clock: MockClock) -> None:
    """Timers run in the order of their times, at their times; a sooner one shortens a wait that has begun."""
    loop, began = island.loop, trio.current_time()
    ran: list[tuple[str, float]] = []

    def note(name: str) -> None:
        ran.append((name, trio.current_time() - began))

    loop.call_later(3, note, "late")
    await wait_all_tasks_blocked()
    loop.call_later(1, note, "soon")
    loop.call_later(2, note, "cancelled").cancel()
    loop.call_at(loop.time() - 1, note, "past")
    await trio.sleep(5)

    assert [name for name, _ in ran] == ["past", "soon", "late"]
    assert [at for _, at in ran] == pytest.approx([0, 1, 3])


async def test_cancelled_timers_are_removed(island: Island, autojump_clock: MockClock) -> None:
    """A thousand timeouts of an hour, each cancelled at once, do not stay in the heap."""
    loop = island.loop
    ran: list[int] = []
    kept = loop.call_later(3000, ran.append, 1)
    for _ in range(1000):
        loop.call_later(3600, ran.append, 2).cancel()
    loop.call_soon(ran.append, 0)
    await wait_all_tasks_blocked()

    assert len(loop._timers) <= MIN_CANCELLED + 1
    await trio.sleep(4000)
    assert ran == [0, 1]
    kept.cancel()  # without effect on one that has run
    assert loop._cancelled_timers <= len(loop._timers)


async def test_callbacks_come_from_other_threads(island: Island, autojump_clock: MockClock) -> None:
    """``call_soon_threadsafe`` wakes the loop."""
    done = trio.Event()
    await trio.to_thread.run_sync(island.loop.call_soon_threadsafe, done.set)
    with trio.fail_after(5):
        await done.wait()


async def test_a_callback_of_a_thread_for_a_closed_loop_is_dropped() -> None:
    """The thread may schedule it just before the loop closes; the server goes on."""
    ran: list[int] = []
    async with open_island("test") as island:
        island.loop.call_soon_threadsafe(ran.append, 1)
        await wait_all_tasks_blocked()
        token = trio.lowlevel.current_trio_token()
        late = asyncio.Handle(ran.append, (2,), island.loop)
    token.run_sync_soon(island.loop._q_send.send_nowait, late)
    await wait_all_tasks_blocked()

    assert ran == [1]


async def test_a_foreign_thread_that_uses_call_soon_does_not_stop_the_loop(
    island: Island, autojump_clock: MockClock
) -> None:
    """It gets an error that names the reason, and later callbacks run."""
    ran: list[int] = []
    await wait_all_tasks_blocked()
    with pytest.raises(RuntimeError):
        await trio.to_thread.run_sync(island.loop.call_soon, ran.append, 1)
    island.loop.call_soon(ran.append, 2)
    await wait_all_tasks_blocked()

    assert ran == [1, 2]


async def test_a_started_task_runs_to_its_first_wait_at_once(
    island: Island, autojump_clock: MockClock
) -> None:
    """It sees the loop, itself and its plugin's context there, as in every later step."""
    resident = Resident(island, "demo")
    variable = contextvars.ContextVar[str]("variable", default="")
    seen: list[Any] = []

    def look() -> None:
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        name = sniffio.current_async_library()
        seen.append((task is not None and task.get_name(), loop is island.loop, name, variable.get()))

    async def work() -> int:
        look()
        await asyncio.sleep(1)
        look()
        return 7

    variable.set("caller's")
    trio_asyncio.current_loop.set(None)  # as in the task of a connection
    task = resident.start(work, name="work")
    assert seen == [("work", True, "asyncio", "caller's")]
    assert sniffio.current_async_library() == "trio"
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()

    assert await resident.wait(task) == 7
    assert seen[0] == seen[1]


async def test_a_started_task_that_waits_for_nothing_is_done(
    island: Island, autojump_clock: MockClock
) -> None:
    """Its result is there without a turn of the loop; its exception is its own, SystemExit a crash."""
    resident = Resident(island, "demo")
    later: list[str] = []

    async def work() -> str:
        asyncio.get_running_loop().call_soon(later.append, "later")
        return "result"

    async def leave() -> None:
        raise SystemExit(3)

    task = resident.start(work, name="work")
    assert task.done()
    assert task.result() == "result"
    assert later == []
    left = resident.start(leave, name="leave")
    assert "SystemExit(3)" in str(left.exception())
    await wait_all_tasks_blocked()
    assert later == ["later"]


async def test_a_task_factory_of_the_plugin_makes_started_tasks(
    island: Island, autojump_clock: MockClock
) -> None:
    """Also one that starts its tasks eagerly."""
    resident = Resident(island, "demo")
    made: list[asyncio.Task[Any]] = []

    def factory(loop: Any, coro: Any, **settings: Any) -> asyncio.Task[Any]:
        made.append(asyncio.Task(coro, loop=loop, **settings))
        return made[-1]

    island.loop.set_task_factory(factory)

    async def work() -> int:
        await asyncio.sleep(1)
        return 7

    task = resident.start(work, name="work")
    assert made == [task]
    assert await resident.wait(task) == 7


async def test_cancelling_the_caller_ends_a_started_task(island: Island, autojump_clock: MockClock) -> None:
    """It is a task of the plugin like every other one."""
    resident = Resident(island, "demo")
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            ended.append("cleaned up")

    task = resident.start(work, name="work")
    with trio.move_on_after(1) as scope:
        await resident.wait(task)

    assert scope.cancelled_caught
    assert ended == ["cleaned up"]
    assert task in resident.tasks
