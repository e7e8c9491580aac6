"""Each kind of leak of a plugin is found and described."""

from __future__ import annotations

import _thread
import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tangram import BackendState, Plugin
from tangram.testing import InvariantBroken, open_supervised, open_tangram
from tangram.testing.checks import census as census_module
from tangram.testing.checks.census import start_time, take_census, track_started, wait_nothing_left

Leak = Callable[[ExitStack, BackendState, Path], object]


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """Keep objects that the plugin does not close, and close them after the test."""
    with ExitStack() as stack:
        yield stack


def a_port(stack: ExitStack, state: BackendState, folder: Path) -> None:
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen()


def a_connection_to_redis(stack: ExitStack, state: BackendState, folder: Path) -> None:
    url = state.config.core.redis_url
    assert url is not None
    stack.enter_context(socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))))


def a_file(stack: ExitStack, state: BackendState, folder: Path) -> None:
    stack.enter_context((folder / "kept.txt").open("w"))


def a_file_to_read(stack: ExitStack, state: BackendState, folder: Path) -> None:
    (folder / "read.txt").write_text("x")
    stack.enter_context((folder / "read.txt").open())


def a_pipe(stack: ExitStack, state: BackendState, folder: Path) -> None:
    for one in socket.socketpair():
        stack.enter_context(one)


