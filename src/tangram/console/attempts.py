"""The bound on wrong tokens, without I/O: five a minute from one address.

While an address is over the bound its requests with a token are refused unread, right ones too: otherwise
the bound would not slow down a search for the right one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

__all__ = ["MAX_ADDRESSES", "MAX_WRONG", "WINDOW", "Attempts"]

MAX_WRONG: Final = 5
"""Wrong tokens within `WINDOW` seconds: more than a person's typing errors."""

WINDOW: Final = 60.0
"""Seconds."""

MAX_ADDRESSES: Final = 4096
"""Addresses that are remembered; beyond it the one with the oldest attempt is forgotten."""


class Attempts:
    """Counts wrong tokens by address.

    Args:
        clock: returns seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._wrong: dict[str, list[float]] = {}

    def wait(self, address: str) -> float:
        """Return the seconds for which an address must wait before its next token; 0 for none."""
        times = self._recent(address)
        return 0.0 if len(times) < MAX_WRONG else times[0] + WINDOW - self._clock()

    def note_wrong(self, address: str) -> None:
        """Count a wrong token."""
        times = self._recent(address)
        # Moved to the end: the first one is the address whose last attempt is the oldest.
        self._wrong.pop(address, None)
        if len(self._wrong) >= MAX_ADDRESSES:
            del self._wrong[next(iter(self._wrong))]
        self._wrong[address] = [*times, self._clock()][-MAX_WRONG:]

    def _recent(self, address: str) -> list[float]:
        since = self._clock() - WINDOW
        return [at for at in self._wrong.get(address, ()) if at > since]
