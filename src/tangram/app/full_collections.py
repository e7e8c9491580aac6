"""Full garbage collections at calm moments.

1. A full collection visits every object of the process: it takes 20 ms with 1,000 connections. Python begins
   one after a number of new objects, and therefore while a crowd of clients connects and joins.
2. Here a full collection that is due waits for a calm second, in which the process used little of its
   processor: the longer it waits, the less calm the second has to be. Python begins one by itself only after
   ``LATEST`` collections of the middle generation.
3. One is due as in Python itself: after ``EARLIEST`` collections of the middle generation, and not before a
   quarter as many objects were made as the last one has left. It takes 0.3 s with 10,000 connections.
4. Full collections take a hundredth of the time at most: one that took 0.3 s is followed by none for 30 s.
5. While the collector is disabled, in a restart of the tree, nothing is collected (``gc_pause``).
6. Only a process that runs nothing but the server may do this: the collector is shared by all its code.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import trio

from tangram.ticks import next_tick

__all__ = ["CALM", "EARLIEST", "GROWTH", "LATEST", "REST", "Collector", "FullCollections"]

EARLIEST: Final = 10
"""Collections of the middle generation before a full one: Python's own threshold."""
LATEST: Final = 50
"""Collections of the middle generation after which a full one waits no longer: 5,000 connections are made
meanwhile, and the garbage that waits has at most as many objects."""
GROWTH: Final = 4
"""Python's own rule: the new objects are at least this part of the old ones."""
CALM: Final = 0.5
"""The share of a processor that the process may use in the second before the most overdue one."""
REST: Final = 100
"""Seconds without a full collection for each second of one."""
SECOND: Final = 1.0
"""Seconds over which it is measured."""


class Collector(Protocol):
    """The part of the module ``gc`` that is used here."""

    def collect(self, generation: int = 2) -> int: ...
    def get_count(self) -> tuple[int, int, int]: ...
    def get_objects(self, generation: int | None = None) -> list[Any]: ...
    def get_threshold(self) -> tuple[int, int, int]: ...
    def isenabled(self) -> bool: ...
    def set_threshold(self, threshold0: int, threshold1: int = ..., threshold2: int = ..., /) -> None: ...


class FullCollections:
    """The full collections of a process that runs nothing but the server.

    Args:
        collector: the module ``gc``.
        cpu: returns the CPU seconds of the process.
    """

    def __init__(self, collector: Collector = gc, cpu: Callable[[], float] = time.process_time) -> None:
        self._collector = collector
        self._cpu = cpu
        self._rests_until = -float("inf")
        self._earliest = EARLIEST
        """Collections of the middle generation before the next full one."""

    def _may_use(self, now: float) -> float:
        """Return the share of a processor that the last second may have used, or -1."""
        if now < self._rests_until or not self._collector.isenabled():
            return -1.0
        waits = self._collector.get_count()[2] - self._earliest
        return CALM * min(waits / (LATEST - EARLIEST), 1.0) if waits > 0 else -1.0

    async def run(self) -> None:
        """Let full collections wait for calm moments, until cancelled.

        It returns at once where the collector visits the oldest generation in small steps.
        """
        collector = self._collector
        young, middle, full = collector.get_threshold()
        await trio.lowlevel.checkpoint()
        if not full:
            return
        collector.set_threshold(young, middle, LATEST)
        try:
            await self._collect_when_calm()
        finally:
            collector.set_threshold(young, middle, full)

    def _collect(self) -> None:
        collector = self._collector
        collector.collect()
        young, middle, _ = collector.get_threshold()
        left = len(collector.get_objects(2))
        self._earliest = max(EARLIEST, left // (GROWTH * young * middle))

    async def _collect_when_calm(self) -> None:
        at, spent = trio.current_time(), self._cpu()
        while True:
            await trio.sleep_until(next_tick(at, SECOND))
            now, cpu = trio.current_time(), self._cpu()
            if cpu - spent <= self._may_use(now) * (now - at):
                self._collect()
                took = self._cpu() - cpu
                self._rests_until = now + REST * took
                cpu += took
            at, spent = now, cpu
