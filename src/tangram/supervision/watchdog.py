"""A thread that detects a blocked event loop, and names the plugin whose code blocks it.

A task on the loop notes the time at short intervals; a thread checks the age of the note. When it is older
than ``stall_after`` the thread reads the loop's stack and finds the innermost frame that has an owner: the
plugin that blocks the loop.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import attrs
import structlog
import trio

from tangram import defaults
from tangram.supervision.records import thread_frames
from tangram.ticks import TICK, next_tick

__all__ = ["Stall", "Watchdog", "WatchdogStatistics"]

log = structlog.get_logger("tangram.supervision")

BEATS: Final = 4
"""Notes in each ``stall_after``: times are exact to a fourth of it. By default they are at the ticks at which
other tasks wake up, too: wake-ups of their own were a quarter of the cost of an idle server."""

EARLY: Final = 0.02
"""The share of ``stall_after`` by which a stall is reported early, so that its owner is known in time."""


@attrs.frozen
class Stall:
    """One period in which the event loop was blocked."""

    at: float
    """Seconds since the epoch at which it was detected."""
    owner: str | None
    """The plugin whose code blocked it, if known."""
    stack: tuple[str, ...]
    """The last frames of the loop's stack, innermost last."""
    seconds: float | None = None
    """The length of the period; None while it lasts."""


@attrs.frozen
class WatchdogStatistics:
    """The stalls that a watchdog has detected."""

    stalls: int
    """The number of stalls longer than ``stall_after``."""
    longest: float
    """Seconds of the longest stall that is over."""
    last: tuple[Stall, ...]
    """The last stalls, oldest first."""


class Watchdog:
    """Watches the event loop on which `run` runs.

    Args:
        stall_after: seconds after which a blocked loop is reported.
        owner_of: returns the owner of a source file, a plugin's name, or None.
        monotonic: the clock, in seconds.
    """

    def __init__(
        self,
        stall_after: float = defaults.STALL_AFTER,
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
        """Return the stalls so far."""
        return WatchdogStatistics(stalls=self._stalls, longest=self._longest, last=tuple(self._last))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled."""
        self._loop = threading.get_ident()
        self._beat = self._monotonic()
        self._stop = stop = threading.Event()
        # A daemon: it holds no resource, and must not keep the process from ending.
        thread = threading.Thread(target=self._watch, args=(stop,), name="tangram watchdog", daemon=True)
        thread.start()
        task_status.started()
        try:
            while True:
                await trio.sleep_until(self._next_beat())
                self.beat()
        finally:
            stop.set()

    def _next_beat(self) -> float:
        now, pause = trio.current_time(), self.stall_after / BEATS
        return next_tick(now, pause) if pause >= TICK else now + pause

    def beat(self) -> None:
        """Note the time on the loop, and record the length of a stall that is over."""
        now = self._monotonic()
        standing, since = self._standing, self._beat
        self._beat = now
        if standing is None:
            return
        self._standing = None
        seconds = now - since
        self._longest = max(self._longest, seconds)
        self._last[-1] = attrs.evolve(standing, seconds=seconds)
        log.warning("event loop unblocked", blocked_for=round(seconds, 3), owner=standing.owner)

    def look(self) -> float:
        """Check the note's age once, in the thread, and report a new stall.

        Returns:
            Seconds until the next check.
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
        log.error("event loop blocked", owner=owner, seconds=round(since, 3), frames=list(stall.stack))
