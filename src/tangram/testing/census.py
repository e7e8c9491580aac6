"""What is alive: tasks, threads, descriptors, asyncio tasks, child processes. Taken before and after, two
censuses tell what a server has left behind.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import attrs
import trio

__all__ = ["THE_TESTS_OWN", "UNDER_TEST", "Census", "take_census", "wait_nothing_left"]

UNDER_TEST: ContextVar[object | None] = ContextVar("tangram_under_test", default=None)
"""Set in the task of a server under test: whatever that starts inherits it, and is known by it."""

THE_TESTS_OWN: dict[int, int] = {}
"""Processes that a test started beside the server, by the kit, and the pipe to each: nobody's leak. Whoever
started them sees to their end.
"""

PATIENCE = 2.0
"""Seconds of real time for threads and processes that are on their way out when the server has ended."""


@attrs.frozen
class Census:
    """Who is alive, by kind; each with a line that tells who it is."""

    tasks: dict[object, str]
    threads: dict[object, str]
    descriptors: dict[object, str]
    asyncio_tasks: dict[object, str]
    processes: dict[object, str]

    def more_than(self, before: Census) -> dict[str, list[str]]:
        """What is here and was not before, by kind."""
        kinds = attrs.asdict(self, recurse=False)
        return {
            kind: sorted(line for key, line in here.items() if key not in getattr(before, kind))
            for kind, here in kinds.items()
            if here.keys() - getattr(before, kind).keys()
        }


def take_census(mark: object | None = None) -> Census:
    """Everybody alive now; of Trio's tasks only those that carry ``mark``."""
    return Census(
        tasks=_tasks(mark),
        threads={thread.ident: thread.name for thread in threading.enumerate() if not _is_idle(thread)},
        descriptors=_descriptors(),
        asyncio_tasks=_asyncio_tasks(),
        processes=dict(_processes(os.getpid())),
    )


def wait_nothing_left(
    before: Census, mark: object | None = None, *, clock: Callable[[], float] = time.monotonic
) -> dict[str, list[str]]:
    """What goes on being more than before although it was given time. The loop stands still meanwhile: who
    has to go goes by itself.
    """
    until = clock() + PATIENCE
    while (more := take_census(mark).more_than(before)) and clock() < until:
        if more.keys() & {"tasks", "asyncio_tasks"}:
            break  # these cannot go while the loop stands
        time.sleep(0.01)
    return more


def _tasks(mark: object | None) -> dict[object, str]:
    root = trio.lowlevel.current_root_task()
    if mark is None or root is None:
        return {}
    found: dict[object, str] = {}
    waiting = [root]
    while waiting:
        task = waiting.pop()
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        if task.context.get(UNDER_TEST) is mark:
            found[task] = task.name
    return found


def _is_idle(thread: threading.Thread) -> bool:
    """Trio keeps worker threads for ten seconds after their work; one without work is nobody's."""
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - the documented way to see it
    while frame is not None and frame.f_back is not None and "threading" in frame.f_code.co_filename:
        frame = frame.f_back
    return (
        frame is not None
        and frame.f_code.co_filename.endswith("_thread_cache.py")
        and frame.f_code.co_name == "_work"
    )


def _descriptors() -> dict[object, str]:
    found: dict[object, str] = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue  # the one by which this very folder was read
        # Files are nobody's leak here: reports, coverage and caches are opened by whoever tests.
        own = int(entry.name) in THE_TESTS_OWN.values()
        if target.startswith(("socket:", "pipe:", "anon_inode:")) and not own:
            found[entry.name, target] = f"{entry.name} -> {target}"
    return found


def _asyncio_tasks() -> dict[object, str]:
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is None:
        return {}
    tasks = asyncio.tasks
    known = list(getattr(tasks, "_scheduled_tasks", ()) or getattr(tasks, "_all_tasks", ()))
    known += list(getattr(tasks, "_eager_tasks", ()))
    # By name, not by id: an id may be given again, a task's name is counted up.
    return {task.get_name(): repr(task) for task in known if not task.done()}


def _processes(parent: int) -> Iterator[tuple[object, str]]:
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            if int(child) in THE_TESTS_OWN:
                continue
            try:
                name = Path(f"/proc/{child}/comm").read_text().strip()
            except OSError:
                continue
            yield int(child), f"{name} (process {child})"
            yield from _processes(int(child))
