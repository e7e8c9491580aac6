"""Reads while Trio has no runnable task.

These tests run on the system's clock, because the reader waits in the place of Trio. Each test ends by an
event, and its deadline only ends a failure.
"""

from __future__ import annotations

import ast
import contextvars
import select
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio

from tangram import idle, readiness
from tangram.idle import IdleClock, IdleReader, find_epoll
from tangram.readiness import Readiness, current_readiness, share_readiness
from tests.idle_runs import Pair, open_pairs, run_idle

PATIENCE: Final = 20.0
"""Seconds after which a test fails."""
FAR: Final = 3600.0
MAX_STEPS: Final = 200_000
"""Steps that take hundreds of milliseconds, where microseconds are due."""
DESCRIPTORS: Final = Path("/proc/self/fd")
SOURCES: Final = Path(idle.__file__).parent
DEADLINES_SET: Final = {
    "broker/external.py": "in the task of the scope",
    "broker/process.py": "in a task",
    "cluster/placement.py": "moved to a later time; the earlier one is seen, and then the later one",
    "gateway/recovery.py": "the first join of a group starts its task; the later ones have later deadlines",
    "gateway/websocket.py": "behind Hypercorn, and of seconds",
    "history/recording.py": "moved to a later time, or to the past, which wakes the task",
    "http/hypercorn/applications.py": "behind Hypercorn, and of seconds",
    "plugins/host.py": "in the task of the scope",
    "primary/locator.py": "in a task",
    "web/node_reads.py": "in the task of the scope",
    "workers/process.py": "in a task",
}
"""Modules that assign to the deadline of a scope, and the reason why no function of the reader makes it one
earlier that Trio must see within ``idle.LONGEST``."""


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    with open_pairs(3) as made:
        yield made


def run(test: Callable[[Readiness], Awaitable[None]]) -> None:
    """Run a test with a shared reader that is at work."""

    async def reading(shared: Readiness, _nursery: trio.Nursery) -> None:
        await start_reading(shared)
        await test(shared)

    run_idle(reading)


async def start_reading(shared: Readiness) -> None:
    """Return once the clock has a reader."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, IdleClock)
    ours, other = socket.socketpair()
    ours.setblocking(False)
    with ours, other:
        other.send(b"x")
        assert await shared.serve(ours, lambda: ours.recv(1)) == b"x"
    assert clock.reader is not None


class AlwaysReady:
    """The step of a socket whose bytes are never read; it fails if nothing else happens for long."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise AssertionError(f"trio had no turn in {self.steps} steps")


class Passes(trio.abc.Instrument):
    """Counts the passes of Trio."""

    def __init__(self) -> None:
        self.count = 0

    def after_io_wait(self, timeout: float) -> None:
        self.count += timeout >= 0


def test_reads_need_no_pass_of_trio(pairs: list[Pair]) -> None:
    """A hundred messages go from step to step in order, and no task runs between them."""
    got: list[int] = []
    passes = Passes()

    def step(own: socket.socket, other: socket.socket) -> str | None:
        got.append(own.recv(1)[0])
        if len(got) == 100:
            return "done"
        other.send(bytes([got[-1] + 1]))
        return None

    async def test(shared: Readiness) -> None:
        (first, to_first), (second, to_second), _ = pairs
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shared.serve, first, partial(step, first, to_second))
            await trio.lowlevel.checkpoint()
            trio.lowlevel.add_instrument(passes)
            to_first.send(b"\0")
            assert await shared.serve(second, partial(step, second, to_first)) == "done"
            nursery.cancel_scope.cancel()

    run(test)

    assert got == list(range(100))
    assert passes.count < 50


