"""A supervisor that gets other limits while it runs."""

from __future__ import annotations

import pytest
import trio

from tangram.errors import NoSuchChild, SpecError
from tangram.supervision import Backoff, Child, Window
from tangram.testing import open_supervised

DEAF = {"nobody_is_stubborn": "a child that goes on is how the bound of the stop is seen"}


def test_a_resized_window_keeps_its_charges() -> None:
    """A larger window allows more, a smaller one is full, a faulty size changes nothing."""
    window = Window(1, 10)
    assert window.charge(0)
    window.resize(2, 100)
    assert window.charge(50)
    window.resize(0, 100)
    assert not window.charge(51)
    with pytest.raises(SpecError, match=r"-1 in 1"):
        window.resize(-1, 1)
    assert repr(window) == "Window(0, 100)"


async def test_new_limits_hold_from_now_on(autojump_clock: object) -> None:
    """New limits of starts, back-off and stops hold for each of them that begins afterwards."""
    crash = trio.Event()
    slow = 1.0

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep(slow)
        task_status.started()
        await crash.wait()
        raise ValueError("crashed")

    async def deaf() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(20)

    children = [Child("a", run, start_timeout=2), Child("deaf", deaf, stop_timeout=100)]
    async with open_supervised(
        children, strategy="one_for_one", restarts=9, shutdown_timeout=100, but=DEAF
    ) as supervised:
        supervisor = supervised.supervisor
        supervisor.adjust({"a": (30, 5)}, backoff=Backoff(initial=7, maximum=7, jitter=0), shutdown_timeout=3)
        slow = 10.0
        for _ in range(2):
            mark = len(supervised.events)
            crash.set()
            crash = trio.Event()
            while not any(event.kind == "started" for event in supervised.events[mark:]):  # noqa: ASYNC110 - there is no event to wait for
                await trio.sleep(0.5)
        delays = [event.delay for event in supervised.events if event.kind == "restarting"]
        began = trio.current_time()
    named = next(event for event in supervised.events if event.kind == "stubborn")

    assert delays == [0, 7]
    assert named.at - began == pytest.approx(3, abs=0.1)


async def test_faulty_limits_change_nothing(autojump_clock: object) -> None:
    """A time of 0, or an unknown child, is reported, and every limit stays."""
    async with open_supervised([Child("a", trio.sleep_forever)]) as supervised:
        supervisor = supervised.supervisor
        for times, limit, error in (
            ({"a": (0, 1)}, 1.0, SpecError),
            ({"b": (1, 1)}, 1.0, NoSuchChild),
            ({"a": (1, 1)}, 0.0, SpecError),
        ):
            with pytest.raises(error):
                supervisor.adjust(times, backoff=Backoff(), shutdown_timeout=limit)
        decider = supervisor._decider

        assert (decider.shutdown_timeout, decider.entries["a"].spec.stop_timeout) == (10.0, 5.0)
