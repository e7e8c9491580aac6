"""How late this machine is: what a test of real time may add to a bound that is the server's alone.

A bound in seconds is promised by the server; when it gets a processor is the machine's. A thread that asks to
be woken every few milliseconds sees how long somebody who is due has to wait, and a test adds that as often
as its story needs somebody to be woken. On a quiet machine that is nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

__all__ = ["Lateness", "open_lateness"]

EVERY = 0.005
"""Seconds between two looks."""

WAKES = 4
"""How often somebody is woken in the story of a stop: for the signal, for the bound, for the process' end as
its parent sees it, and for the test's own look at the clock."""


@attrs.define
class Lateness:
    """What was seen so far."""

    longest: float = 0.0
    """Seconds that a thread which was due had to wait, at most."""

    @property
    def allowed(self) -> float:
        """Seconds to add to a bound."""
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
            due = now + EVERY

    thread = threading.Thread(target=look, name="lateness", daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
