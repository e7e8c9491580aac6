"""The asyncio loop of an island, which runs callbacks as asyncio's own loop does.

It is trio-asyncio's loop with three differences.

1. All callbacks that are ready run in one turn, and other Trio tasks run between two turns. trio-asyncio
   passes each callback through a memory channel, which costs a turn of Trio's scheduler for each.
2. Timers go into the heap when they are made. Cancelled ones are removed once they are half of it.
3. `IslandLoop.start_task` runs a task to its first wait at once, in the Trio task that calls it. No other
   callback runs at that moment, because callbacks never wait: the step is as good as one of the loop's own.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

import trio
from trio_asyncio import TrioEventLoop
from trio_asyncio import _base as trio_asyncio_base
from trio_asyncio._loop import current_loop

__all__ = ["IslandLoop"]

MIN_CANCELLED: Final = 100
"""Cancelled timers that may stay in the heap whatever its size; as in asyncio."""

_sniffio: Final = trio_asyncio_base.sniffio_library
_AsyncHandle: Final = trio_asyncio_base.AsyncHandle


class IslandLoop(TrioEventLoop):  # type: ignore[misc]  # upstream ships no types
    """An asyncio loop on top of Trio. Made of an open loop of trio-asyncio, by `adopt`."""

    _turn: deque[Any]
    """Callbacks that are ready."""
    _waiting: trio.lowlevel.Task | None
    """The task of the loop, while it waits for callbacks."""
    _first_steps: list[asyncio.Handle] | None
    """Gets the callbacks that are scheduled while `start_task` makes a task."""
    _cancelled_timers: int
    _plain_factory: object
    """The task factory that makes plain tasks."""
    _timers: list[Any]

    @classmethod
    def adopt(cls, loop: Any) -> IslandLoop:
        """Turn an open loop of trio-asyncio into one of this class, in place, and return it.

        ``trio_asyncio.open_loop`` has no parameter for the class of its loop.
        """
        channel = loop._q_send
        loop.__class__ = cls
        adopted: IslandLoop = loop
        adopted._turn = deque()
        adopted._waiting = None
        adopted._first_steps = None
        adopted._cancelled_timers = 0
        adopted._plain_factory = None
        # Callbacks of other threads and of signals come by this name, also to a loop that was just closed.
        adopted._q_send = _Inlet(adopted._append)
        # The loop's task may wait for the channel, and has to come back from there.
        channel.send_nowait(asyncio.Handle(_nothing, (), loop))
        return adopted

    # -- scheduling ------------------------------------------------------------------------------------------

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        self._check_closed()
        if self._debug:
            self._check_callback(callback, "call_soon")
        handle = asyncio.Handle(callback, args, self, context)
        if self._first_steps is None:
            self._append(handle)
        else:
            self._first_steps.append(handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        self._check_closed()
        if self._debug:
            self._check_callback(callback, "call_at")
        timer: Any = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, timer)
        timer._scheduled = True
        if self._timers[0] is timer:
            self._wake()
        return timer  # type: ignore[no-any-return]  # Any for its private attribute alone

    def _timer_handle_cancelled(self, handle: Any) -> None:
        if handle._scheduled:
            self._cancelled_timers += 1

    def _queue_handle(self, handle: Any) -> Any:
        """Queue a callback of trio-asyncio's own methods."""
        self._check_closed()
        self._append(handle)
        return handle

    def _append(self, handle: Any) -> None:
        self._turn.append(handle)
        if self._waiting is not None:
            self._wake()

    def start_task(
        self, coroutine: Coroutine[Any, Any, Any], *, name: str, context: contextvars.Context
    ) -> asyncio.Task[Any]:
        """Make a task, and run it to its first wait."""
        steps = self._first_steps = []
        # asyncio finds the running loop by the context of the current Trio task.
        token = current_loop.set(self)
        library, _sniffio.name = _sniffio.name, "asyncio"
        try:
            try:
                task = self._make_task(coroutine, name, context)
            finally:
                self._first_steps = None
            for step in steps:
                step._run()
        finally:
            _sniffio.name = library
            current_loop.reset(token)
        return task

    def know_plain_factory(self) -> None:
        """Remember the present task factory as one that makes plain tasks.

        `start_task` makes them by itself.
        """
        self._plain_factory = self._task_factory

    def _make_task(
        self, coroutine: Coroutine[Any, Any, Any], name: str, context: contextvars.Context
    ) -> asyncio.Task[Any]:
        if self._task_factory is self._plain_factory:
            self._check_closed()
            return asyncio.Task(coroutine, loop=self, name=name, context=context)
        task: asyncio.Task[Any] = self.create_task(coroutine, name=name, context=context)
        return task

    # -- the loop's task -------------------------------------------------------------------------------------

    def _wake(self) -> None:
        waiting = self._waiting
        if waiting is not None:
            # It raises in a foreign thread, which has to use call_soon_threadsafe; the loop goes on waiting.
            trio.lowlevel.reschedule(waiting)
            self._waiting = None

    async def _main_loop_one(self, no_wait: bool = False) -> None:
        """Run the callbacks that are ready now; wait for one if there is none."""
        turn = self._turn
        if self._timers:
            self._take_due_timers()
        if not turn:
            if no_wait:
                raise trio.WouldBlock
            await self._wait()
            return
        library, _sniffio.name = _sniffio.name, "asyncio"
        try:
            for _ in range(len(turn)):
                handle = turn.popleft()
                if isinstance(handle, _AsyncHandle):
                    _sniffio.name = library
                    await self._start_trio_task(handle)
                    _sniffio.name = "asyncio"
                elif not handle._cancelled:
                    handle._run()
        finally:
            _sniffio.name = library
        if turn and not no_wait:
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def _start_trio_task(self, handle: Any) -> None:
        handle._context.run(self._nursery.start_soon, handle._run, name=handle._callback)
        await handle._started.wait()

    def _take_due_timers(self) -> None:
        if self._cancelled_timers > max(MIN_CANCELLED, len(self._timers) // 2):
            for timer in self._timers:
                timer._scheduled = not timer._cancelled
            self._timers = [timer for timer in self._timers if timer._scheduled]
            heapq.heapify(self._timers)
            self._cancelled_timers = 0
        timers, now = self._timers, self.time()
        while timers and timers[0]._when <= now:
            timer = heapq.heappop(timers)
            timer._scheduled = False
            if timer._cancelled:
                self._cancelled_timers -= 1
            else:
                self._turn.append(timer)

    async def _wait(self) -> None:
        """Wait for a callback, or until the first timer is due."""
        self._waiting = trio.lowlevel.current_task()
        if not self._timers:
            await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)
            return
        with trio.CancelScope(deadline=self._timers[0]._when):
            await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)

    def _stop_waiting(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._waiting = None
        return trio.lowlevel.Abort.SUCCEEDED


class _Inlet:
    """Takes the place of the sending end of trio-asyncio's channel."""

    def __init__(self, queue: Callable[[Any], Any]) -> None:
        self.send_nowait = queue


def _nothing() -> None: ...
