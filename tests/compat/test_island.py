from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import anyio
import pytest
import structlog
import trio
from trio.testing import MockClock

from tangram.compat.island import Island, IslandClosed, Resident, open_island, where_stands
from tangram.errors import ServiceError


def nothing() -> list[Any]:
    return []


@pytest.fixture
async def island(autojump_clock: MockClock) -> AsyncIterator[Island]:
    async with open_island("test") as island:
        yield island


async def test_results_and_errors_come_back(island: Island, autojump_clock: MockClock) -> None:
    """The function's result is returned, and its exception raised, unchanged."""
    resident = Resident(island, "demo")

    async def work(number: int) -> int:
        await asyncio.sleep(1)
        return number + 1

    async def fail() -> None:
        await asyncio.sleep(1)
        raise LookupError("not there")

    assert await resident.call(work, 1, name="work") == 2
    assert await resident.call(lambda: 7, name="sync") == 7
    with pytest.raises(LookupError, match="not there"):
        await resident.call(fail, name="fail")


async def test_worker_threads_of_anyio_serve_many_calls_and_end_with_the_island() -> None:
    """FastAPI runs plain handlers in them; a thread for each request would cost most of the request."""
    threads: list[threading.Thread] = []

    async def work() -> None:
        await anyio.to_thread.run_sync(lambda: threads.append(threading.current_thread()))

    async with open_island("test") as island:
        for _ in range(5):
            await Resident(island, "demo").call(work, name="work")
        tasks = asyncio.all_tasks(island.loop)
        assert [task.get_name() for task in tasks] == ["root of the island"]
    threads[0].join(60)

    assert set(threads) == {threads[0]}
    assert not threads[0].is_alive()
    assert all(task.done() for task in tasks)


async def test_cancelling_the_caller_cancels_the_task(island: Island, autojump_clock: MockClock) -> None:
    """A cancelled task has time to clean up, and is done before the caller goes on."""
    received: list[str] = []
    resident = Resident(island, "demo")

    async def work() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(0.5)
            received.append("cleaned up")

    with trio.move_on_after(1) as scope:
        await resident.call(work, name="work")

    assert scope.cancelled_caught
    assert received == ["cleaned up"]


async def test_a_swallowed_cancellation_is_repeated(island: Island, autojump_clock: MockClock) -> None:
    """A task that loses a cancellation, as Python 3.11's ``wait_for`` may, is cancelled again."""
    resident = Resident(island, "demo")

    async def work() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(100)
        await asyncio.sleep(100)

    began = trio.current_time()
    with trio.move_on_after(1):
        await resident.call(work, name="work", stop_timeout=10)

    assert trio.current_time() - began == pytest.approx(2)


async def test_a_stubborn_task_is_logged_and_abandoned(island: Island, autojump_clock: MockClock) -> None:
    """A task that never ends is logged with plugin, name and line, and runs no more."""
    turns = 0
    resident = Resident(island, "demo")

    async def stubborn() -> None:
        nonlocal turns
        while True:
            turns += 1
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(1)

    with structlog.testing.capture_logs() as logs, trio.move_on_after(3.5) as scope:
        await resident.call(stubborn, name="run_for_ever", stop_timeout=4)
    ended, left = trio.current_time(), turns
    await trio.sleep(10)
    await resident.close(nothing)
    (logged,) = [record for record in logs if record["log_level"] == "error"]

    assert scope.cancelled_caught
    assert (logged["plugin"], logged["task"]) == ("demo", "run_for_ever")
    assert "test_island.py" in logged["where"]
    assert "stubborn" in logged["where"]
    assert turns == left
    assert trio.current_time() - ended == pytest.approx(10)


async def test_the_end_of_a_resident_ends_its_tasks(island: Island, autojump_clock: MockClock) -> None:
    """Tasks that a plugin left behind are cancelled with it; a neighbour's go on."""
    ours, neighbour = Resident(island, "ours"), Resident(island, "neighbour")
    state: dict[str, str] = {}

    async def work(name: str) -> None:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            state[name] = "cancelled"
            raise

    async def leave_behind(name: str) -> None:
        child = asyncio.create_task(work(f"{name}'s child"))
        state[f"{name}'s child"] = "runs"
        _kept.append(child)

    await ours.call(leave_behind, "ours", name="leave")
    await neighbour.call(leave_behind, "neighbour", name="leave")
    await trio.sleep(1)
    with structlog.testing.capture_logs() as logs:
        await ours.close(nothing)

    assert state == {"ours's child": "cancelled", "neighbour's child": "runs"}
    assert [record["plugin"] for record in logs] == ["ours"]


