"""Faults of the event loop."""

from __future__ import annotations

import time
from typing import Final

import trio

from tangram.supervision import WatchdogStatistics
from tangram.testing.faults.catalogue.base import Chaos, fault

__all__ = ["loop_blocked"]

BLOCK_MARGIN: Final = 0.2
"""Seconds past ``[supervisor] stall_after`` for which the loop is blocked, so that the watchdog sees it."""

LOOK_SECONDS: Final = 30.0
"""Seconds for the watchdog to record the stall and its end: a bound that ends a hang."""

LOOK_EVERY: Final = 0.01
"""Seconds between two polls of the watchdog, whose thread has no event for the loop."""


@fault(on="real")
async def loop_blocked(chaos: Chaos) -> None:
    """The event loop is blocked: nothing crashes, the watchdog reports where it stood."""
    watchdog = chaos.tangram.server.watchdog
    assert watchdog is not None
    before = watchdog.statistics().stalls
    _block(chaos.tangram.server.config.supervisor.stall_after + BLOCK_MARGIN)
    with trio.move_on_after(LOOK_SECONDS):
        while not _is_over(watchdog.statistics(), before):  # noqa: ASYNC110 - a thread looks
            await trio.sleep(LOOK_EVERY)
    seen = watchdog.statistics()
    assert seen.stalls > before, "the watchdog did not see that the loop was blocked"
    stack = " ".join(seen.last[-1].stack)
    assert _block.__name__ in stack, f"the watchdog does not report where the loop stood: {stack}"


def _is_over(seen: WatchdogStatistics, before: int) -> bool:
    """Return whether a stall was seen beside the earlier ones, and the end of the last one."""
    return seen.stalls > before and seen.last[-1].seconds is not None


def _block(seconds: float) -> None:
    time.sleep(seconds)