def a_process(stack: ExitStack, state: BackendState, folder: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    stack.enter_context(process)
    stack.callback(process.kill)


def a_system_task(stack: ExitStack, state: BackendState, folder: Path) -> None:
    async def sleeps() -> None:
        with scope:
            await trio.sleep_forever()

    scope = trio.CancelScope()
    stack.callback(scope.cancel)
    trio.lowlevel.spawn_system_task(sleeps)


def a_raw_thread(stack: ExitStack, state: BackendState, folder: Path) -> None:
    over, began = threading.Lock(), threading.Lock()

    def waits() -> None:
        began.release()
        over.acquire()

    over.acquire()
    began.acquire()
    _thread.start_new_thread(waits, ())
    began.acquire()
    stack.callback(over.release)


def an_asyncio_task(stack: ExitStack, state: BackendState, folder: Path) -> None:
    loop = a_loop(stack)
    task = loop.create_task(asyncio.sleep(60), name="sleeper")
    stack.callback(loop.run_until_complete, asyncio.gather(task, return_exceptions=True))
    stack.callback(task.cancel)


def a_loop(stack: ExitStack) -> asyncio.AbstractEventLoop:
    loop = asyncio.SelectorEventLoop()
    stack.callback(loop.close)
    return loop


@pytest.mark.parametrize(
    ("leak", "told"),
    [
        (a_port, r"1 more ports than before: .*listens on port \d+"),
        (a_connection_to_redis, "1 more redis connections than before: .*connected to port"),
        (a_file, r"1 more files than before: .*kept\.txt"),
        (a_file_to_read, r"1 more files than before: .*read\.txt"),
        (a_pipe, "2 more descriptors than before"),
        (a_system_task, r"1 more tasks than before: .*sleeps \(a system task\)"),
        (a_raw_thread, r"1 more threads than before: .*Python runs a_raw_thread\.<locals>\.waits"),
        (an_asyncio_task, "1 more asyncio tasks than before: .*sleeper"),
        (a_process, "1 more processes than before: python"),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_each_kind_of_leak_is_described(
    *,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    held: ExitStack,
    tmp_path: Path,
    leak: Leak,
    told: str,
) -> None:
    """Ports, connections, files, pipes, processes, threads and tasks have a line each."""
    monkeypatch.setattr(sys.modules[wait_nothing_left.__module__], "PATIENCE", 0.05)
    plugin = Plugin()

    @plugin.register_service()
    async def careless(state: Any) -> None:
        leak(held, state, tmp_path)
        await trio.sleep_forever()

    with pytest.raises(InvariantBroken, match=told):
        async with open_tangram([plugin], fakes=True):
            await trio.sleep(0.1)


CLOSED_AT_ONCE = (a_port, a_connection_to_redis, a_file, a_file_to_read, a_pipe, a_process)


async def test_a_plugin_that_closes_everything_leaves_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """The same things, closed when the plugin stops, are no leak."""
    plugin = Plugin()

    @plugin.register_service()
    async def careful(state: BackendState) -> None:
        with ExitStack() as stack:
            for leak in (*CLOSED_AT_ONCE, a_system_task, a_raw_thread, an_asyncio_task):
                leak(stack, state, tmp_path)
            await trio.sleep_forever()

    async with open_tangram([plugin], fakes=True):
        await trio.sleep(0.1)


def left_of(begin: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Return the leaks of a block."""
    monkeypatch.setattr(census_module, "PATIENCE", 0.05)
    with track_started():
        before = take_census()
        begin()
    return wait_nothing_left(before)


async def test_a_reused_thread_id_hides_no_thread(monkeypatch: pytest.MonkeyPatch, held: ExitStack) -> None:
    """Threads are compared as objects, because the system reuses the id of an ended one."""
    over, later_over = threading.Event(), threading.Event()
    first = threading.Thread(target=over.wait, daemon=True)
    first.start()
    later = threading.Thread(target=later_over.wait, name="later", daemon=True)
    held.callback(later.join, 5)
    held.callback(later_over.set)

    def one_goes_another_comes() -> None:
        over.set()
        first.join()
        later.start()
        # Mostly it is the same by itself; forced, for the order of frees decides.
        monkeypatch.setattr(later, "_ident", first.ident)

    left = left_of(one_goes_another_comes, monkeypatch)

    assert left == {"threads": ["later"]}


async def test_a_reused_name_hides_no_asyncio_task(monkeypatch: pytest.MonkeyPatch, held: ExitStack) -> None:
    """Two tasks of one name are two."""
    loop = a_loop(held)
    tasks = [loop.create_task(asyncio.sleep(60), name="worker")]

    def one_ends_another_begins() -> None:
        tasks[0].cancel()
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(tasks[0])
        tasks.append(loop.create_task(asyncio.sleep(60), name="worker"))

    left = left_of(one_ends_another_begins, monkeypatch)

    tasks[1].cancel()
    loop.run_until_complete(asyncio.gather(tasks[1], return_exceptions=True))
    assert list(left) == ["asyncio_tasks"]


async def test_asyncio_tasks_are_found_without_a_global_list(
    monkeypatch: pytest.MonkeyPatch, held: ExitStack
) -> None:
    """From Python 3.14 on the loops that were made under test are asked."""
    lists = [name for name in ("_all_tasks", "_scheduled_tasks") if hasattr(asyncio.tasks, name)]
    kept = [getattr(asyncio.tasks, name) for name in lists]

    def all_tasks(loop: object) -> set[Any]:
        return {task for tasks in kept for task in tasks if task.get_loop() is loop and not task.done()}

    monkeypatch.setattr(asyncio, "all_tasks", all_tasks)
    for name in lists:
        monkeypatch.setattr(asyncio.tasks, name, weakref.WeakSet())
    left = left_of(lambda: an_asyncio_task(held, None, None), monkeypatch)  # type: ignore[arg-type]

    assert "sleeper" in left["asyncio_tasks"][0]


async def test_pool_threads_of_libraries_are_no_leak(
    monkeypatch: pytest.MonkeyPatch, held: ExitStack
) -> None:
    """Known names of pools, and nameless threads beside such a library, are no leak."""

    def tokio() -> None:
        a_raw_thread(held, None, None)  # type: ignore[arg-type]
        (made,) = set(Path("/proc/self/task").iterdir()) - before
        (made / "comm").write_text("tokio-runtime-w")

    before = set(Path("/proc/self/task").iterdir())  # noqa: ASYNC240 - of /proc
    assert left_of(tokio, monkeypatch) == {}

    frames = sys._current_frames
    idents = {thread.ident for thread in threading.enumerate()}
    monkeypatch.setattr(sys, "_current_frames", lambda: {i: f for i, f in frames().items() if i in idents})
    alone = left_of(lambda: a_raw_thread(held, None, None), monkeypatch)  # type: ignore[arg-type]
    monkeypatch.setattr(census_module, "_POOL_LIBRARIES", ("libc",))
    with_pools = left_of(lambda: a_raw_thread(held, None, None), monkeypatch)  # type: ignore[arg-type]

    assert list(alone) == ["threads"]
    assert with_pools == {}


async def test_an_ended_foreign_thread_is_no_leak(monkeypatch: pytest.MonkeyPatch, held: ExitStack) -> None:
    """The dummy object that ``threading`` keeps for a foreign thread is not counted."""

    def logs() -> None:
        threading.current_thread()
        logging.getLogger("somebody").debug("from elsewhere")
        over.release()

    over = threading.Lock()
    over.acquire()

    def begin() -> None:
        ident = _thread.start_new_thread(logs, ())
        held.callback(threading._active.pop, ident, None)  # type: ignore[attr-defined]
        over.acquire()

    assert left_of(begin, monkeypatch) == {}
    if sys.version_info < (3, 12):  # later ones drop the object with its thread
        assert any(isinstance(one, threading._DummyThread) for one in threading.enumerate())


async def test_a_file_that_python_imports_is_no_leak(
    monkeypatch: pytest.MonkeyPatch, held: ExitStack
) -> None:
    """A module's file is open while it is imported."""

    def reads() -> None:
        held.callback(os.close, os.open(os.__file__, os.O_RDONLY))

    assert left_of(reads, monkeypatch) == {}


AN_ORPHAN = """
import subprocess, sys
orphan = subprocess.Popen(
    [sys.executable, "-c", "input()"], stdin=sys.stdin, stdout=subprocess.DEVNULL, start_new_session=True
)
print(orphan.pid)
"""


def an_orphan(stack: ExitStack) -> int:
    """Start a process in a session of its own whose parent ends."""
    read, write = os.pipe()
    stack.callback(os.close, write)
    parent = subprocess.run(
        [sys.executable, "-c", AN_ORPHAN], stdin=read, stdout=subprocess.PIPE, check=True, timeout=60
    )
    os.close(read)
    pid = int(parent.stdout)
    stack.callback(_gone, pid)
    return pid


def _gone(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + 60
    while start_time(pid) and time.monotonic() < until:
        time.sleep(0.001)


@pytest.mark.slow
async def test_an_orphaned_process_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is known by an inherited variable, and the next block is not charged for it."""
    monkeypatch.setattr(census_module, "PATIENCE", 0.05)
    with ExitStack() as stack:
        with pytest.raises(
            InvariantBroken, match=r"1 more processes than before: python.* its parent has ended"
        ):
            async with open_supervised([]):
                first = an_orphan(stack)
        async with open_supervised([]):
            pass
        with pytest.raises(InvariantBroken) as caught:
            async with open_supervised([]):
                second = an_orphan(stack)
    async with open_supervised([]):
        pass

    assert f"process {second}," in str(caught.value)
    assert f"process {first}," not in str(caught.value)


def test_tracking_restores_the_process() -> None:
    """Environment and asyncio are as before when the last block has ended."""
    make = asyncio.BaseEventLoop.__init__
    environ = dict(os.environ)
    with track_started():
        with track_started():
            pass
        assert set(os.environ) - set(environ) == {census_module._MARK}
        assert asyncio.BaseEventLoop.__init__ is not make

    assert dict(os.environ) == environ
    assert asyncio.BaseEventLoop.__init__ is make
