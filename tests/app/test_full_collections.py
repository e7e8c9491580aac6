"""Full garbage collections at calm moments."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tangram.app import Boot
from tangram.app.full_collections import CALM, EARLIEST, GROWTH, LATEST, REST, FullCollections
from tangram.testing import open_tangram


class FakeCollector:
    """The module ``gc`` with numbers of the test."""

    def __init__(self) -> None:
        self.threshold = (700, 10, 10)
        self.middle = 0
        """Collections of the middle generation since the last full one."""
        self.took = 0.0
        """CPU seconds of all full collections."""
        self.takes = 0.0
        """Those of one."""
        self.enabled = True
        self.left = 1000
        """Objects that a full collection leaves."""
        self.full: list[float] = []

    def collect(self, generation: int = 2) -> int:
        self.full.append(trio.current_time())
        self.middle = 0
        self.took += self.takes
        return 0

    def get_count(self) -> tuple[int, int, int]:
        return 0, 0, self.middle

    def get_objects(self, generation: int | None = None) -> list[Any]:
        assert generation == 2
        return [None] * self.left

    def get_threshold(self) -> tuple[int, int, int]:
        return self.threshold

    def isenabled(self) -> bool:
        return self.enabled

    def set_threshold(self, threshold0: int, threshold1: int = 0, threshold2: int = 0, /) -> None:
        self.threshold = (threshold0, threshold1, threshold2)


class Running:
    """Collections at work, and the CPU seconds of the process."""

    def __init__(self) -> None:
        self.collector = FakeCollector()
        self.load = 0.0
        """The share of a processor that the process uses."""
        self.collections = FullCollections(self.collector, self.cpu)

    def cpu(self) -> float:
        return self.load * trio.current_time() + self.collector.took

    async def wait(self, seconds: float = 2.0) -> int:
        """Wait, and return the number of full collections meanwhile."""
        before = len(self.collector.full)
        await trio.sleep(seconds)
        return len(self.collector.full) - before


@pytest.fixture
async def running(nursery: trio.Nursery) -> Running:
    made = Running()
    nursery.start_soon(made.collections.run)
    await trio.testing.wait_all_tasks_blocked()
    return made


async def test_a_due_collection_happens_in_a_calm_second(autojump_clock: MockClock, running: Running) -> None:
    """Python begins none by itself before many more objects were made."""
    assert running.collector.threshold == (700, 10, LATEST)
    assert await running.wait() == 0
    running.collector.middle = EARLIEST + 1
    assert await running.wait() == 1


async def test_a_due_collection_waits_while_the_process_is_busy(
    autojump_clock: MockClock, running: Running
) -> None:
    """It happens within two seconds after the load."""
    running.load = CALM
    await running.wait()
    running.collector.middle = LATEST - 1
    assert await running.wait(10) == 0
    running.load = 0.9 * CALM
    assert await running.wait(3) == 1


async def test_the_longer_it_waits_the_busier_the_process_may_be(
    autojump_clock: MockClock, running: Running
) -> None:
    """A collection that has just become due needs an idle process."""
    running.load = 0.1
    await running.wait()
    running.collector.middle = EARLIEST + 1
    assert await running.wait(10) == 0
    running.collector.middle = EARLIEST + (LATEST - EARLIEST) // 4
    assert await running.wait() == 1


async def test_full_collections_take_a_hundredth_of_the_time(
    autojump_clock: MockClock, running: Running
) -> None:
    """After a long one there is none for long."""
    collector = running.collector
    collector.takes, collector.middle = 0.3, LATEST
    assert await running.wait() == 1
    collector.middle = LATEST
    assert await running.wait(0.3 * REST - 3) == 0
    assert await running.wait(5) == 1


async def test_a_process_of_many_objects_collects_after_a_quarter_as_many(
    autojump_clock: MockClock, running: Running
) -> None:
    """So does Python: a full collection of millions takes long, and finds little in a few new ones."""
    collector = running.collector
    collector.left, collector.middle = 2_800_000, EARLIEST + 1
    assert await running.wait() == 1
    collector.middle = 2_800_000 // GROWTH // 7000
    assert await running.wait() == 0
    collector.middle += 1
    assert await running.wait() == 1


async def test_nothing_is_collected_while_the_collector_is_disabled(
    autojump_clock: MockClock, running: Running
) -> None:
    """A restart of the tree disables it."""
    running.collector.middle, running.collector.enabled = LATEST, False
    assert await running.wait() == 0
    running.collector.enabled = True
    assert await running.wait() == 1


async def test_the_threshold_is_put_back_at_the_end(autojump_clock: MockClock) -> None:
    """Code that runs after the server finds the collector as it was."""
    made = Running()
    with trio.move_on_after(5):
        await made.collections.run()
    assert made.collector.threshold == (700, 10, 10)


async def test_a_collector_that_works_in_small_steps_is_left_alone(
    autojump_clock: MockClock,
) -> None:
    """It has no threshold of full collections."""
    made = Running()
    made.collector.threshold, made.collector.middle = (2000, 10, 0), LATEST
    with trio.fail_after(5):
        await made.collections.run()
    assert made.collector.threshold == (2000, 10, 0)
    assert not made.collector.full


@pytest.mark.slow
@pytest.mark.parametrize("alone", [True, False])
async def test_only_a_process_of_its_own_has_them(monkeypatch: pytest.MonkeyPatch, *, alone: bool) -> None:
    """A server inside another program leaves the collector alone."""

    def make_boot(**parameters: Any) -> Boot:
        return Boot(**{**parameters, "signals": alone})

    monkeypatch.setattr("tangram.testing.run.server.Boot", make_boot)
    before = gc.get_threshold()
    async with open_tangram():
        await trio.testing.wait_all_tasks_blocked()
        during = gc.get_threshold()

    assert during == ((*before[:2], LATEST) if alone else before)
    assert gc.get_threshold() == before
