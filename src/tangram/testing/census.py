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

__all__ = ["THE_TESTS_OWN", "UNDER_TEST", "Census", "descendants", "take_census", "wait_nothing_left"]

UNDER_TEST: ContextVar[object | None] = ContextVar("tangram_under_test", default=None)
"""Set in the task of a server under test: whatever that starts inherits it, and is known by it."""

THE_TESTS_OWN: dict[int, int] = {}
"""Processes that a test started beside the server, by the kit, and the pipe to each: nobody's leak. Whoever
started them sees to their end.
"""
_NO_FILES = ("/dev/", "/proc/", "/memfd:")

_LISTENING = "0A"
"""Linux's TCP_LISTEN, as ``/proc/net/tcp`` has it."""

PATIENCE = 2.0
"""Seconds of real time for threads and processes that are on their way out when the server has ended."""

LOOK_EVERY = 0.001
"""Seconds of real time between two looks: the watchdog's thread needs less to end."""


@attrs.frozen
class Census:
    """Who is alive, by kind; each with a line that tells who it is."""

    tasks: dict[object, str]
    threads: dict[object, str]
    descriptors: dict[object, str]
    """Sockets, pipes and the like."""
    files: dict[object, str]
    """Files that are open for writing."""
    asyncio_tasks: dict[object, str]
    processes: dict[object, str]

    def more_than(self, before: Census, *, redis_port: int | None = None) -> dict[str, list[str]]:
        """What is here and was not before, by kind; sockets that listen are ``ports``, and those to the
        broker ``redis_connections``.
        """
        kinds = attrs.asdict(self, recurse=False)
        more = {
            kind: sorted(line for key, line in here.items() if key not in getattr(before, kind))
            for kind, here in kinds.items()
            if here.keys() - getattr(before, kind).keys()
        }
        for line in more.pop("descriptors", ()):
            kind, told = _who(line, redis_port)
            more.setdefault(kind, []).append(told)
        return more


def take_census(mark: object | None = None) -> Census:
    """Everybody alive now; of Trio's tasks only those that carry ``mark``."""
    return Census(
        tasks=_tasks(mark),
        threads={thread.ident: thread.name for thread in threading.enumerate() if not _is_idle(thread)},
        descriptors=_descriptors(),
        files=_files(),
        asyncio_tasks=_asyncio_tasks(),
        processes={pid: f"{name} (process {pid})" for pid, name in descendants(os.getpid())},
    )


def wait_nothing_left(
    before: Census,
    mark: object | None = None,
    *,
    redis_port: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, list[str]]:
    """What goes on being more than before although it was given time. The loop stands still meanwhile: who
    has to go goes by itself.
    """
    until = clock() + PATIENCE
    while (more := take_census(mark).more_than(before, redis_port=redis_port)) and clock() < until:
        if more.keys() & {"tasks", "asyncio_tasks"}:
            break  # these cannot go while the loop stands
        time.sleep(LOOK_EVERY)
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
        own = int(entry.name) in THE_TESTS_OWN.values()
        if target.startswith(("socket:", "pipe:", "anon_inode:")) and not own:
            found[entry.name, target] = f"{entry.name} -> {target}"
    return found


def _files() -> dict[object, str]:
    """Of regular files those that are written: what is read is opened by imports at any time."""
    found: dict[object, str] = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
            if not target.startswith("/") or target.startswith(_NO_FILES):
                continue
            flags = Path(f"/proc/self/fdinfo/{entry.name}").read_text().partition("flags:")[2].split()[0]
        except OSError:
            continue
        if int(flags, 8) & os.O_ACCMODE != os.O_RDONLY:
            found[entry.name, target] = f"{entry.name} -> {target}"
    return found


def _who(line: str, redis_port: int | None) -> tuple[str, str]:
    """The kind of a descriptor, and its line with the addresses of its socket where it is one of TCP."""
    inode = line.rpartition("socket:[")[2].rstrip("]")
    for table in ("tcp", "tcp6"):
        try:
            rows = Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            words = row.split()
            if words[9] != inode:
                continue
            port, peer = (int(words[at].rpartition(":")[2], 16) for at in (1, 2))
            if words[3] == _LISTENING:
                return "ports", f"{line}, listens on port {port}"
            kind = "redis_connections" if peer == redis_port else "descriptors"
            return kind, f"{line}, connected to port {peer}"
    return "descriptors", line


def _asyncio_tasks() -> dict[object, str]:
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is None:
        return {}
    tasks = asyncio.tasks
    known = list(getattr(tasks, "_scheduled_tasks", ()) or getattr(tasks, "_all_tasks", ()))
    known += list(getattr(tasks, "_eager_tasks", ()))
    # By name, not by id: an id may be given again, a task's name is counted up.
    return {task.get_name(): repr(task) for task in known if not task.done()}


def descendants(parent: int) -> Iterator[tuple[int, str]]:
    """The processes below one, with their names; those that the test itself has started are left out."""
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in map(int, children):
            if child in THE_TESTS_OWN:
                continue
            try:
                name = Path(f"/proc/{child}/comm").read_text().strip()
            except OSError:
                continue
            yield child, name
            yield from descendants(child)
