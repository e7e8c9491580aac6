"""Connections in memory buffer as much as a socket and end like one."""

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


async def test_a_writer_waits_when_the_buffer_is_full() -> None:
    """The buffer is bounded, and no byte is lost."""
    one, other = open_pipe()
    async with trio.open_nursery() as nursery, one, other:
        nursery.start_soon(one.send_all, bytes(KEPT + 10))
        await wait_all_tasks_blocked()
        waits = len(nursery.child_tasks)
        got = len(await other.receive_some(2 * KEPT)) + len(await other.receive_some(2 * KEPT))

    assert waits == 1
    assert got == KEPT + 10


async def test_bytes_before_the_end_are_read() -> None:
    """A closed end is read to the last byte; writes to it fail."""
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


async def test_a_cut_ends_both_streams() -> None:
    """Neither end is closed by it, and waiting tasks wake up."""
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


async def test_a_look_and_a_write_at_once_do_not_wait() -> None:
    """They behave as those of a socket do: see ``PlainStream``."""
    one, other = open_pipe()
    nothing = other.receive_nowait()
    taken = one.send_nowait(bytes(KEPT + 10))
    full = one.send_nowait(b"x")
    got = b""
    while chunk := other.receive_nowait():
        got += chunk
    again = one.send_nowait(b"x")
    one.close()

    assert (nothing, taken, full, again) == (None, KEPT, 0, 1)
    assert got == bytes(KEPT)
    assert [other.receive_nowait(), other.receive_nowait()] == [b"x", b""]
    assert other.send_nowait(b"x") == 0
    with pytest.raises(trio.ClosedResourceError):
        one.receive_nowait()
    assert one.send_nowait(b"x") == 0
