from __future__ import annotations

import threading
import time

import pytest
import structlog.testing
import trio
import trio.testing

from tangram.supervision import Watchdog


def test_stall_is_reported_once_with_its_owner() -> None:
    """A blocked loop is reported once with the owner of its code, and its length at the end."""
    now = 0.0
    watchdog = Watchdog(1.0, lambda name: "demo" if name == __file__ else None, monotonic=lambda: now)
    watchdog._loop = threading.get_ident()
    now = 0.9
    assert watchdog.look() == pytest.approx(0.08)  # a moment early, to be there in time
    assert watchdog.statistics().stalls == 0
    with structlog.testing.capture_logs() as lines:
        now = 1.0
        watchdog.look()
        now = 3.0
        watchdog.look()
        watchdog.beat()

    (stall,) = watchdog.statistics().last
    assert (stall.owner, stall.seconds) == ("demo", 3.0)
    assert any("test_stall_is_reported_once" in line for line in stall.stack)
    assert [line["event"] for line in lines] == ["event loop blocked", "event loop unblocked"]
    assert (watchdog.statistics().stalls, watchdog.statistics().longest) == (1, 3.0)


async def test_blocked_loop_is_seen_while_it_is_blocked() -> None:
    """The thread detects a real block before it is over."""
    watchdog = Watchdog(0.03)
    async with trio.open_nursery() as nursery:
        await nursery.start(watchdog.run)
        until = time.monotonic() + 60
        while not (seen := watchdog.statistics().stalls) and time.monotonic() < until:
            time.sleep(0.01)  # noqa: ASYNC251 - the very thing to be seen
        nursery.cancel_scope.cancel()

    assert seen == 1
    assert any("test_blocked_loop_is_seen" in line for line in watchdog.statistics().last[0].stack)


def test_an_infinite_stall_time_is_waited_for() -> None:
    """A thread waits no longer at a time than the system allows."""
    assert Watchdog(1e308).look() == threading.TIMEOUT_MAX


async def test_notes_are_taken_at_the_ticks_of_other_tasks(autojump_clock: trio.testing.MockClock) -> None:
    """A long stall time costs no wake-ups of its own; a short one has as many notes as it needs."""
    watchdog = Watchdog(1.0)
    times: list[float] = []
    watchdog.beat = lambda: times.append(trio.current_time())  # type: ignore[method-assign]
    for stall_after, due in ((1.0, [0.25, 0.5, 0.75, 1.0]), (0.4, [0.1, 0.2, 0.3, 0.4])):
        watchdog.stall_after = stall_after
        times.clear()
        begin = trio.current_time()
        async with trio.open_nursery() as nursery:
            await nursery.start(watchdog.run)
            await trio.sleep(stall_after + 0.01)
            nursery.cancel_scope.cancel()
        assert [at - begin for at in times] == pytest.approx(due)
        await trio.sleep_until(2.0)
