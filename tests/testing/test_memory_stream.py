"""Connections in memory: they keep as much as a socket and end as one does."""

from __future__ import annotations

import pytest
import trio
from trio.testing import check_two_way_stream, wait_all_tasks_blocked

from tangram.testing.fakes.memory_stream import KEPT, PipeEnd, open_pipe


async def test_it_is_a_stream(autojump_clock: trio.testing.MockClock) -> None:
    """Trio's own checks of a stream hold for both ends."""

    async def make() -> tuple[PipeEnd, PipeEnd]:
        return open_pipe()

    async def make_full() -> tuple[PipeEnd, PipeEnd]:
        one, other = open_pipe()
        for end in (one, other):
            await end.send_all(bytes(KEPT))
        return one, other

    await check_two_way_stream(make, make_full)


async def test_who_writes_more_than_it_keeps_waits_for_the_reader() -> None:
    """What waits is bounded, and nothing is lost."""
    one, other = open_pipe()
    async with trio.open_nursery() as nursery, one, other:
        nursery.start_soon(one.send_all, bytes(KEPT + 10))
        await wait_all_tasks_blocked()
        waits = len(nursery.child_tasks)
        got = len(await other.receive_some(2 * KEPT)) + len(await other.receive_some(2 * KEPT))

    assert waits == 1
    assert got == KEPT + 10


async def test_what_was_sent_before_the_end_is_read() -> None:
    """An end that is closed was heard to the last byte; the other may not write to it."""
    closed: list[PipeEnd] = []
    one, other = open_pipe(closed.append)
    await one.send_all(b"last words")
    await one.aclose()
    await one.aclose()

    assert closed == [one]
    assert one.closed
    assert not other.closed
    assert await other.receive_some() == b"last words"
    assert await other.receive_some() == b""
    with pytest.raises(trio.BrokenResourceError):
        await other.send_all(b"x")
    await other.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await other.receive_some()


async def test_a_cut_is_heard_at_both_ends() -> None:
    """Neither is closed by it, and whoever waits is woken."""
    one, other = open_pipe()
    heard: list[bytes] = []

    async def read(end: PipeEnd) -> None:
        heard.append(await end.receive_some())

    async with trio.open_nursery() as nursery, one, other:
        nursery.start_soon(read, one)
        nursery.start_soon(read, other)
        await wait_all_tasks_blocked()
        one.cut()
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BrokenResourceError):
            await other.send_all(b"x")

        assert heard == [b"", b""]
        assert not one.closed
