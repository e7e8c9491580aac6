"""Take a census of everything alive: tasks, threads, descriptors, processes.

The difference of two censuses, before and after, shows the leaks of a server.
"""

from __future__ import annotations

import fcntl
import os
import resource
import secrets
import stat
import sys
import sysconfig
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any, Final

import attrs
import trio

__all__ = [
    "OWNED_BY_TEST",
    "UNDER_TEST",
    "Census",
    "descendants",
    "start_time",
    "take_census",
    "track_started",
    "wait_nothing_left",
]

UNDER_TEST: Final[ContextVar[object | None]] = ContextVar("tangram_under_test", default=None)
"""Mark in the context of a server under test: tasks that it starts inherit it."""

OWNED_BY_TEST: Final[dict[int, int]] = {}
"""Processes that a test started through the kit, and the pipe to each: no leaks. The test ends them."""
_NO_FILES: Final = ("/dev/", "/proc/", "/memfd:")

_READ_AT_WILL: Final = (
    *{f"{path.rstrip('/')}/" for path in (*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix)},
    "/usr/",
    "/lib/",
    "/etc/",
    "/var/lib/sss/",
)
"""Places that imports and the C library read and may keep open: an open file there, if read only, is no
leak.

The last one is the C library's cache of user names.
"""

_TRIOS_OWN: Final = frozenset(
    {"AsyncGenerators._finalize_one", "EntryQueue.task", "Run.run_system", "_waitid_system_task"}
)
"""System tasks that Trio starts by itself.

All but the second, which lives as long as the loop, end as soon as the loop runs, or with a thread or
process that is counted itself.
"""

_POOLS: Final = ("iou-", "jemalloc", "polars-", "rayon", "smol-", "tokio-", "ZMQbg")
"""Beginnings of names of threads that a library keeps for good once it is used.

They cannot be ended. Those of the kernel for io_uring are among them.
"""

_POOL_LIBRARIES: Final = ("blis", "gomp", "iomp5", "mkl_", "openblas", "tbb", "torch")
"""Shared libraries that keep such threads without a name."""

_MARK: Final = "_STARTED_UNDER_TEST"
"""Environment variable of processes that are started in the block of a test."""

_TOKEN: Final = secrets.token_hex(8)
"""Distinguishes this process from another one that had its id before."""

_LISTENING: Final = "0A"
"""Linux's TCP_LISTEN, as written in ``/proc/net/tcp``."""

PATIENCE: Final = 2.0
"""Real seconds for threads and processes that are about to end when the server has ended."""

LOOK_EVERY: Final = 0.001
"""Real seconds between two polls: the watchdog's thread needs less to end."""

LIST_TRIES: Final = 1000
"""Attempts to list a set that other threads change, as many as asyncio itself makes."""


@attrs.frozen
class Census:
    """Everything alive, by kind; each entry has a line that describes it."""

    tasks: dict[object, str]
    threads: dict[object, str]
    descriptors: dict[object, str]
    """Sockets, pipes and the like."""
    files: dict[object, str]
    """Regular files, except those that only Python itself reads."""
    asyncio_tasks: dict[object, str]
    processes: dict[object, str]

    def more_than(self, before: Census, *, redis_port: int | None = None) -> dict[str, list[str]]:
        """Return the entries that were not in ``before``, by kind.

        Listening sockets have the kind ``ports``, and connections to the broker ``redis_connections``.

        Args:
            before: an earlier census.
            redis_port: port of the broker, to recognise connections to it.
        """
        kinds = attrs.asdict(self, recurse=False)
        more = {
            kind: sorted(line for key, line in here.items() if key not in getattr(before, kind))
            for kind, here in kinds.items()
            if here.keys() - getattr(before, kind).keys()
        }
        for line in more.pop("descriptors", ()):
            kind, told = _describe_descriptor(line, redis_port)
            more.setdefault(kind, []).append(told)
        return more


def take_census(mark: object | None = None) -> Census:
    """Return everything alive now.

    Args:
        mark: count the Trio tasks that carry it, beside the system tasks.
    """
    descriptors, files = _descriptors()
    return Census(
        tasks=_tasks(mark),
        threads=_threads(),
        descriptors=descriptors,
        files=files,
        asyncio_tasks=_asyncio_tasks(),
        processes=_processes(),
    )


def wait_nothing_left(
    before: Census,
    mark: object | None = None,
    *,
    redis_port: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, list[str]]:
    """Return the entries that are still more than ``before`` after `PATIENCE` seconds.

    The loop is blocked meanwhile: threads and processes end by themselves, tasks cannot.
    """
    until = clock() + PATIENCE
    while (more := take_census(mark).more_than(before, redis_port=redis_port)) and clock() < until:
        if more.keys() & {"tasks", "asyncio_tasks"}:
            break  # these cannot go while the loop stands
        time.sleep(LOOK_EVERY)
    return more


