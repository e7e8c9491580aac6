"""The decision to pause, from the rate of a reader's wake-ups."""

from __future__ import annotations

import pytest

from tangram.pauses import DUE, WINDOW, RatePause

PAUSE = 0.001


def pays(rate: float) -> bool:
    """Return whether a pause pays after half a second with ``rate`` wake-ups a second."""
    pause = RatePause(PAUSE)
    for number in range(int(rate / 2)):
        pause.count(1, number / rate)
    return pause.pays


@pytest.mark.parametrize(("rate", "expected"), [(10, False), (1000, False), (2500, False), (3500, True)])
def test_a_pause_pays_if_several_wake_ups_are_due_within_it(rate: float, expected: bool) -> None:
    """At rates at which each message would be alone in its pause, there is none."""
    assert pays(rate) is expected


def test_a_wake_up_counts_all_that_it_found() -> None:
    """Few wake-ups that find much are a high rate: a pause does not end itself."""
    pause = RatePause(PAUSE)
    for number in range(20):
        pause.count(10, number * 2 * PAUSE)

    assert pause.pays


def test_a_pause_ends_with_the_rate() -> None:
    """The rate of the last window decides."""
    pause = RatePause(PAUSE)
    pause.count(int(DUE / PAUSE), 0.0)
    pause.count(1, WINDOW)
    assert pause.pays
    pause.count(1, 2 * WINDOW)

    assert not pause.pays


def test_wake_ups_at_one_moment_are_no_rate() -> None:
    """Time must pass before there is a rate: a burst at the start waits for nothing."""
    pause = RatePause(PAUSE)
    for _ in range(1000):
        pause.count(1, 5.0)

    assert not pause.pays
