"""Compare tasks, threads, file descriptors and memory before and after many restarts."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import trio
from benchmarks.figures.common import FREELY, Figure, none_of, tell
from benchmarks.figures.plugin import make_plugin

from tangram.testing import RunningTangram, open_tangram

CRASHED = ("plugin:bench", "web", "bus", "channels", "state")
WARM_UP = 1000
"""Restarts before the first measurement, which fill the caches and the event log."""
MEMORY = 1024 * 1024
"""Bytes by which the memory may grow."""


@attrs.frozen
class Look:
    tasks: int
    threads: int
    descriptors: int
    asyncio_tasks: int
    resident: int


def all_tasks() -> Iterator[trio.lowlevel.Task]:
    root = trio.lowlevel.current_root_task()
    waiting = [root] if root is not None else []
    while waiting:
        task = waiting.pop()
        yield task
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]


def resident() -> int:
    """Return the resident memory of the process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    """Count the open file descriptors."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def look() -> Look:
    """Measure, once tasks that are ending have ended."""
    await trio.sleep(0.3)
    for _ in range(3):
        gc.collect()
    # Trio keeps idle worker threads for 10 s: they are not counted.
    own = [thread for thread in threading.enumerate() if not thread.name.startswith("Trio thread")]
    return Look(
        tasks=sum(1 for _ in all_tasks()),
        threads=len(own),
        descriptors=descriptors(),
        asyncio_tasks=sum(isinstance(one, asyncio.Task) and not one.done() for one in gc.get_objects()),
        resident=resident(),
    )


async def restart(running: RunningTangram, number: int) -> None:
    """Restart once: every third restart is planned, the others are crashes of each part."""
    if number % 3 == 0:
        await running.server.restart()
        return
    count = running.server.ready_count
    running.crash(CRASHED[number % len(CRASHED)])
    await running.wait_ready(count + 1, seconds=30.0)


async def measure(restarts: int, warm_up: int = WARM_UP) -> list[Figure]:
    """Restart many times, and compare."""
    async with open_tangram([make_plugin(uses_redis=True)], FREELY, checks=()) as running:
        for number in range(warm_up):
            await restart(running, number)
        before = await look()
        for number in range(restarts):
            await restart(running, number)
            running.events.clear()
            running.logs.clear()
            if number % 1000 == 999:
                tell(f"  {number + 1:,} restarts: {(resident() - before.resident) / 1024:+.0f} KiB")
        after = await look()
    grown = after.resident - before.resident
    return [
        none_of(f"tasks left after {restarts:,} restarts", after.tasks - before.tasks),
        none_of("threads left", after.threads - before.threads),
        none_of("file descriptors left", after.descriptors - before.descriptors),
        none_of("asyncio tasks left", after.asyncio_tasks - before.asyncio_tasks),
        Figure(
            f"resident memory more after {restarts:,} restarts",
            f"{grown / 1024:+.0f} KiB of {before.resident / 1048576:.0f} MiB",
            "<= 1 MiB",
            grown <= MEMORY,
        ),
    ]
