"""Faults of the event loop."""

from __future__ import annotations

import time
from typing import Final

import trio

from tangram.testing.faults.catalogue.base import Chaos, fault

__all__ = ["loop_blocked"]

BLOCK_MARGIN: Final = 0.2
"""Seconds past ``[supervisor] stall_after`` for which the loop is blocked, so that the watchdog sees it."""

LOOK_SECONDS: Final = 0.3
"""Seconds for the watchdog to log the stall."""


@fault(on="real")
async def loop_blocked(chaos: Chaos) -> None:
    """The event loop is blocked: nothing crashes, the watchdog reports where it stood."""
    watchdog = chaos.tangram.server.watchdog
    assert watchdog is not None
    before = watchdog.statistics().stalls
    _block(chaos.tangram.server.config.supervisor.stall_after + BLOCK_MARGIN)
    await trio.sleep(LOOK_SECONDS)
    seen = watchdog.statistics()
    assert seen.stalls > before, "the watchdog did not see that the loop was blocked"
    stack = " ".join(seen.last[-1].stack)
    assert _block.__name__ in stack, f"the watchdog does not report where the loop stood: {stack}"


def _block(seconds: float) -> None:
    time.sleep(seconds)