@contextmanager
def track_started() -> Iterator[None]:
    """Track processes and asyncio loops that start in the block, for a census.

    Without it a process whose parent has ended, or the tasks of an asyncio loop, could not be found.
    Blocks may overlap.

    A process is recognised by an environment variable that it inherits. Being the subreaper of such
    processes instead would change the server under test: their zombies would be its own children.
    """
    with _watch.held():
        yield


class _Watch:
    """The changes of `track_started` to the whole process, for as long as a block needs them."""

    def __init__(self) -> None:
        self.loops: weakref.WeakSet[Any] = weakref.WeakSet()
        """Every asyncio loop that was made meanwhile."""
        self._lock = threading.Lock()
        self._users = 0
        self._undo = ExitStack()

    @contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._begin()
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._undo.close()

    def _begin(self) -> None:
        import asyncio

        os.environ[_MARK] = _mark()
        self._undo.callback(os.environ.pop, _MARK, None)
        kind: Any = asyncio.BaseEventLoop
        make = kind.__init__

        def noted(loop: Any, *args: Any, **options: Any) -> None:
            make(loop, *args, **options)
            self.loops.add(loop)

        kind.__init__ = noted
        self._undo.callback(setattr, kind, "__init__", make)


_watch = _Watch()


def _mark() -> str:
    return f"{os.getpid()}-{_TOKEN}"


def _tasks(mark: object | None) -> dict[object, str]:
    root = trio.lowlevel.current_root_task()
    if root is None:
        return {}
    found: dict[object, str] = {
        task: f"{task.name} (a system task)"
        for task in _children(root)
        if getattr(task.coro, "__qualname__", "") not in _TRIOS_OWN
    }
    waiting = [root] if mark is not None else []
    while waiting:
        task = waiting.pop()
        waiting += _children(task)
        if task.context.get(UNDER_TEST) is mark:
            found[task] = task.name
    return found


def _children(task: trio.lowlevel.Task) -> list[trio.lowlevel.Task]:
    return [child for nursery in task.child_nurseries for child in nursery.child_tasks]


def _threads() -> dict[object, str]:
    """Return threads by their objects, because an id may be reused, and foreign threads."""
    frames = sys._current_frames()  # noqa: SLF001 - the documented way to see them
    # A dummy stands for a foreign thread, also when that has ended.
    known = [one for one in threading.enumerate() if not isinstance(one, threading._DummyThread)]  # noqa: SLF001 - there is no public name
    found: dict[object, str] = {
        thread: thread.name for thread in known if not _is_idle(frames.get(thread.ident or 0))
    }
    return found | _foreign_threads(frames, known)


def _is_idle(frame: FrameType | None) -> bool:
    """Return whether a thread is an idle worker of Trio, which keeps them for ten seconds."""
    while frame is not None and frame.f_back is not None and "threading" in frame.f_code.co_filename:
        frame = frame.f_back
    return (
        frame is not None
        and frame.f_code.co_filename.endswith("_thread_cache.py")
        and frame.f_code.co_name == "_work"
    )


def _foreign_threads(frames: Mapping[int, FrameType], known: Sequence[threading.Thread]) -> dict[object, str]:
    """Return threads that were not made by ``threading``, but by ``_thread`` or by a library."""
    ours = {str(thread.native_id) for thread in known}
    there = {tid: _stat(f"self/task/{tid}") for tid in _names("/proc/self/task") if tid not in ours}
    others = {
        tid: told for tid, told in there.items() if told is not None and not told.name.startswith(_POOLS)
    }
    if not others:
        return {}
    idents = {thread.ident for thread in known}
    runs = [_outermost(frame) for ident, frame in frames.items() if ident not in idents]
    if not runs and _has_pools():
        return {}
    where = f", Python runs {' and '.join(runs)}" if runs else ""
    return {
        (tid, told.began): f"{told.name} (thread {tid}, not of threading{where})"
        for tid, told in others.items()
    }


def _outermost(frame: FrameType) -> str:
    while frame.f_back is not None:
        frame = frame.f_back
    return f"{frame.f_code.co_qualname} of {frame.f_code.co_filename}"


def _has_pools() -> bool:
    """Return whether a library is loaded that keeps threads without a name."""
    libraries = (line.rpartition("/")[2] for line in Path("/proc/self/maps").read_text().splitlines())
    return any(part in library for library in set(libraries) for part in _POOL_LIBRARIES)


def _names(folder: str) -> list[str]:
    return os.listdir(folder)  # noqa: PTH208 - after each of thousands of runs, and paths take twice as long


