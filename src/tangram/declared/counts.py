"""Results and durations of the declared pushes of one plugin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from tangram.metrics.histogram import HANDLER_BOUNDS, Histogram, HistogramValues
from tangram.metrics.requests import OTHER

__all__ = ["MAX_SERIES", "PushCounts"]

MAX_SERIES: Final = 200
"""Histograms of one plugin at most: its author chooses the events, and each reload may bring others."""


class PushCounts:
    """The numbers of one plugin's pushes, over all of its incarnations."""

    def __init__(self) -> None:
        self.results: Counter[str] = Counter()
        """Answered pushes by result."""
        self._durations: dict[tuple[str, str], Histogram] = {}

    def durations_of(self, channel: str, event: str) -> Histogram:
        """Return the histogram of a handler's durations, in seconds.

        Args:
            channel: the template of the channel, such as ``flights:{area}``.
            event: the event of the push.
        """
        key = (channel, event)
        if key not in self._durations and len(self._durations) >= MAX_SERIES:
            key = (OTHER, OTHER)
        return self._durations.setdefault(key, Histogram(HANDLER_BOUNDS))

    def durations(self) -> Mapping[tuple[str, str], HistogramValues]:
        """Return the durations until now, by channel and event."""
        return {key: series.values() for key, series in self._durations.items()}
