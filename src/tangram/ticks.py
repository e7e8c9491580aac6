"""Times at which periodic tasks wake up together.

1. A wake-up of an idle process costs more than the checks of such a task: the system call, a pass of the
   event loop, and caches that are cold. Tasks of different periods that wake up at the same ticks share it.
2. The time moves by half a tick at most, in either direction. Deadlines of other parties are not moved: they
   are exact.
3. No I/O and no clock here: the time is an argument.
"""

from __future__ import annotations

from typing import Final

__all__ = ["TICK", "next_tick"]

TICK: Final = 0.25
"""Seconds between two ticks: the shortest period of the periodic tasks."""


def next_tick(now: float, period: float) -> float:
    """Return the tick nearest to ``now + period``, and never one that has passed.

    Args:
        now: the time, in seconds of a monotonic clock.
        period: seconds until the wake-up, at least ``TICK``.
    """
    tick = round((now + period) / TICK) * TICK
    return tick if tick > now else tick + TICK