def test_a_task_that_a_step_wakes_runs_before_further_waits(
    pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader returns to Trio, although another socket has bytes all the time."""
    monkeypatch.setattr(idle, "LONGEST", FAR)
    (ours, theirs), (busy, to_busy), _ = pairs
    to_busy.send(b"never read")
    woken = trio.Event()

    def step() -> str | None:
        if ours.recv(1) == b"1":
            woken.set()
            return None
        return "read by the woken task's order"

    async def write() -> None:
        await woken.wait()
        theirs.send(b"2")

    async def test(shared: Readiness) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            nursery.start_soon(partial(shared.serve, busy, AlwaysReady(), gathers=False))
            theirs.send(b"1")
            assert await shared.serve(ours, step) == "read by the woken task's order"
            nursery.cancel_scope.cancel()

    run(test)


def test_a_socket_of_trio_ends_the_wait(pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that waits through Trio wakes up, also by the bytes that a step sent."""
    monkeypatch.setattr(idle, "LONGEST", FAR)
    (ours, theirs), (trios, to_trio), (busy, to_busy) = pairs
    to_busy.send(b"never read")

    def step() -> None:
        to_trio.send(ours.recv(1))

    async def test(shared: Readiness) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shared.serve, ours, step)
            nursery.start_soon(partial(shared.serve, busy, AlwaysReady(), gathers=False))
            await trio.lowlevel.checkpoint()
            for _ in range(3):
                theirs.send(b"x")
                await trio.lowlevel.wait_readable(trios)
                assert trios.recv(10) == b"x"
            nursery.cancel_scope.cancel()

    run(test)


