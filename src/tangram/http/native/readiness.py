"""One task that waits for many sockets, and handles the bytes of each in place.

1. A task for each socket would cost a switch, an entry of Trio's and a system call for each read. Here the
   sockets stay registered with an ``epoll`` of their own, on which one task waits. It calls the ``step`` of
   each socket that has bytes, in the same pass.
2. A step never waits. Its result ends ``serve`` in the socket's own task, which goes on from there: with the
   end of the connection, or with work that needs turns. An error of a step is raised there, too.
3. At high rates of small reads the task pauses, so that the bytes of several clients arrive meanwhile. One
   pass of the event loop, and one write to Redis, then serve all of them. There is no pause after a pass that
   took half as long: while it ran, more bytes have arrived.
4. Without ``epoll`` (on other systems than Linux) each task waits for its own socket.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import trio

from tangram.pauses import RatePause

__all__ = ["PAUSE", "Readiness"]

T = TypeVar("T")

PAUSE: Final = 0.001
"""Seconds of a pause: the shortest that an epoll can wait."""
MAX_READY: Final = 256
"""Sockets that are handled in one pass; the others have their turn in the next one."""

_wait_readable = trio.lowlevel.wait_readable


class _Waiter:
    """A task in ``serve``."""

    __slots__ = ("error", "result", "step", "task")

    def __init__(self, task: trio.lowlevel.Task, step: Callable[[], Any]) -> None:
        self.task = task
        self.step = step
        self.result: Any = None
        self.error: Exception | None = None


class Readiness:
    """The sockets of many connections, and the one task that waits for them.

    Args:
        spawn: starts ``run`` at the first ``serve``, in a nursery that outlives all calls of ``serve``.
    """

    def __init__(self, spawn: Callable[[Callable[[], Any]], None]) -> None:
        self._spawn = spawn
        self._waiters: dict[int, _Waiter] = {}
        self._epoll: Any = None
        self._pause = RatePause(PAUSE)

    async def serve(self, sock: socket.socket, step: Callable[[], T | None]) -> T:
        """Call ``step`` whenever the socket has bytes or has ended, until it returns a result.

        Args:
            sock: a non-blocking socket. Call ``forget`` before it is closed.
            step: reads from the socket. It must not block.

        Raises:
            ClosedResourceError: the socket was closed meanwhile.
            Exception: an error of ``step``.
        """
        if sys.platform != "linux":
            return await _serve_alone(sock, step)
        if self._epoll is None:
            self._epoll = select.epoll()
            self._spawn(self.run)
        fd = sock.fileno()
        if fd < 0:
            raise trio.ClosedResourceError
        self._epoll.register(fd, select.EPOLLIN)
        waiter = self._waiters[fd] = _Waiter(trio.lowlevel.current_task(), step)

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

    async def run(self) -> None:
        """Handle the bytes of all sockets until cancelled."""
        epoll = self._epoll
        try:
            while True:
                await _wait_readable(epoll.fileno())
                began = trio.current_time()
                ready = epoll.poll(0, MAX_READY)
                for fd, _ in ready:
                    self._handle(fd)
                now = trio.current_time()
                self._pause.count(len(ready), now)
                if self._pause.pays and now - began < PAUSE / 2:
                    await trio.sleep(PAUSE)
        finally:
            self._epoll = None
            epoll.close()

    def _handle(self, fd: int) -> None:
        """Call the step of a socket, and wake its task if there is a result."""
        waiter = self._waiters.get(fd)
        if waiter is None:
            return  # another step of this pass has closed it
        try:
            result = waiter.step()
        except Exception as error:  # noqa: BLE001 - raised in the task of the connection
            if self._waiters.get(fd) is waiter:
                self._wake(fd, error=error)
            return
        # The step may have closed its own socket.
        if result is not None and self._waiters.get(fd) is waiter:
            self._wake(fd, result)

    def _wake(self, fd: int, result: object = None, error: Exception | None = None) -> None:
        waiter = self._remove(fd)
        waiter.result, waiter.error = result, error
        trio.lowlevel.reschedule(waiter.task)

    def _remove(self, fd: int) -> _Waiter:
        if self._epoll is not None:
            # A closed socket has left it already.
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(fd)
        return self._waiters.pop(fd)


async def _serve_alone(sock: socket.socket, step: Callable[[], T | None]) -> T:
    """Do the same as ``serve`` in the socket's own task."""
    while True:
        await _wait_readable(sock)
        result = step()
        if result is not None:
            return result
