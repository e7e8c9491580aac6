"""One place that waits for many sockets, and handles the bytes of each in place.

1. A task for each socket would cost a switch, an entry of Trio's and a system call for each read. Here the
   sockets stay registered with an ``epoll`` of their own. One pass over it calls the ``step`` of each socket
   that has bytes.
2. A step never waits. Its result ends ``serve`` in the socket's own task, which goes on from there: with the
   end of the connection, or with work that needs turns. An error of a step is raised there, too.
3. At high rates of small reads the passes pause, so that the bytes of several clients arrive meanwhile. One
   pass, and one write to Redis, then serve all of them. There is no pause after a pass that took half as
   long: while it ran, more bytes have arrived.
4. In a run of Trio on an ``IdleClock`` the passes happen between those of Trio (``tangram.idle``), and all
   parts share one object: see ``current_readiness``. Otherwise one task waits for the ``epoll``.
5. The sockets of Redis come first: a pass over many others looks at them every ``FIRST_EVERY`` steps. The
   messages of all clients arrive there, and would otherwise wait until every client of a crowd was read from.
6. Without ``epoll`` (on other systems than Linux) each task waits for its own socket.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import trio

from tangram.idle import MAX_READY, IdleClock, IdleReader, find_epoll
from tangram.pauses import RatePause

__all__ = ["FIRST_EVERY", "PAUSE", "Readiness", "current_readiness", "own_epolls", "share_readiness"]

T = TypeVar("T")

PAUSE: Final = 0.001
"""Seconds of a pause: the shortest that an epoll can wait."""
FIRST_EVERY: Final = 16
"""Steps after which sockets that come first are looked at: 16 joins take 0.7 ms, and the look 1 us."""

_wait_readable = trio.lowlevel.wait_readable
_own_epolls: Final[set[int]] = set()
_shared: Final = trio.lowlevel.RunVar["Readiness | None"]("tangram_readiness", None)


class _Waiter:
    """A task in ``serve``."""

    __slots__ = ("error", "gathers", "result", "step", "task")

    def __init__(self, task: trio.lowlevel.Task, step: Callable[[], Any], gathers: int) -> None:
        self.task = task
        self.step = step
        self.gathers = gathers
        self.result: Any = None
        self.error: Exception | None = None


class Readiness:
    """The sockets of many connections, and the one place that waits for them.

    Args:
        spawn: starts ``run`` at the first ``serve``, in a nursery that outlives all calls of ``serve``.
    """

    def __init__(self, spawn: Callable[[Callable[[], Any]], None]) -> None:
        self._spawn = spawn
        self._waiters: dict[int, _Waiter] = {}
        self._epoll: Any = None
        self._first: Any = None
        """The ``epoll`` of the sockets that come first, which are in the other one as well."""
        self._pause = RatePause(PAUSE)
        self._now: Callable[[], float] = trio.current_time
        self._last: list[Callable[[], None]] = []
        self.in_pass = False
        """Whether a pass calls steps now."""

    async def serve(self, sock: socket.socket, step: Callable[[], T | None], *, gathers: bool = True) -> T:
        """Call ``step`` whenever the socket has bytes or has ended, until it returns a result.

        Args:
            sock: a non-blocking socket. Call ``forget`` before it is closed.
            step: reads from the socket. It must not block.
            gathers: whether many reads of such sockets are a reason to pause. Those of others come first.

        Raises:
            ClosedResourceError: the socket was closed meanwhile.
            Exception: an error of ``step``.
        """
        if sys.platform != "linux":
            return await _serve_alone(sock, step)
        if self._epoll is None:
            self._epoll, self._first = select.epoll(), select.epoll()
            _own_epolls.update((self._epoll.fileno(), self._first.fileno()))
            self._spawn(self.run)
        fd = sock.fileno()
        if fd < 0:
            raise trio.ClosedResourceError
        self._epoll.register(fd, select.EPOLLIN)
        if not gathers:
            self._first.register(fd, select.EPOLLIN)
        waiter = self._waiters[fd] = _Waiter(trio.lowlevel.current_task(), step, int(gathers))

        def abort(_: Callable[[], Any]) -> trio.lowlevel.Abort:
            self._remove(fd)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if waiter.error is not None:
            raise waiter.error
        result: T = waiter.result
        return result

    def forget(self, sock: socket.socket) -> None:
        """Raise ``ClosedResourceError`` in the task that serves the socket, which is to be closed."""
        fd = sock.fileno()
        if fd in self._waiters:
            self._wake(fd, error=trio.ClosedResourceError())

    def at_end(self, call: Callable[[], None]) -> None:
        """Call a function once at the end of this pass; it must neither block nor raise."""
        self._last.append(call)

    async def run(self) -> None:
        """Handle the bytes of all sockets until cancelled."""
        epoll, first = self._epoll, self._first
        try:
            clock = trio.lowlevel.current_clock()
            self._now = clock.current_time
            if isinstance(clock, IdleClock) and clock.reader is None and (trios := await find_epoll()) >= 0:
                await IdleReader(clock, epoll, trios, self._handle_ready).run()
            else:
                await self._run_in_task(epoll)
        finally:
            self._epoll = None
            for one in (epoll, first):
                _own_epolls.discard(one.fileno())
                one.close()

    async def _run_in_task(self, epoll: Any) -> None:
        while True:
            await _wait_readable(epoll.fileno())
            if pause := self._handle_ready(epoll.poll(0, MAX_READY)):
                await trio.sleep(pause)

    def _handle_ready(self, ready: list[tuple[int, int]]) -> float:
        """Handle the bytes of ready sockets in one pass; return the seconds to pause after it."""
        pause = self._pause
        began = self._now()
        self.in_pass = True
        found = 0
        try:
            if len(ready) > FIRST_EVERY:
                found = self._handle_crowd(ready)
            else:
                for fd, _ in ready:
                    found += self._handle(fd)
        finally:
            self.in_pass = False
            if self._last:
                last, self._last = self._last, []
                for call in last:
                    call()
        if not found:
            return 0.0
        now = self._now()
        pause.count(found, now)
        return PAUSE if pause.pays and now - began < PAUSE / 2 else 0.0

    def _handle_crowd(self, ready: list[tuple[int, int]]) -> int:
        """Handle the bytes of many ready sockets, and again and again of those that come first."""
        found = 0
        for at in range(0, len(ready), FIRST_EVERY):
            for fd, _ in self._first.poll(0):
                self._handle(fd)
            for fd, _ in ready[at : at + FIRST_EVERY]:
                waiter = self._waiters.get(fd)
                if waiter is not None and waiter.gathers:
                    found += self._handle(fd)
        return found

    def _handle(self, fd: int) -> int:
        """Call the step of a socket, and wake its task for a result; return its ``gathers``."""
        waiter = self._waiters.get(fd)
        if waiter is None:
            return 0  # another step of this pass has closed it
        try:
            result = waiter.step()
        except Exception as error:  # noqa: BLE001 - raised in the task of the connection
            if self._waiters.get(fd) is waiter:
                self._wake(fd, error=error)
            return 0
        # The step may have closed its own socket.
        if result is not None and self._waiters.get(fd) is waiter:
            self._wake(fd, result)
        return waiter.gathers

    def _wake(self, fd: int, result: object = None, error: Exception | None = None) -> None:
        waiter = self._remove(fd)
        waiter.result, waiter.error = result, error
        trio.lowlevel.reschedule(waiter.task)

    def _remove(self, fd: int) -> _Waiter:
        if self._epoll is not None:
            # A closed socket has left it already.
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(fd)
                if not self._waiters[fd].gathers:
                    self._first.unregister(fd)
        return self._waiters.pop(fd)


def share_readiness(spawn: Callable[[Callable[[], Any]], None]) -> None:
    """Let all parts of a run of Trio on an ``IdleClock`` share one ``Readiness``.

    Args:
        spawn: starts its task, in a nursery that outlives all parts.
    """
    if isinstance(trio.lowlevel.current_clock(), IdleClock):
        _shared.set(Readiness(spawn))


def current_readiness() -> Readiness | None:
    """Return the object that all parts of this run share; None if each has its own."""
    return _shared.get()


def own_epolls() -> frozenset[int]:
    """Return the descriptors of all ``epoll`` instances of this module in this process."""
    return frozenset(_own_epolls)


async def _serve_alone(sock: socket.socket, step: Callable[[], T | None]) -> T:
    """Do the same as ``serve`` in the socket's own task."""
    while True:
        await _wait_readable(sock)
        result = step()
        if result is not None:
            return result
