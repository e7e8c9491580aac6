"""One task that reads from many sockets."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from tangram.pauses import DUE, WINDOW
from tangram.readiness import FIRST_EVERY, PAUSE, Readiness, _serve_alone
from tests.idle_runs import Pair, open_pairs


@pytest.fixture
def still_clock() -> trio.testing.MockClock:
    """Return a clock that only the test moves."""
    return trio.testing.MockClock()


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    with open_pairs(3) as made:
        yield made


@pytest.fixture
async def readiness(nursery: trio.Nursery) -> Readiness:
    return Readiness(nursery.start_soon)


class Reads:
    """The steps of some sockets, with the tasks in which they ran."""

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.tasks: set[object] = set()

    def of(self, sock: socket.socket) -> Callable[[], str | None]:
        def step() -> str | None:
            self.tasks.add(trio.lowlevel.current_task())
            data = sock.recv(100)
            self.data.append(data)
            if data == b"crash":
                raise ValueError("a step failed")
            return None if data not in {b"", b"end"} else f"ended by {data!r}"

        return step


@asynccontextmanager
async def open_reads(readiness: Readiness, sock: socket.socket) -> AsyncIterator[Reads]:
    """Serve a socket until the end of the block."""
    reads = Reads()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.serve, sock, reads.of(sock))
        await trio.testing.wait_all_tasks_blocked()
        yield reads
        nursery.cancel_scope.cancel()


async def test_one_task_reads_from_all_sockets(readiness: Readiness, pairs: list[Pair]) -> None:
    """Steps run in one task; the task of a socket wakes up for its result."""
    reads = Reads()
    ends: dict[int, str] = {}

    async def serve(number: int) -> None:
        ours, _ = pairs[number]
        ends[number] = await readiness.serve(ours, reads.of(ours))

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(serve, number)
        await trio.testing.wait_all_tasks_blocked()
        for turn in (b"first", b"second"):
            for _, theirs in pairs:
                theirs.send(turn)
            await trio.testing.wait_all_tasks_blocked()
        assert reads.data == [b"first"] * 3 + [b"second"] * 3
        assert not ends
        pairs[0][1].send(b"end")
        pairs[1][1].close()
        pairs[2][1].send(b"end")

    assert ends == {0: "ended by b'end'", 1: "ended by b''", 2: "ended by b'end'"}
    assert len(reads.tasks) == 1


async def test_an_error_of_a_step_ends_its_own_task_alone(readiness: Readiness, pairs: list[Pair]) -> None:
    """It is raised in the task of that socket, and the others are served on."""
    reads = Reads()
    outcomes: list[str] = []

    async def serve(ours: socket.socket) -> None:
        try:
            outcomes.append(await readiness.serve(ours, reads.of(ours)))
        except ValueError as error:
            outcomes.append(str(error))

    async with trio.open_nursery() as nursery:
        for ours, _ in pairs[:2]:
            nursery.start_soon(serve, ours)
        await trio.testing.wait_all_tasks_blocked()
        pairs[0][1].send(b"crash")
        await trio.testing.wait_all_tasks_blocked()
        pairs[1][1].send(b"end")

    assert outcomes == ["a step failed", "ended by b'end'"]


async def test_a_socket_that_is_closed_by_another_step_is_left_alone(
    readiness: Readiness, pairs: list[Pair]
) -> None:
    """Both have bytes in the same pass: the second one's task gets an error, and its step is not called."""
    closed: list[int] = []

    def close_other(number: int) -> Callable[[], str]:
        def step() -> str:
            closed.append(1 - number)
            readiness.forget(pairs[1 - number][0])
            pairs[1 - number][0].close()
            return "read"

        return step

    outcomes: list[str] = []

    async def serve(number: int) -> None:
        try:
            outcomes.append(await readiness.serve(pairs[number][0], close_other(number)))
        except trio.ClosedResourceError:
            outcomes.append("closed")

    async with trio.open_nursery() as nursery:
        for number in range(2):
            nursery.start_soon(serve, number)
        await trio.testing.wait_all_tasks_blocked()
        for _, theirs in pairs[:2]:
            theirs.send(b"x")

    assert sorted(outcomes) == ["closed", "read"]
    assert len(closed) == 1
    with pytest.raises(trio.ClosedResourceError):
        await readiness.serve(pairs[closed[0]][0], Reads().of(pairs[closed[0]][0]))