_kept: list[object] = []


async def test_a_closed_resident_refuses_calls(island: Island, autojump_clock: MockClock) -> None:
    """Calls to a closed resident, and calls that wait for one, raise `IslandClosed`."""
    resident = Resident(island, "demo")

    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def waits() -> None:
            with pytest.raises(IslandClosed, match="was stopped meanwhile"):
                await resident.call(asyncio.sleep, 100, name="request")

        await trio.testing.wait_all_tasks_blocked()
        await resident.close(nothing)
    with pytest.raises(IslandClosed, match="is being stopped"):
        await resident.call(asyncio.sleep, 1, name="late")


async def test_a_task_that_cancels_itself_has_crashed(island: Island, autojump_clock: MockClock) -> None:
    """An ``asyncio.CancelledError`` without a requested stop is an error."""
    resident = Resident(island, "demo")

    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    with pytest.raises(ServiceError, match="cancelled from inside"):
        await resident.call(work, name="work")


async def test_a_forgotten_tasks_error_is_logged_with_its_plugin(
    island: Island, autojump_clock: MockClock
) -> None:
    """The exception of a task that is never awaited is logged, and ends no other task."""
    resident = Resident(island, "demo")

    async def fail() -> None:
        raise LookupError("forgotten")

    async def forget() -> None:
        asyncio.create_task(fail())  # noqa: RUF006 - that is what is tested
        await asyncio.sleep(0.1)

    with structlog.testing.capture_logs() as logs:
        await resident.call(forget, name="forget")
        gc.collect()
        await trio.sleep(0.1)

    assert [(record["plugin"], record["cause"]) for record in logs] == [("demo", "LookupError('forgotten')")]
    assert await resident.call(lambda: 1, name="still") == 1


async def test_asyncio_finds_its_loop_everywhere(island: Island, autojump_clock: MockClock) -> None:
    """The running loop is found in a task, its children, a callback and a task from elsewhere."""
    found: list[object] = []
    resident = Resident(island, "demo")

    async def work() -> None:
        found.append(asyncio.get_running_loop())
        await asyncio.gather(child(), child())
        asyncio.get_running_loop().call_soon(lambda: found.append(asyncio.get_running_loop()))
        await asyncio.sleep(0)

    async def child() -> None:
        found.append(asyncio.get_event_loop())

    async with trio.open_nursery() as nursery:
        contextvars.Context().run(nursery.start_soon, lambda: resident.call(work, name="work"))

    assert found == [island.loop] * 4


@pytest.mark.slow
async def test_threads_are_bounded_and_named() -> None:
    """A thread that does not end is logged with its plugin, and does not hold up the island."""
    release = threading.Event()

    def block() -> None:
        release.wait(20)

    began = time.monotonic()
    with structlog.testing.capture_logs() as logs:
        async with open_island("test") as island:
            resident = Resident(island, "demo")

            async def work() -> None:
                await asyncio.get_running_loop().run_in_executor(None, block)

            with trio.move_on_after(0.05):
                await resident.call(work, name="work", stop_timeout=0.2)
            await resident.close(nothing)
    took = time.monotonic() - began
    release.set()

    assert took < 4
    assert "demo/executor" in {record.get("service") for record in logs}


async def test_errors_of_the_block_are_not_wrapped(autojump_clock: MockClock) -> None:
    """An exception of the block leaves it without an exception group around it."""
    with pytest.raises(LookupError, match="as it is"):
        async with open_island("test"):
            raise LookupError("as it is")


async def test_an_abandoned_async_generator_is_finished(autojump_clock: MockClock) -> None:
    """An abandoned async generator is finished on its loop, within a bound."""
    finished: list[str] = []

    async def numbers(name: str, seconds: float) -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(seconds)
            finished.append(name)

    began = trio.current_time()
    async with open_island("test") as island:
        resident = Resident(island, "demo")
        quick, slow = numbers("quick", 0.1), numbers("slow", 1000)
        assert await resident.call(lambda: anext(quick), name="next") == 1
        assert await resident.call(lambda: anext(slow), name="next") == 1

    assert finished == ["quick"]
    assert trio.current_time() - began < 4


async def test_a_tasks_reported_line_is_the_authors(island: Island, autojump_clock: MockClock) -> None:
    """The reported line of a task is the innermost one that is not in asyncio."""
    resident = Resident(island, "demo")

    async def outer() -> None:
        await inner()

    async def inner() -> None:
        await asyncio.wait_for(asyncio.sleep(10), 20)

    task = resident.spawn(outer, name="outer")
    await trio.sleep(1)

    assert where_stands(task).endswith("inner")
    await resident.close(nothing)
