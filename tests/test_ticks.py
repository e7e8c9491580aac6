"""The times at which periodic tasks wake up."""

from __future__ import annotations

import pytest

from tangram.ticks import TICK, next_tick


@pytest.mark.parametrize("period", [0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("begin", [0.0, 0.06, 0.124, 123456.7, 0.249])
def test_a_period_ends_at_the_nearest_tick(begin: float, period: float) -> None:
    """The first wake-up is moved by half a tick at most, and the following ones are a period apart."""
    first = next_tick(begin, period)
    second = next_tick(first + 0.0004, period)

    assert abs(first - begin - period) <= TICK / 2
    assert first / TICK == round(first / TICK)
    assert second - first == period


def test_tasks_of_different_periods_wake_up_together() -> None:
    """In ten seconds tasks with three periods need no more wake-ups than the shortest one alone."""
    times: set[float] = set()
    for begin, period in ((0.03, 0.25), (0.11, 0.5), (0.2, 1.0)):
        now = begin
        while now < 10:
            now = next_tick(now + 0.0003, period)
            times.add(now)

    assert len(times) <= 10 / TICK + 1


def test_a_tick_is_never_in_the_past() -> None:
    """A task that asks for less than a tick does not spin."""
    assert next_tick(1.0, 0.01) == 1.25