async def test_a_cancelled_task_leaves_its_bytes_to_the_next_one(
    readiness: Readiness, pairs: list[Pair]
) -> None:
    """After a cancellation nothing reads from the socket, until it is served again."""
    ours, theirs = pairs[0]
    async with open_reads(readiness, ours) as reads:
        pass
    theirs.send(b"end")
    await trio.testing.wait_all_tasks_blocked()
    assert not reads.data

    assert await readiness.serve(ours, reads.of(ours)) == "ended by b'end'"


async def test_reads_gather_at_a_high_rate(
    still_clock: trio.testing.MockClock, readiness: Readiness, pairs: list[Pair]
) -> None:
    """The bytes of several clients wait for one pass, for the length of a pause at most."""
    ours, theirs = pairs[0]
    async with open_reads(readiness, ours) as reads:
        for _ in range(int(DUE * WINDOW / PAUSE) + 1):
            theirs.send(b"x")
            await trio.testing.wait_all_tasks_blocked()
        still_clock.jump(WINDOW)
        theirs.send(b"this pass begins the pause")
        await trio.testing.wait_all_tasks_blocked()
        before = len(reads.data)
        theirs.send(b"late")
        await trio.testing.wait_all_tasks_blocked()
        assert len(reads.data) == before
        still_clock.jump(PAUSE)
        await trio.testing.wait_all_tasks_blocked()

    assert reads.data[-2:] == [b"this pass begins the pause", b"late"]


async def test_the_task_of_a_socket_can_wait_alone(pairs: list[Pair]) -> None:
    """Without epoll the same steps run in the socket's own task."""
    ours, theirs = pairs[0]
    reads = Reads()
    result: list[Any] = []

    async def serve() -> None:
        result.append(await _serve_alone(ours, reads.of(ours)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        for data in (b"first", b"end"):
            theirs.send(data)
            await trio.testing.wait_all_tasks_blocked()

    assert (reads.data, result) == ([b"first", b"end"], ["ended by b'end'"])


async def test_sockets_of_redis_come_first_in_a_crowd(readiness: Readiness, nursery: trio.Nursery) -> None:
    """They are looked at every few steps, also for bytes that arrive during the pass."""
    order: list[str] = []

    def read(sock: socket.socket, name: str) -> Callable[[], None]:
        def step() -> None:
            sock.recv(100)
            order.append(name)
            if len(order) == FIRST_EVERY + 2:
                redis[1].send(b"x")  # while clients are read from

        return step

    with open_pairs(3 * FIRST_EVERY + 1) as made:
        *clients, redis = made
        for ours, _ in clients:
            nursery.start_soon(readiness.serve, ours, read(ours, "client"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(partial(readiness.serve, redis[0], read(redis[0], "redis"), gathers=False))
        await trio.testing.wait_all_tasks_blocked()
        for _, theirs in made:
            theirs.send(b"x")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    clients_first = ["client"] * FIRST_EVERY
    assert order == ["redis", *clients_first, *clients_first, "redis", *clients_first]


async def test_a_socket_of_redis_is_forgotten_with_its_task(readiness: Readiness, pairs: list[Pair]) -> None:
    """The same socket may be served again, and a crowd finds no trace of the first time."""
    ours, theirs = pairs[0]
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(readiness.serve, ours, lambda: ours.recv(9), gathers=False))
            await trio.testing.wait_all_tasks_blocked()
            theirs.send(b"x")