def _descriptors() -> tuple[dict[object, str], dict[object, str]]:
    """Return sockets, pipes and the like, and regular files."""
    found: dict[object, str] = {}
    files: dict[object, str] = {}
    for number in map(int, _names("/proc/self/fd")):
        # The descriptor that read this folder is closed, and other threads may close some at this moment.
        with suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115 - as `_names`
            if target.startswith(("socket:", "pipe:", "anon_inode:")):
                if number not in OWNED_BY_TEST.values():
                    found[number, target] = f"{number} -> {target}"
            elif target.startswith("/") and not target.startswith(_NO_FILES) and _is_file(number, target):
                files[number, target] = f"{number} -> {target}"
    return found, files


def _is_file(number: int, target: str) -> bool:
    """Return whether a descriptor is a regular file that imports do not read at any time."""
    if not stat.S_ISREG(os.fstat(number).st_mode):
        return False
    if not target.startswith(_READ_AT_WILL) and "/site-packages/" not in target:
        return True
    return fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY


def _describe_descriptor(line: str, redis_port: int | None) -> tuple[str, str]:
    """Return the kind of a descriptor and its line, with the ports of a TCP socket."""
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
    known = {task for loop in _listed(_watch.loops) for task in asyncio.all_tasks(loop)}
    # Tasks of loops that were made before tracking. From Python 3.14 on these lists have no tasks in C.
    for name in ("_all_tasks", "_scheduled_tasks", "_eager_tasks"):
        known.update(_listed(getattr(asyncio.tasks, name, ())))
    # By weak reference: an id may be reused, and a strong reference would keep the task alive.
    return {weakref.ref(task): repr(task) for task in known if not task.done()}


def _listed(them: Iterable[Any]) -> list[Any]:
    for _ in range(LIST_TRIES):
        with suppress(RuntimeError):  # another thread has just changed it
            return list(them)
    return []


def _processes() -> dict[object, str]:
    below = {pid: (told.name, told.began) for pid, told in _below(os.getpid())}
    found: dict[object, str] = {
        (pid, began): f"{name} (process {pid})" for pid, (name, began) in below.items()
    }
    return found | _orphans.now(below)


class _Orphans:
    """Processes that were started under test and whose parent has ended."""

    def __init__(self) -> None:
        self._reaped: object = None
        self._known: dict[tuple[int, str], str] = {}

    def now(self, below: Mapping[int, object]) -> dict[object, str]:
        """Return the orphans that are alive.

        All processes are inspected only where a child has ended since the last call, which the resource
        usage of ended children shows: before that there is no new orphan.
        """
        reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
        if reaped != self._reaped:
            self._known = dict(_marked(below))
            self._reaped = reaped
        self._known = {key: told for key, told in self._known.items() if start_time(key[0]) == key[1]}
        return dict[object, str](self._known.items())


_orphans = _Orphans()


def _marked(below: Mapping[int, object]) -> Iterator[tuple[tuple[int, str], str]]:
    entry = f"{_MARK}={_mark()}".encode()
    for pid in [int(name) for name in _names("/proc") if name.isdecimal()]:
        if pid in below or pid == os.getpid():
            continue
        with suppress(OSError):  # it has ended, or belongs to another user
            if entry not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                continue
            found = _stat(pid)
            if found is not None and found.session not in OWNED_BY_TEST:
                yield (pid, found.began), f"{found.name} (process {pid}, its parent has ended)"


@attrs.frozen
class _Stat:
    """The fields of ``/proc/PID/stat`` that are used here."""

    name: str
    state: str
    session: int
    began: str
    """Start time in the kernel's ticks since boot."""


def _stat(whose: int | str) -> _Stat | None:
    try:
        head, _, tail = Path(f"/proc/{whose}/stat").read_text().rpartition(")")
    except OSError:
        return None
    fields = tail.split()
    return _Stat(head.partition("(")[2], fields[0], int(fields[3]), fields[19])


def start_time(pid: int) -> str | None:
    """Return when a process started, in kernel ticks since boot; None where it has ended.

    A process has ended when its last thread has. Its first thread may end before the others, which still
    hold the sockets and files; the process is then shown as a zombie, too.
    """
    told = _stat(pid)
    if told is None or (told.state == "Z" and not _has_other_threads(pid)):
        return None
    return told.began


def _has_other_threads(pid: int) -> bool:
    with suppress(OSError):  # it has just ended
        return any(name != str(pid) for name in _names(f"/proc/{pid}/task"))
    return False


def descendants(parent: int) -> Iterator[tuple[int, str]]:
    """Yield the descendants of a process and their names, except those owned by the test."""
    for pid, told in _below(parent):
        yield pid, told.name


def _below(parent: int) -> Iterator[tuple[int, _Stat]]:
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in map(int, children):
            told = _stat(child)
            if child in OWNED_BY_TEST or told is None:
                continue
            yield child, told
            yield from _below(child)
