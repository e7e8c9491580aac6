"""Watch two things that a virtual clock cannot see, in real time.

1. Tasks that swallow their cancellation and go on at once: the loop never idles, an autojump clock
never jumps, and no stop time ever passes. Such a task is named, and ended by an exception that it does
not expect.
2. Threads: while one works for a task of the loop, an autojump clock would let every timeout pass at
once. Threads of all limiters count, except those of synchronous services, which live as long as their
services.

Both need private parts of Trio. This module and `remove_shields` are the places that use them.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio
from trio.testing import MockClock, active_thread_count

from tangram.supervision import CURRENT_CHILD_TASK
from tangram.supervision.threads import service_threads
from tangram.testing.checks.census import UNDER_TEST
from tangram.testing.run.force_stop import line_of

__all__ = ["SpunTooLong", "SwallowedCancelWatch", "watch_swallowed_cancels"]

SPIN_SECONDS: Final = 20.0
"""Real seconds for which a loop may run without any passing on its virtual clock.

The busiest test of the kit needs one on a slow machine.
"""

THREAD_SECONDS: Final = 20.0
"""Real seconds for which an autojump clock waits for a thread while the loop is idle.

The thread may itself wait for the loop, and need time to pass.
"""

COUNTED: Final = 2_000
"""Steps after which the busiest task is taken for the spinning one: all others wait for it."""

LOOK_EVERY: Final = 256
"""Steps between two looks at the real clock."""


class SpunTooLong(BaseException):
    """Raised in a task that does not end by its cancellation.

    It is no ``Exception``, so that the task's own ``except Exception`` does not catch it.
    """


class SwallowedCancelWatch(trio.abc.Instrument):
    """A Trio instrument that ends spinning tasks and holds an autojump clock for threads."""

    def __init__(self, mark: object) -> None:
        self.ended: list[str] = []
        """Tasks that were ended, and where they stood."""
        self.due = math.inf
        """On the real clock: no task under test may run after it."""
        self.hopeless: set[trio.lowlevel.Task] = set()
        """Tasks to end at their next step, because they go on after each cancellation."""
        self._mark = mark
        clock = trio.lowlevel.current_clock()
        self._clock = clock
        self._mock = clock if isinstance(clock, MockClock) else None
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
        """Hold an autojump clock while threads work for the loop."""
        clock = self._mock
        if clock is None:
            return
        running = active_thread_count()
        works = running > 0 and running > service_threads()
        if works and self._threshold is None and clock.autojump_threshold < THREAD_SECONDS:
            self._threshold, clock.autojump_threshold = clock.autojump_threshold, THREAD_SECONDS
        elif not works and self._threshold is not None:
            self.let_go()

    def let_go(self) -> None:
        """Release the clock if it is held."""
        if self._mock is not None and self._threshold is not None:
            self._mock.autojump_threshold, self._threshold = self._threshold, None

    def _look(self) -> None:
        """Begin to count steps where the loop has run for too long."""
        real, virtual = time.monotonic(), self._clock.current_time()
        if self._mock is None or virtual != self._now:
            self._now, self._since = virtual, real
        if real < self.due and real - self._since < SPIN_SECONDS:
            self._busy = None
        elif self._busy is None:
            self._busy = Counter()

    def _end(self, task: trio.lowlevel.Task) -> None:
        life = task.context.get(CURRENT_CHILD_TASK)
        name = task.name if life is None else life.child
        self.ended.append(f"{name}, at {line_of(task) or 'no line'}, which swallows its cancellation")
        # The value that a task is resumed with is private to Trio; no public way leads into a task that
        # swallows every cancellation.
        task._next_send_fn, task._next_send = task.coro.throw, SpunTooLong(name)  # noqa: SLF001 - there is no public name
        self._busy, self._since = None, time.monotonic()


@contextmanager
def watch_swallowed_cancels(mark: object) -> Iterator[SwallowedCancelWatch]:
    """Watch the tasks that carry ``mark`` for the block."""
    watch = SwallowedCancelWatch(mark)
    trio.lowlevel.add_instrument(watch)
    try:
        yield watch
    finally:
        trio.lowlevel.remove_instrument(watch)
        watch.let_go()  # a thread of another server may still work, and would keep the clock held
