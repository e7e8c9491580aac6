"""Decide whether to wait before the next read, so that messages gather.

1. Each client then gets several messages in one write, and writes are most of the cost of a delivery: with
   100 clients, 2,000 messages a second on one topic cost a fifth.
2. Waiting pays only if it saves writes, that is if several messages of one channel are due within the pause.
   At lower rates each message is alone, and is delivered at once: 500 a second wait for nothing.
3. The pause is a multiple of the CPU time of the last delivery: a cheap delivery, as to few clients, is worth
   no wait, and an expensive one bounds the share of the pause in the latency.
4. No I/O and no clock here: both times are arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["GATHER_MAX", "Gathering"]

GATHER_FACTOR: Final = 10
"""The pause as a multiple of the CPU time of the last delivery."""
GATHER_MAX: Final = 0.004
"""Seconds of the longest pause."""
GATHER_LEAST: Final = 0.001
"""Seconds of the shortest pause; below there is none."""
GATHER_DUE: Final = 3.0
"""Messages of one channel that must be due within the longest pause. With fewer, most writes have one or two
messages with a pause or without it, and the pause costs more latency than it saves."""
WINDOW: Final = 4 * GATHER_MAX
"""Seconds over which the messages of each channel are counted."""


class Gathering:
    """The rate of the busiest channel, and the pause that follows from it."""

    __slots__ = ("_began", "_counts", "pays")

    def __init__(self) -> None:
        self._began = -float("inf")
        self._counts: dict[bytes, int] = {}
        self.pays = False
        """Whether several messages of one channel are due within the longest pause."""

    def count(self, batch: Sequence[tuple[bytes, bytes]], now: float) -> None:
        """Count a batch that was read at ``now``, in seconds of a monotonic clock."""
        elapsed = now - self._began
        counts = self._counts
        if elapsed >= WINDOW:
            self.pays = max(counts.values(), default=0) * GATHER_MAX / elapsed >= GATHER_DUE
            self._began = now
            counts.clear()
        for channel, _ in batch:
            counts[channel] = counts.get(channel, 0) + 1

    def pause(self, cost: float) -> float:
        """Return the seconds to wait after a delivery that took ``cost`` seconds of CPU."""
        pause = min(GATHER_FACTOR * cost, GATHER_MAX)
        return pause if pause >= GATHER_LEAST and self.pays else 0.0
