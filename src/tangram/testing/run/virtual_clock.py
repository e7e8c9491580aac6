"""Two things that a virtual clock cannot see, track_started in real time from beside a server under test.

1. Who takes its cancellation for nothing and goes on at once: the loop never idles, a clock that jumps never
   jumps, and no stop time ever passes. Such a task is named, and ended by an exception that it does not
   expect.
2. Threads: while one works for a task of the loop, a clock that jumps would let every timeout pass at once.
   Whose limiter they have is all the same; but those of synchronous services live as long as these.

Both need what Trio tells nobody. This is the place for it, beside `release`.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import trio
from trio.testing import MockClock, active_thread_count

from tangram.supervision import CURRENT_CHILD_TASK
from tangram.supervision.threads import service_threads
from tangram.testing.checks.census import UNDER_TEST
from tangram.testing.run.force_stop import line_of

__all__ = ["SpunTooLong", "SwallowedCancelWatch", "watch_swallowed_cancels"]

SPIN_SECONDS = 20.0
"""Real seconds for which a loop may go on without any passing on its virtual clock. The busiest test of the
kit needs one on a slow machine.
"""

THREAD_SECONDS = 20.0
"""Real seconds for which a clock that jumps waits for a thread while nobody else does anything: it may be one
that waits for the loop, and time is what it waits for.
"""

COUNTED = 2_000
"""Steps after which the busiest task is the one that spins: everybody else waits for it."""

LOOK_EVERY = 256
"""Steps between two looks at the real clock."""


class SpunTooLong(BaseException):
    """Raised in a task that does not end by its cancellation. No error of the task's own: it is not caught
    by ``except Exception``.
    """


class SwallowedCancelWatch(trio.abc.Instrument):
    """Watches the loop; see the module."""

    def __init__(self, mark: object) -> None:
        self.ended: list[str] = []
        """Who was ended, and where it stood."""
        self.due = math.inf
        """On the real clock: from then on nobody who is under test has anything to do any more."""
        self.hopeless: set[trio.lowlevel.Task] = set()
        """Who is ended at its next step, for it goes on after each cancellation."""
        self._mark = mark
        self._clock = trio.lowlevel.current_clock()
        self._threshold: float | None = None
        self._steps = 0
        self._now = -math.inf
        self._since = time.monotonic()
        self._busy: Counter[trio.lowlevel.Task] | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._steps += 1
        if self._steps % LOOK_EVERY == 0:
            self._look()
        if task in self.hopeless:
            self._end(task)
        elif self._busy is not None and task.context.get(UNDER_TEST) is self._mark:
            self._busy[task] += 1
            if self._busy[task] >= COUNTED:
                self._end(task)

    def after_task_step(self, _task: trio.lowlevel.Task) -> None:
        """Hold a clock that jumps while threads work for the loop."""
        clock = self._clock
        if not isinstance(clock, MockClock):
            return
        works = active_thread_count() > service_threads()
        if works and self._threshold is None and clock.autojump_threshold < THREAD_SECONDS:
            self._threshold, clock.autojump_threshold = clock.autojump_threshold, THREAD_SECONDS
        elif not works:
            self.let_go()

    def let_go(self) -> None:
        """Give the clock back, if it is held."""
        if isinstance(self._clock, MockClock) and self._threshold is not None:
            self._clock.autojump_threshold, self._threshold = self._threshold, None

    def _look(self) -> None:
        """Begin to count where the loop has gone on for too long."""
        real, virtual = time.monotonic(), self._clock.current_time()
        if not isinstance(self._clock, MockClock) or virtual != self._now:
            self._now, self._since = virtual, real
        if real < self.due and real - self._since < SPIN_SECONDS:
            self._busy = None
        elif self._busy is None:
            self._busy = Counter()

    def _end(self, task: trio.lowlevel.Task) -> None:
        life = task.context.get(CURRENT_CHILD_TASK)
        who = task.name if life is None else life.child
        self.ended.append(f"{who}, at {line_of(task) or 'no line'}, which takes its cancellation for nothing")
        # What a task is sent next is Trio's own; there is no other way into one that never gives up.
        task._next_send_fn, task._next_send = task.coro.throw, SpunTooLong(who)  # noqa: SLF001
        self._busy, self._since = None, time.monotonic()


@contextmanager
def watch_swallowed_cancels(mark: object) -> Iterator[SwallowedCancelWatch]:
    """Watch the tasks that carry ``mark`` for the block."""
    patience = SwallowedCancelWatch(mark)
    trio.lowlevel.add_instrument(patience)
    try:
        yield patience
    finally:
        trio.lowlevel.remove_instrument(patience)
        patience.let_go()  # a thread of somebody else's may work on, and nobody would do it afterwards
