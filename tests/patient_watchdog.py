"""A watchdog that does not report the stalls of a machine.

A machine that stands still for a second blocks every event loop. The server logs it as an error, which is one
record too many wherever a test counts records.
"""

from __future__ import annotations

from typing import ClassVar

from tangram import defaults
from tangram.supervision import Watchdog
from tangram.supervision.records import thread_frames

__all__ = ["PatientWatchdog"]

FAULT = "loop_blocked"
"""The function of the kit that blocks a loop on purpose."""


class PatientWatchdog(Watchdog):
    """Reports a stall in the code of a plugin or of a fault; every one where a test sets the bound."""

    of_tests: ClassVar = True

    def _report(self, since: float) -> None:
        frames = thread_frames(self._loop)
        is_meant = any(self._owner_of(name) is not None or line.endswith(FAULT) for name, line in frames)
        if is_meant or self.stall_after != defaults.STALL_AFTER:
            super()._report(since)
