"""Histograms with fixed bounds: one observation costs two additions and a binary search."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

import attrs

__all__ = ["DELIVERY_BOUNDS", "HANDLER_BOUNDS", "HTTP_BOUNDS", "LOOP_BOUNDS", "Histogram", "HistogramValues"]

DELIVERY_BOUNDS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip
"""Seconds from the hand-over by Redis to the sockets. A quiet server takes some 0.0002."""

LOOP_BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Seconds by which the event loop is late."""

HTTP_BOUNDS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
"""Seconds of a request: OpenTelemetry's advice, and three bounds below, because small answers take 0.0003."""

HANDLER_BOUNDS: Final = (*DELIVERY_BOUNDS, 10.0)
"""Seconds of a handler of a declared channel: one that does not wait takes less than the first bound."""


@attrs.frozen
class HistogramValues:
    """The contents of a histogram at one moment."""

    bounds: tuple[float, ...]
    """The upper bounds of the buckets; a last bucket has none."""
    counts: tuple[int, ...]
    """Observations in each bucket, one bucket more than there are bounds."""
    total: float
    """The sum of all observations."""

    @property
    def count(self) -> int:
        """The number of observations."""
        return sum(self.counts)

    def since(self, earlier: HistogramValues) -> HistogramValues:
        """Return the observations that came after an earlier moment of the same histogram."""
        counts = tuple(now - then for now, then in zip(self.counts, earlier.counts, strict=True))
        return HistogramValues(self.bounds, counts, self.total - earlier.total)

    def quantile(self, share: float) -> float | None:
        """Return an estimate of a quantile, or None without observations.

        Values are taken to be spread evenly in their bucket. Beyond the last bound the estimate is that
        bound.

        Args:
            share: between 0 and 1; 0.99 asks for the value that 99 of 100 observations do not exceed.
        """
        wanted = share * self.count
        if not wanted:
            return None
        below, low = 0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and below + count >= wanted:
                return low + (bound - low) * (wanted - below) / count
            below, low = below + count, bound
        return low


class Histogram:
    """Counts observations by size.

    Args:
        bounds: the upper bounds of the buckets, ascending.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Count ``count`` observations of the same value."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.total += value * count

    def values(self) -> HistogramValues:
        """Return the contents of this moment."""
        return HistogramValues(self.bounds, tuple(self.counts), self.total)
