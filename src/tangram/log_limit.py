"""One log line a minute for each kind of event and each source.

1. No I/O and no clock here: the caller passes the time, asks, and logs. A client must not fill the log.
2. The first event of a source is logged at once, so that the operator learns the address in time. Its later
   events are not logged for a minute.
3. An attacker may have many addresses. So each kind has ``PER_KIND`` lines a minute at most, whatever the
   number of its sources, and the memory for them is bounded, too.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

__all__ = ["INTERVAL", "PER_KIND", "LogLimit"]

INTERVAL: Final = 60.0
"""Seconds between two lines about the same kind and source: one a minute is enough to find a client."""

PER_KIND: Final = 20
"""Lines about one kind in that time."""


class LogLimit:
    """Decides which events are logged.

    Example:
        ``if limit.allows("flood", address, now): log.warning("connection closed", address=address)``

    Args:
        interval: seconds between two lines about the same kind and source.
        per_kind: lines about one kind in that time, from all sources together.
    """

    __slots__ = ("_interval", "_lines", "_logged", "_per_kind")

    def __init__(self, interval: float = INTERVAL, per_kind: int = PER_KIND) -> None:
        self._interval = interval
        self._per_kind = per_kind
        self._logged: dict[tuple[str, str], float] = {}
        """The times of the lines that still count, oldest first."""
        self._lines: Counter[str] = Counter()
        """How many of them each kind has."""

    def allows(self, kind: str, source: str, now: float) -> bool:
        """Return whether this event is to be logged, and count it as logged if so.

        Args:
            kind: what happened; a few fixed words.
            source: what caused it, for example a client's address.
            now: seconds of a clock that never goes back.
        """
        self._forget(now - self._interval)
        if (kind, source) in self._logged or self._lines[kind] >= self._per_kind:
            return False
        self._logged[kind, source] = now
        self._lines[kind] += 1
        return True

    def _forget(self, before: float) -> None:
        """Forget the lines that were logged at ``before`` or earlier."""
        while self._logged:
            oldest = next(iter(self._logged))
            if self._logged[oldest] > before:
                return
            del self._logged[oldest]
            self._lines[oldest[0]] -= 1
