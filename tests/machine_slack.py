"""Measure the machine's scheduling delay, which tests of real time add to a bound.

The server promises a bound in seconds, but the machine decides when the server gets a processor. Two delays
are measured:

1. A thread that asks to be woken every few milliseconds measures how late a machine wakes that stands still
   as a whole. A test adds it once for each wake-up of its scenario.
2. Linux counts the time for which a process was ready and had no processor, because other programs had all.
   A test adds what the server under test has waited so: it was slow in nothing.

On a quiet machine both are close to zero.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

__all__ = ["Lateness", "open_lateness", "waited_for_processor"]

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
    waited: float = 0.0
    """Seconds for which this process and those under test were ready and waited for a processor."""

    @property
    def allowed(self) -> float:
        """Return the seconds to add to a bound."""
        return WAKES * self.longest + self.waited


def waited_for_processor(pid: int) -> float:
    """Return the seconds for which the main thread of a process has waited for a processor so far.

    An ended process, or a kernel that does not count it, counts as none.
    """
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


@contextmanager
def open_lateness(*pids: int) -> Iterator[Lateness]:
    """Measure until the end of the block, with the waits of this process and of those under test."""
    seen, over = Lateness(), threading.Event()
    before = {pid: waited_for_processor(pid) for pid in (os.getpid(), *pids)}

    def look() -> None:
        most = dict(before)
        due = time.monotonic() + EVERY
        while not over.wait(EVERY):
            now = time.monotonic()
            seen.longest = max(seen.longest, now - due)
            seen.total += max(0.0, now - due)
            for pid, count in most.items():  # an ended process keeps its last count
                most[pid] = max(count, waited_for_processor(pid))
            seen.waited = sum(most.values()) - sum(before.values())
            due = time.monotonic() + EVERY

    thread = threading.Thread(target=look, name="lateness", daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