def test_threads_and_deadlines_end_the_wait(pairs: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of threads arrive, and sleeping tasks wake up."""
    monkeypatch.setattr(idle, "LONGEST", FAR)
    (ours, _), *_ = pairs

    async def test(shared: Readiness) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shared.serve, ours, lambda: None)
            await trio.lowlevel.checkpoint()
            assert await trio.to_thread.run_sync(lambda: "from a thread") == "from a thread"
            await trio.sleep(0.001)
            nursery.cancel_scope.cancel()

    run(test)


def test_a_deadline_that_a_step_sets_is_obeyed(pairs: list[Pair]) -> None:
    """No task is woken by it, so the reader returns to Trio from time to time."""
    (ours, theirs), *_ = pairs
    scope = trio.CancelScope()

    def step() -> None:
        ours.recv(1)
        scope.deadline = trio.current_time()

    async def test(shared: Readiness) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shared.serve, ours, step)
            await trio.lowlevel.checkpoint()
            theirs.send(b"x")
            with scope:
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()

    run(test)

    assert scope.cancelled_caught


def sets_a_deadline(node: ast.AST) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else ()
    found = [one.value for one in targets if isinstance(one, ast.Attribute) and one.attr == "deadline"]
    return any(not isinstance(owner, ast.Name) or owner.id != "self" for owner in found)


def test_every_deadline_that_is_set_from_outside_is_known() -> None:
    """Trio may see one late that a function of the reader sets, unless that also wakes a task."""
    setting = {
        path.relative_to(SOURCES).as_posix()
        for path in SOURCES.rglob("*.py")
        if ".deadline = " in (text := path.read_text())
        and any(map(sets_a_deadline, ast.walk(ast.parse(text))))
    }

    assert {one for one in setting if not one.startswith("testing/")} == set(DEADLINES_SET)


def test_sockets_that_are_always_ready_keep_no_task_waiting(pairs: list[Pair]) -> None:
    """The reader looks at the time after each pass over the sockets."""
    (ours, theirs), *_ = pairs
    theirs.send(b"never read")

    async def test(shared: Readiness) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(shared.serve, ours, AlwaysReady(), gathers=False))
            await trio.sleep(0.001)
            nursery.cancel_scope.cancel()

    run(test)


def test_busy_tasks_keep_no_socket_waiting(pairs: list[Pair]) -> None:
    """While tasks are runnable, Trio never asks for the time: the reader looks once in each pass."""
    (ours, theirs), *_ = pairs

    async def test(shared: Readiness) -> None:
        read: list[bytes] = []

        async def serve() -> None:
            read.append(await shared.serve(ours, lambda: ours.recv(1)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            theirs.send(b"x")
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            assert read == [b"x"]

    run(test)


def test_a_cancelled_task_leaves_its_bytes_to_the_next_one(pairs: list[Pair]) -> None:
    """After a cancellation no step is called, until the socket is served again."""
    (ours, theirs), *_ = pairs

    async def test(shared: Readiness) -> None:
        read: list[bytes] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shared.serve, ours, lambda: read.append(ours.recv(9)))
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        theirs.send(b"left")
        await trio.sleep(0.001)
        assert not read

        assert await shared.serve(ours, lambda: ours.recv(9)) == b"left"

    run(test)


def test_steps_run_in_the_context_of_the_reader(pairs: list[Pair]) -> None:
    """Log lines and started tasks of a step inherit it."""
    (ours, theirs), *_ = pairs
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="no context")

    async def main() -> None:
        with trio.fail_after(PATIENCE):
            variable.set("the context of the reader")
            async with trio.open_nursery() as nursery:
                shared = Readiness(nursery.start_soon)
                await start_reading(shared)
                theirs.send(b"x")
                found = await shared.serve(ours, lambda: ours.recv(1) and variable.get())
                nursery.cancel_scope.cancel()
        assert found == "the context of the reader"

    trio.run(main, clock=IdleClock())


def test_a_second_reader_waits_in_a_task(pairs: list[Pair]) -> None:
    """The clock has one reader; another object of the same run serves its sockets as well."""
    (ours, theirs), *_ = pairs

    async def test(_: Readiness) -> None:
        async with trio.open_nursery() as nursery:
            other = Readiness(nursery.start_soon)
            theirs.send(b"x")
            assert await other.serve(ours, lambda: ours.recv(1)) == b"x"
            nursery.cancel_scope.cancel()

    run(test)


def test_a_run_whose_epoll_is_not_found_waits_in_a_task(
    pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sockets are served as on any other clock."""
    (ours, theirs), *_ = pairs

    async def find_none() -> int:
        await trio.lowlevel.checkpoint()
        return -1

    monkeypatch.setattr(readiness, "find_epoll", find_none)

    async def main() -> None:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                shared = Readiness(nursery.start_soon)
                theirs.send(b"x")
                assert await shared.serve(ours, lambda: ours.recv(1)) == b"x"
                clock = trio.lowlevel.current_clock()
                assert isinstance(clock, IdleClock)
                assert clock.reader is None
                nursery.cancel_scope.cancel()

    trio.run(main, clock=IdleClock())


class Reader:
    """An ``IdleReader`` over one socket, whose handler is the test's."""

    def __init__(self, ours: socket.socket, handle: Callable[[], float]) -> None:
        self.clock = IdleClock()
        self.epoll = select.epoll()
        self.epoll.register(ours, select.EPOLLIN)
        self._handle = handle

    async def run(self) -> None:
        reader = IdleReader(self.clock, self.epoll, await find_epoll(), lambda _: self._handle())
        try:
            await reader.run()
        finally:
            self.epoll.close()


def test_an_error_of_the_reader_is_raised_in_its_task(pairs: list[Pair]) -> None:
    """Trio gets its time back, and neither an instrument nor a descriptor is left."""
    (ours, theirs), *_ = pairs
    theirs.send(b"x")
    before = len(list(DESCRIPTORS.iterdir()))

    def fail() -> float:
        raise ValueError("a fault of the reader")

    reader = Reader(ours, fail)

    async def main() -> None:
        with trio.fail_after(PATIENCE):
            with pytest.raises(ValueError, match="a fault of the reader"):
                await reader.run()
            assert reader.clock.reader is None
            await trio.sleep(0.001)

    trio.run(main, clock=reader.clock)

    assert len(list(DESCRIPTORS.iterdir())) == before


def test_tasks_run_on_in_a_pause_and_reads_follow_it(pairs: list[Pair]) -> None:
    """During a pause no socket is handled; its end is no event of Trio."""
    (ours, theirs), *_ = pairs
    theirs.send(b"never read")
    pauses = [FAR, 0.001, 0.0]
    handled: list[int] = []
    again = trio.Event()

    def handle() -> float:
        handled.append(len(handled))
        if len(handled) == 3:
            again.set()
        return pauses[min(len(handled), 3) - 1]

    reader = Reader(ours, handle)

    async def main() -> None:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader.run)
                while not handled:
                    await trio.lowlevel.checkpoint()
                await trio.sleep(0.001)
                await trio.to_thread.run_sync(lambda: None)
                assert handled == [0]
                nursery.cancel_scope.cancel()

    trio.run(main, clock=reader.clock)

    second = Reader(ours, handle)

    async def go_on() -> None:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(second.run)
                await again.wait()
                nursery.cancel_scope.cancel()

    trio.run(go_on, clock=second.clock)
    assert handled[:3] == [0, 1, 2]


def test_a_run_on_another_clock_shares_nothing() -> None:
    """Each part has its own way of waiting, as in tests with a virtual clock."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            share_readiness(nursery.start_soon)
            assert current_readiness() is None

    trio.run(main)
