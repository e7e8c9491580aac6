"""Read from sockets at the moments at which Trio has no runnable task.

1. A wake-up through Trio costs two system calls (each registration with its ``epoll`` counts once) and a pass
   of its scheduler more than the read itself. A server that sleeps between two messages pays this for each.
2. Trio asks its clock for the time until the next deadline when no task is runnable, and waits for so long.
   ``IdleClock`` gives this time to a reader, which waits for its own sockets and for Trio's ``epoll``. It
   returns as soon as a task is runnable, a socket of Trio's is ready, or the deadline has come.
3. While tasks are runnable, Trio does not ask. An instrument then lets the reader look once in each pass, so
   that busy tasks do not keep the sockets waiting.
4. The reader's functions run in the context of its task, but in no task: they must not block, and an error of
   the reader itself is raised in its task. It ends with that task: nothing is left behind.
5. Only public parts of Trio are used. Its ``epoll`` is found by the kernel's list of registrations; if it is
   not found, there is no reader, and one task waits in its place.
"""

from __future__ import annotations

import contextvars
import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import trio

__all__ = ["MAX_READY", "IdleClock", "IdleReader", "find_epoll"]

LONGEST: Final = 0.1
"""Seconds after which Trio has a pass at the latest once bytes were handled, because that may have set an
earlier deadline."""
NO_DEADLINE: Final = 3600.0
"""Seconds of the longest wait."""
MAX_READY: Final = 128
"""Sockets that are handled before the reader looks for runnable tasks: joins of so many take three
milliseconds to read."""

_FDS: Final = Path("/proc/self/fd")
_FDINFO: Final = Path("/proc/self/fdinfo")
_EPOLL: Final = "anon_inode:[eventpoll]"


class IdleClock(trio.abc.Clock):
    """The system's clock, which lets a reader use the time without runnable tasks."""

    current_time = staticmethod(time.perf_counter)
    """Return the time, in seconds of a monotonic clock. It is no function of Python: each message asks."""

    def __init__(self) -> None:
        self.reader: Callable[[float], None] | None = None
        """Waits until a deadline at the latest; set by ``IdleReader``."""

    def start_clock(self) -> None:
        """Do nothing: the system's clock runs already."""

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Return the seconds until a deadline: none if a reader has waited for it."""
        if self.reader is not None:
            self.reader(deadline)
            return 0.0
        return deadline - self.current_time()


class IdleReader(trio.abc.Instrument):
    """Waits for sockets in place of Trio.

    Args:
        clock: the clock of this run.
        epoll: the sockets.
        trios: the descriptor of Trio's own ``epoll``.
        handle: called with the ready sockets; returns the seconds to pause after them.
    """

    def __init__(
        self, clock: IdleClock, epoll: Any, trios: int, handle: Callable[[list[tuple[int, int]]], float]
    ) -> None:
        self._clock = clock
        self._now = clock.current_time
        self._epoll = epoll
        self._trios = trios
        self._handle = handle
        self._gate = select.epoll()
        """Trio's ``epoll`` alone: the reader waits for it in a pause."""
        self._context = contextvars.copy_context()
        self._failed = trio.Event()
        self._error: BaseException | None = None
        self._pause_until = 0.0
        self._woken = False
        self._looked = False

    async def run(self) -> None:
        """Let the clock and Trio call the reader until cancelled."""
        self._epoll.register(self._trios, select.EPOLLIN)
        self._gate.register(self._trios, select.EPOLLIN)
        trio.lowlevel.add_instrument(self)
        self._clock.reader = self.wait
        try:
            await self._failed.wait()
            assert self._error is not None
            raise self._error
        finally:
            self._clock.reader = None
            trio.lowlevel.remove_instrument(self)
            self._gate.close()

    # Called by Trio, in no task.

    def task_scheduled(self, _task: trio.lowlevel.Task) -> None:
        """Note that a task is runnable."""
        self._woken = True

    def before_io_wait(self, _timeout: float) -> None:
        """Look once for ready sockets while tasks are runnable."""
        if self._looked:
            self._looked = False
        else:
            self._call(self._look, 0.0)

    def wait(self, deadline: float) -> None:
        """Handle ready sockets until Trio has something to do."""
        self._looked = True
        self._call(self._wait, deadline)

    def _call(self, function: Callable[[float], None], deadline: float) -> None:
        try:
            self._context.run(function, deadline)
        except BaseException as error:  # noqa: BLE001 - raised in the task of the reader
            if self._error is None:
                self._error = error
                self._failed.set()

    def _look(self, _deadline: float) -> None:
        if self._now() >= self._pause_until:
            self._take(self._epoll.poll(0, MAX_READY))

    def _wait(self, deadline: float) -> None:
        now = self._now
        self._woken = False
        began = now()
        until = min(deadline, began + NO_DEADLINE)
        left = max(until - began, 0.0)
        handled = False
        while True:
            if self._pause_until:
                if self._gate.poll(max(min(self._pause_until, until) - now(), 0.0), 1):
                    return
                if now() < self._pause_until:
                    return
                self._pause_until = 0.0
                left = max(until - now(), 0.0)
            ready = self._epoll.poll(left, MAX_READY)
            if not ready or self._take(ready) or self._woken:
                return
            if not handled:
                handled = True
                until = min(until, now() + LONGEST)
            left = until - now()
            if left <= 0.0:
                return

    def _take(self, ready: list[tuple[int, int]]) -> bool:
        """Handle ready sockets; return whether Trio's own ones are among them."""
        trios = False
        if len(ready) == 1 and ready[0][0] == self._trios:
            return True
        for fd, _ in ready:
            trios = trios or fd == self._trios
        if ready and (pause := self._handle(ready)):
            self._pause_until = self._now() + pause
        return trios


async def find_epoll() -> int:
    """Return the descriptor of Trio's ``epoll``, or -1.

    It is the one that waits for a socket of our own.
    """
    ours, other = socket.socketpair()
    with ours, other:
        inode = os.fstat(ours.fileno()).st_ino
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, ours)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            found = _waiting_for(ours.fileno(), inode)
            nursery.cancel_scope.cancel()
    return found


def _waiting_for(descriptor: int, inode: int) -> int:
    """Return the ``epoll`` with which a socket is registered, or -1."""
    for path in sorted(_FDS.iterdir()):
        with suppress(OSError):
            if str(path.readlink()) == _EPOLL and _registers(int(path.name), descriptor, inode):
                return int(path.name)
    return -1


def _registers(epoll: int, descriptor: int, inode: int) -> bool:
    for line in (_FDINFO / str(epoll)).read_text(encoding="ascii").splitlines():
        words = line.split()
        if words[:2] == ["tfd:", str(descriptor)]:
            return any(int(word[4:], 16) == inode for word in words if word.startswith("ino:"))
    return False
