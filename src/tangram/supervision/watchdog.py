"""A thread that sees the event loop blocked, and names the code that blocks it.

A task notes the time on the loop; a thread looks whether the note is fresh. When it is older than
``stall_after`` the thread reads the loop's stack and finds the innermost frame that has an owner: the
plugin that is to blame.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import attrs
import structlog
import trio

from tangram.supervision.records import thread_frames

__all__ = ["Stall", "Watchdog", "WatchdogStatistics"]

log = structlog.get_logger("tangram.supervision")

BEATS = 5
"""Notes in the time of one stall: often enough to be exact to a fifth of it, seldom enough to cost
nothing.
"""

EARLY = 0.02
"""Share of ``stall_after`` by which a stall is told early: a loop that is blocked so long will be for the
rest, and its name is to be there when the time is over.
"""


@attrs.frozen
class Stall:
    """One time in which the loop stood."""

    at: float
    """Seconds since the epoch, when it was seen."""
    owner: str | None
    """Whose code it stood in."""
    stack: tuple[str, ...]
    """The last frames, innermost last."""
    seconds: float | None = None
    """How long it stood; None while it stands."""


@attrs.frozen
class WatchdogStatistics:
    """What the watchdog saw."""

    stalls: int
    """How often the loop stood longer than ``stall_after``."""
    longest: float
    """Seconds, of those that are over."""
    last: tuple[Stall, ...]
    """The last of them, oldest first."""


class Watchdog:
    """Watches the loop that `run` runs on."""

    def __init__(
        self,
        stall_after: float = 1.0,
        owner_of: Callable[[str], str | None] = lambda _filename: None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stall_after = stall_after
        self._owner_of = owner_of
        self._monotonic = monotonic
        self._beat = monotonic()
        self._loop: int | None = None
        self._stop = threading.Event()
        self._standing: Stall | None = None
        self._stalls = 0
        self._longest = 0.0
        self._last: deque[Stall] = deque(maxlen=10)

    def statistics(self) -> WatchdogStatistics:
        """What was seen so far."""
        return WatchdogStatistics(stalls=self._stalls, longest=self._longest, last=tuple(self._last))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled."""
        self._loop = threading.get_ident()
        self._beat = self._monotonic()
        self._stop = stop = threading.Event()
        # A daemon: it holds nothing, and must not keep a process that ends.
        thread = threading.Thread(target=self._watch, args=(stop,), name="tangram watchdog", daemon=True)
        thread.start()
        task_status.started()
        try:
            while True:
                await trio.sleep(self.stall_after / BEATS)
                self.beat()
        finally:
            stop.set()

    def beat(self) -> None:
        """The loop is alive: note it, and close the account of a stall that is over."""
        now = self._monotonic()
        standing, since = self._standing, self._beat
        self._beat = now
        if standing is None:
            return
        self._standing = None
        seconds = now - since
        self._longest = max(self._longest, seconds)
        self._last[-1] = attrs.evolve(standing, seconds=seconds)
        log.warning("the event loop goes on", blocked_for=round(seconds, 3), owner=standing.owner)

    def look(self) -> float:
        """One look from the thread: reports a stall that is new; returns the seconds until the next look
        is due.
        """
        since = self._monotonic() - self._beat
        due = self.stall_after * (1.0 - EARLY)
        if since < due:
            return min(due - since, threading.TIMEOUT_MAX)
        if self._standing is None and self._loop is not None:
            self._report(since)
        return self.stall_after / BEATS

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(self.look()):
            pass

    def _report(self, since: float) -> None:
        frames = thread_frames(self._loop)
        owner = next((found for name, _ in frames if (found := self._owner_of(name)) is not None), None)
        stall = Stall(at=time.time(), owner=owner, stack=tuple(line for _, line in frames[:12][::-1]))
        self._stalls += 1
        self._last.append(stall)
        self._standing = stall
        log.error("the event loop is blocked", owner=owner, seconds=round(since, 3), frames=list(stall.stack))
