"""Measure the machine's scheduling delay, which tests of real time add to a bound.

The server promises a bound in seconds, but the machine decides when the server gets a processor. A thread
that asks to be woken every few milliseconds measures that delay, and a test adds it once for each wake-up of
its scenario. On a quiet machine the delay is close to zero.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

__all__ = ["Lateness", "open_lateness"]

EVERY = 0.005
"""Seconds between two measurements."""

WAKES = 4
"""Wake-ups in a stop: signal, bound, the end of the process as its parent sees it, the test's clock."""


@attrs.define
class Lateness:
    """The delays measured so far."""

    longest: float = 0.0
    """The longest delay of a thread that was due, in seconds."""
    total: float = 0.0
    """The sum of all delays: the seconds in which a scenario of many wake-ups was due and did not run."""

    @property
    def allowed(self) -> float:
        """Return the seconds to add to a bound."""
        return WAKES * self.longest


@contextmanager
def open_lateness() -> Iterator[Lateness]:
    """Measure until the end of the block."""
    seen, over = Lateness(), threading.Event()

    def look() -> None:
        due = time.monotonic() + EVERY
        while not over.wait(EVERY):
            now = time.monotonic()
            seen.longest = max(seen.longest, now - due)
            seen.total += max(0.0, now - due)
            due = now + EVERY

    thread = threading.Thread(target=look, name="lateness", daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
