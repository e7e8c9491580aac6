"""Services of existing plugins start together, in order."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from tangram.app.start_gate import TOGETHER_SECONDS, StartGate


async def wait(gate: StartGate, name: str, began: list[str]) -> None:
    begun = trio.Event()
    await gate.wait_turn(begun)
    began.append(name)
    begun.set()


async def test_services_wait_for_the_last_plugin_and_start_in_order(autojump_clock: MockClock) -> None:
    """In the order in which they came to the gate."""
    gate, began = StartGate("abc"), list[str]()
    async with trio.open_nursery() as nursery:
        for name in ("a1", "a2", "b1", "b2"):
            nursery.start_soon(wait, gate, name, began)
            await trio.testing.wait_all_tasks_blocked()
        gate.arrive("a")
        gate.arrive("b")
        await trio.testing.wait_all_tasks_blocked()
        assert began == []
        assert gate.is_last("c")
        assert not gate.is_last("a")
        gate.arrive("c")

    assert began == ["a1", "a2", "b1", "b2"]
    assert trio.current_time() < TOGETHER_SECONDS


async def test_a_plugin_that_restarts_alone_waits_for_no_other(autojump_clock: MockClock) -> None:
    """The others are there already."""
    gate, began = StartGate("ab"), list[str]()
    gate.arrive("a")
    gate.arrive("b")
    gate.leave("a")
    assert gate.is_last("a")
    gate.arrive("a")
    await wait(gate, "a", began)

    assert trio.current_time() < TOGETHER_SECONDS


async def test_a_plugin_that_does_not_start_is_not_waited_for(autojump_clock: MockClock) -> None:
    """One in quarantine not at all, one that is slow for a second."""
    gate, began = StartGate("abc"), list[str]()
    gate.arrive("a")
    gate.give_up("b")
    start = trio.current_time()
    await wait(gate, "a", began)
    assert TOGETHER_SECONDS <= trio.current_time() - start < TOGETHER_SECONDS + 0.5
    gate.give_up("c")
    start = trio.current_time()
    await wait(gate, "a", began)
    assert trio.current_time() - start < TOGETHER_SECONDS
