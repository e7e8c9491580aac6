"""Decide whether a pause pays: a reader that wakes up less often finds more each time.

1. A wake-up of an idle process costs more than the work on a small message: the system call, a pass of the
   event loop, and caches that are cold. Several messages in one pass share that.
2. A pause pays only if several wake-ups are due within it. At lower rates each would come alone with a pause
   or without it, and the pause would be latency alone.
3. No I/O and no clock here: times are arguments.
"""

from __future__ import annotations

from typing import Final

__all__ = ["DUE", "WINDOW", "RatePause"]

DUE: Final = 3.0
"""Wake-ups that must be due within a pause."""
WINDOW: Final = 0.016
"""Seconds over which they are counted."""


class RatePause:
    """The rate of a reader's wake-ups, and whether a pause pays.

    Args:
        seconds: the length of a pause.
    """

    __slots__ = ("_began", "_count", "pays", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._began = -float("inf")
        self._count = 0
        self.pays = False
        """Whether several wake-ups are due within a pause."""

    def count(self, found: int, now: float) -> None:
        """Count what one wake-up found, at ``now`` in seconds of a monotonic clock.

        Args:
            found: the number of parts that would each have woken the reader if they had come alone.
            now: the time.
        """
        elapsed = now - self._began
        if elapsed >= WINDOW:
            self.pays = self._count * self.seconds / elapsed >= DUE
            self._began = now
            self._count = 0
        self._count += found
