"""The forced end of a process whose stop takes too long.

Trio cannot end a task that shields itself, and Python cannot end a thread. When a stop has passed its limit,
a thread reports where each task and thread is, kills the broker and calls ``os._exit``. Only the command
``serve`` starts that thread, so that it never ends a program that embeds tangram.
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
from typing import Final

import structlog
import trio

from tangram.cli.streams import complain

__all__ = ["ForceExit"]

MARGIN: Final = 0.5
"""Seconds after ``[supervisor] shutdown_timeout``. A stop may take one second more at most, and the report,
the broker and the exit of the process need a part of that second."""

REPORT_TIME: Final = 1.0
"""Seconds for the report. It takes longer only if standard error is a full pipe whose reader has stopped."""

EX_SOFTWARE: Final = 70

EX_INTERRUPTED: Final = 130
"""The exit status after a second SIGINT, as in a shell: 128 plus the signal's number."""

log = structlog.get_logger("tangram.cli")


class ForceExit:
    """A thread that ends the process if a stop takes too long.

    Args:
        exit_process: called with the exit status; tests replace it.
    """

    def __init__(self, *, exit_process: Callable[[int], object] = os._exit) -> None:
        self._exit = exit_process
        self._broker: int | None = None
        self._root: trio.lowlevel.Task | None = None
        self._due: float | None = None
        self._orders: queue.SimpleQueue[tuple[float, int] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def watch(self) -> None:
        """Start the thread, which then waits for `arm`.

        A signal handler could not start it, because the code that it interrupts may hold the locks that the
        start of a thread needs.
        """
        self._thread = threading.Thread(target=self._wait, name="tangram-force-exit", daemon=True)
        self._thread.start()

    def watch_broker(self, pid: int | None) -> None:
        """Remember the process id of the embedded broker, which is killed with the process."""
        self._broker = pid

    def arm(self, seconds: float, *, asked_for: bool) -> None:
        """End the process ``seconds`` plus `MARGIN` from now; only the first call counts.

        Call it from Trio, whose tasks the report names, or from a signal handler: the queue allows ``put`` in
        the middle of any code.

        Args:
            seconds: the time that the stop may take.
            asked_for: whether the stop was requested. The exit status is then 0, else 70.
        """
        if self._due is not None:
            return
        self._due = time.monotonic() + seconds + MARGIN
        self._root = trio.lowlevel.current_root_task()
        self._orders.put((self._due, 0 if asked_for else EX_SOFTWARE))

    def disarm(self) -> None:
        """Stop the thread, because the stop has ended in time."""
        if self._thread is not None:
            self._orders.put(None)
            self._thread.join(timeout=1.0)  # it only has to read the queue

    def leave(self, status: int) -> None:
        """End the process although a plugin has left a thread that still runs.

        Call it after the server has ended. Python waits for every thread that is no daemon; the process ends
        when the limit of the stop has passed.

        Args:
            status: the exit status.
        """
        kept = [
            thread
            for thread in threading.enumerate()
            if not thread.daemon and thread is not threading.main_thread()
        ]
        if not kept:
            return
        seconds = MARGIN if self._due is None else max(0.0, self._due - time.monotonic())
        where = {thread.name: _position_of(thread) for thread in kept}
        log.warning("threads keep the process from ending", threads=where, seconds=round(seconds, 1))
        self._root = self._broker = None
        self._orders.put((time.monotonic() + seconds, status))
        self.watch()

    def force(self) -> None:
        """End the process now, with status 130, although the stop has not passed its limit.

        Call it from a signal handler, after `arm`.
        """
        self._orders.put((time.monotonic(), EX_INTERRUPTED))

    def _wait(self) -> None:
        order = self._orders.get()
        while order is not None:
            due, status = order
            try:
                later = self._orders.get(timeout=min(max(0.0, due - time.monotonic()), threading.TIMEOUT_MAX))
            except queue.Empty:
                self._end(status)
                return
            # An order that is due later comes from a signal between the two halves of `arm`.
            order = later and min(order, later)

    def _end(self, status: int) -> None:
        reporter = threading.Thread(target=self._report, args=(status,), name="tangram-report", daemon=True)
        try:
            reporter.start()
            reporter.join(REPORT_TIME)
        finally:
            if self._broker is not None:
                _kill(self._broker)
            self._exit(status)

    def _report(self, status: int) -> None:
        tasks = "\n".join(_where(self._root)) if self._root is not None else ""
        forced = status == EX_INTERRUPTED
        why = "the stop was cut short by a second SIGINT" if forced else "the stop has passed its limit"
        complain(f"{why}; these tasks and threads still run:\n{tasks}\n{_stacks()}")


def _where(task: trio.lowlevel.Task) -> Iterator[str]:
    """Yield each task without child tasks, with the lines on which it waits, innermost last."""
    children = [child for nursery in list(task.child_nurseries) for child in list(nursery.child_tasks)]
    for child in children:
        yield from _where(child)
    if not children:
        frames = [
            f"{f.f_code.co_filename}:{line} in {f.f_code.co_name}" for f, line in task.iter_await_frames()
        ]
        yield f"task {task.name}:\n  " + "\n  ".join(frames[-6:])


def _position_of(thread: threading.Thread) -> str:
    """Return the lines on which a thread runs, innermost first.

    There are three, because the innermost one is often a library's.
    """
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
