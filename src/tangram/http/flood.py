"""The budget for control frames of one connection, of HTTP/2 or of a WebSocket; no I/O.

A control frame costs the sender almost nothing and the server some work: a reset stream starts and cancels an
application (CVE-2023-44487), and the others are parsed and answered. Ordinary clients send few of them, or
many in proportion to the data that they receive. A fragment of a few bytes counts as one, too.
"""

from __future__ import annotations

from typing import Final

__all__ = ["TINY", "ControlBudget"]

BURST: Final = 1000
"""Units at the start, and at most: a browser that leaves a page cancels up to 100 streams (400 units)."""

RATE: Final = 100.0
"""Units a second: 25 cancelled requests, or 100 other frames, without receiving any data."""

RESET_COST: Final = 4
"""Units of a reset stream, whose request has been started."""

DATA_CREDIT: Final = 4
"""Units for each frame of data that was sent: a client may answer it with two WINDOW_UPDATE frames."""


TINY: Final = 16
"""Bytes of a WebSocket fragment that counts as a control frame: no client has a reason to send such ones.

The last fragment of a message does not count: some clients end each message with an empty one.
"""


class ControlBudget:
    """A token bucket, which frames of data refill too.

    Args:
        now: The present time in seconds.
    """

    def __init__(self, now: float) -> None:
        self._level = float(BURST)
        self._at = now

    def spend(self, cost: int, now: float) -> bool:
        """Take ``cost`` units, and return whether they were there."""
        self._level = min(BURST, self._level + (now - self._at) * RATE) - cost
        self._at = now
        return self._level >= 0

    def earn(self) -> None:
        """Add the units for one frame of data that was sent."""
        self._level += DATA_CREDIT
