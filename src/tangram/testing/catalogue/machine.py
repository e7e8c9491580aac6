"""Faults of the loop and the machine."""

from __future__ import annotations

import time

import trio

from tangram.testing.catalogue.base import Chaos, fault

__all__ = ["loop_blocked"]

BLOCK_MARGIN = 0.2
"""Seconds past ``[supervisor] stall_after`` that a blocked loop stands, so that the watchdog sees it."""

LOOK_SECONDS = 0.3
"""Seconds for the watchdog to tell what it has seen."""


@fault(on="real")
async def loop_blocked(chaos: Chaos) -> None:
    """The event loop is blocked: nobody crashes, and the watchdog has seen it."""
    watchdog = chaos.tangram.server.watchdog
    assert watchdog is not None
    before = watchdog.statistics().stalls
    time.sleep(chaos.tangram.server.config.supervisor.stall_after + BLOCK_MARGIN)  # noqa: ASYNC251 - that is the fault
    await trio.sleep(LOOK_SECONDS)
    if watchdog.statistics().stalls == before:
        raise AssertionError("the watchdog did not see that the loop was blocked")
