"""The end of a process that does not end.

Trio cannot end a task that shields itself, and no one can end a thread. When a stop has passed its bound, a
thread (armed by ``serve`` alone, so that nothing like it ever runs inside a program that embeds tangram)
tells who stands where, ends the broker, and calls ``os._exit``: a supervisor of processes, or a person at a
terminal, gets the end that was asked for.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

import structlog
import trio

from tangram.cli.streams import complain

__all__ = ["LastResort"]

MARGIN = 0.5
"""Seconds past ``[supervisor] shutdown_timeout``: supervision promises that a stop takes a second more at
most, and the telling, the broker and the exit of the process take their part of it."""

LAST_WORDS = 1.0
"""Seconds for the telling. Longer it takes only where standard error takes nothing: a pipe that is full, and
whose reader stands still."""

EX_SOFTWARE = 70

log = structlog.get_logger("tangram.cli")


class LastResort:
    """A thread that is armed when a stop begins, and ends the process where the stop does not end in time."""

    def __init__(self, *, exit_process: Callable[[int], object] = os._exit) -> None:
        self._exit = exit_process
        self._broker: int | None = None
        self._root: trio.lowlevel.Task | None = None
        self._due: float | None = None
        self._orders: queue.SimpleQueue[tuple[float, int] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def watch(self) -> None:
        """Start the thread, which then waits to be armed. A signal handler could not start it: the code that
        it interrupts may hold the very locks that a start of a thread needs.
        """
        self._thread = threading.Thread(target=self._wait, name="tangram-last-resort", daemon=True)
        self._thread.start()

    def watch_broker(self, pid: int | None) -> None:
        """Remember the process id of the embedded broker, to end it too."""
        self._broker = pid

    def arm(self, seconds: float, *, asked_for: bool) -> None:
        """End the process ``seconds`` plus a margin from now: status 0 if the stop was asked for, else 70.
        The first call counts.

        Called from Trio, whose tasks it remembers, to tell where they stand, or from a signal handler in the
        middle of whatever Trio runs: the queue is one that may be put to there.
        """
        if self._due is not None:
            return
        self._due = time.monotonic() + seconds + MARGIN
        self._root = trio.lowlevel.current_root_task()
        self._orders.put((self._due, 0 if asked_for else EX_SOFTWARE))

    def disarm(self) -> None:
        """The stop came to its end: nothing is left to do."""
        if self._thread is not None:
            self._orders.put(None)
            self._thread.join(timeout=1.0)  # it has only to hear of it

    def leave(self, status: int) -> None:
        """The server has ended, and Python waits for every thread that is no daemon: end the process with
        ``status`` once the stop's bound has passed, although a thread that a plugin left behind goes on.
        """
        kept = [
            thread
            for thread in threading.enumerate()
            if not thread.daemon and thread is not threading.main_thread()
        ]
        if not kept:
            return
        seconds = MARGIN if self._due is None else max(0.0, self._due - time.monotonic())
        where = {thread.name: _stands(thread) for thread in kept}
        log.warning("threads that nobody ended keep the process", threads=where, seconds=round(seconds, 1))
        self._root = self._broker = None
        self._orders.put((time.monotonic() + seconds, status))
        self.watch()

    def _wait(self) -> None:
        order = self._orders.get()
        while order is not None:
            due, status = order
            try:
                seconds = min(max(0.0, due - time.monotonic()), threading.TIMEOUT_MAX)
                # A second order is of a signal that came between the two halves of `arm`.
                order = self._orders.get(timeout=seconds) and order
            except queue.Empty:
                self._end(status)
                return

    def _end(self, status: int) -> None:
        telling = threading.Thread(target=self._tell, name="tangram-last-words", daemon=True)
        try:
            telling.start()
            telling.join(LAST_WORDS)
        finally:
            if self._broker is not None:
                _kill(self._broker)
            self._exit(status)

    def _tell(self) -> None:
        tasks = "\n".join(_where(self._root)) if self._root is not None else ""
        complain(f"the stop has passed its bound; what still runs:\n{tasks}\n{_stacks()}")


def _where(task: trio.lowlevel.Task) -> Iterator[str]:
    """Each task that waits for no child of its own, with the lines it stands on, innermost last."""
    children = [child for nursery in list(task.child_nurseries) for child in list(nursery.child_tasks)]
    for child in children:
        yield from _where(child)
    if not children:
        frames = [
            f"{f.f_code.co_filename}:{line} in {f.f_code.co_name}" for f, line in task.iter_await_frames()
        ]
        yield f"task {task.name}:\n  " + "\n  ".join(frames[-6:])


def _stands(thread: threading.Thread) -> str:
    """The lines on which a thread stands, innermost first: that one is a library's as often as not."""
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - the documented way to see other threads
    lines = traceback.extract_stack(frame)[-3:] if frame is not None else []
    return " < ".join(f"{one.filename}:{one.lineno} in {one.name}" for one in reversed(lines))


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _stacks() -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - the documented way to see other threads
        if ident != threading.get_ident():
            parts.append(f"thread {names.get(ident, ident)!r}:\n{''.join(traceback.format_stack(frame))}")
    return "\n".join(parts)
