"""Turns for long work: one client in each pass of the event loop."""

from __future__ import annotations

import trio
import trio.testing

from tangram.turns import REPORT_AFTER, REPORT_WINDOW, ClientTurns, Turns


class Passes(trio.abc.Instrument):
    """Counts the passes of the loop."""

    def __init__(self) -> None:
        self.number = 0

    def after_io_wait(self, timeout: float) -> None:
        self.number += 1


async def test_one_client_gets_a_turn_in_each_pass() -> None:
    """However many clients wait, no two turns are in the same pass, and all clients advance equally."""
    passes, turns, taken = Passes(), Turns(), list[tuple[int, int]]()
    trio.lowlevel.add_instrument(passes)

    async def work(client: ClientTurns, number: int) -> None:
        for _ in range(5):
            await client.wait()
            taken.append((passes.number, number))

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(work, turns.client(str), number)
    trio.lowlevel.remove_instrument(passes)

    assert len({at for at, _ in taken}) == len(taken) == 50
    assert all(sorted(one for _, one in taken[at : at + 10]) == list(range(10)) for at in range(0, 50, 10))


async def test_other_tasks_run_between_two_turns() -> None:
    """A client alone does not hold the loop either: each turn takes a pass."""
    client, ran = Turns().client(str), list[str]()

    async def other() -> None:
        for _ in range(3):
            ran.append("other")
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(3):
            await client.wait()
            ran.append("turn")

    assert sorted(ran[:4]) == ["other", "other", "turn", "turn"]


async def test_an_address_that_takes_many_turns_is_reported(autojump_clock: trio.testing.MockClock) -> None:
    """Many turns of all its clients within some seconds are reported once; as many over minutes are not."""
    reported: list[str] = []
    turns = Turns(reported.append)
    slow = turns.client(lambda: "slow")
    for _ in range(REPORT_AFTER + 1):
        await turns.client(lambda: "fast").wait()
    for _ in range(REPORT_AFTER * 2):
        await slow.wait()
        await trio.sleep(2 * REPORT_WINDOW / REPORT_AFTER)

    assert reported == ["fast"]


async def test_a_cancelled_wait_blocks_no_other_client() -> None:
    """A client that goes while it waits gives its turn to the next one."""
    turns = Turns()
    gone, other = turns.client(str), turns.client(str)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gone.wait)
        nursery.start_soon(other.wait)
        await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    with trio.fail_after(30):
        await other.wait()
