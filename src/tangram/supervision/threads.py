"""Synchronous services in threads: told to stop, given time, then abandoned, counted and shown.

A thread cannot be cancelled. It is told through ``trio.from_thread.check_cancelled()``, which raises in it
once its service was cancelled. One that does not ask goes on: after its time it is abandoned, a ghost that
holds whatever it holds, and that is said whenever the same function is started beside it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar, TypeVarTuple

import attrs
import structlog
import trio

from tangram.supervision.child_task import CURRENT_CHILD_TASK
from tangram.supervision.records import one_line, thread_stack

__all__ = [
    "AbandonedThread",
    "ThreadStatistics",
    "run_sync_in_thread",
    "service_threads",
    "thread_statistics",
]

log = structlog.get_logger("tangram.supervision")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

SHARE = 0.9
"""The share of a child's stop time that its thread gets: the child itself has to end within the whole of
it.
"""


@attrs.frozen
class AbandonedThread:
    """A thread that goes on although its service was stopped."""

    name: str
    where: tuple[str, ...]
    """Its last frames, innermost last."""


@attrs.frozen
class ThreadStatistics:
    """Threads of synchronous services, in the whole process."""

    running: int
    """Threads whose service is alive."""
    abandoned: int
    """Threads abandoned since the process started."""
    ghosts: tuple[AbandonedThread, ...]
    """Those of them that go on."""


@attrs.define(eq=False)
class _Thread:
    name: str
    function: Callable[..., object]
    done: trio.Event = attrs.Factory(trio.Event)
    ident: int | None = None
    error: BaseException | None = None
    is_over: bool = False
    is_abandoned: bool = False


_threads: set[_Thread] = set()
_abandoned = 0
_serving: trio.lowlevel.RunVar[int] = trio.lowlevel.RunVar("tangram_service_threads", 0)


def service_threads() -> int:
    """How many threads of synchronous services this loop waits for: such a thread lives as long as its
    service.
    """
    return _serving.get()


def thread_statistics() -> ThreadStatistics:
    """Who runs in threads, and who was left behind in one."""
    threads = [thread for thread in tuple(_threads) if not thread.is_over]
    ghosts = [thread for thread in threads if thread.is_abandoned]
    return ThreadStatistics(
        running=len(threads) - len(ghosts),
        abandoned=_abandoned,
        ghosts=tuple(AbandonedThread(ghost.name, thread_stack(ghost.ident)) for ghost in ghosts),
    )


async def run_sync_in_thread(
    fn: Callable[[*Ts], T], *args: *Ts, name: str | None = None, stop_timeout: float = 5.0
) -> T:
    """Run a synchronous function in a thread of its own until it returns or the calling task is cancelled.

    Cancelled, it is told (``trio.from_thread.check_cancelled()`` raises in it) and given ``stop_timeout``
    seconds, or what its supervised child has left if that is less; then it is abandoned.
    """
    thread = _Thread(name=name or str(getattr(fn, "__qualname__", fn)), function=fn)
    _warn_of_ghosts(thread)
    token = trio.lowlevel.current_trio_token()

    def work() -> T:
        thread.ident = threading.get_ident()
        try:
            trio.from_thread.check_cancelled()  # it may begin so late that its service was stopped meanwhile
            return fn(*args)
        except BaseException as error:
            thread.error = error
            raise
        finally:
            thread.is_over = True
            _threads.discard(thread)
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(thread.done.set)

    _threads.add(thread)
    # A limiter of its own: services must not use up the places of everybody's short calls.
    limiter = trio.CapacityLimiter(1)
    try:
        with _counted():
            return await trio.to_thread.run_sync(
                work, abandon_on_cancel=True, limiter=limiter, thread_name=thread.name
            )
    except trio.Cancelled:
        if limiter.borrowed_tokens or thread.is_over:
            await _await_end(thread, stop_timeout)
        else:
            _threads.discard(thread)  # cancelled before the thread was made
        raise


@contextmanager
def _counted() -> Iterator[None]:
    _serving.set(_serving.get() + 1)
    try:
        yield
    finally:
        _serving.set(_serving.get() - 1)


def _warn_of_ghosts(thread: _Thread) -> None:
    for ghost in tuple(_threads):
        if ghost.is_abandoned and not ghost.is_over and ghost.function == thread.function:
            log.warning(
                "a synchronous service is started beside its own thread that never ended",
                service=thread.name,
                where=thread_stack(ghost.ident)[-1:],
            )


async def _await_end(thread: _Thread, stop_timeout: float) -> None:
    global _abandoned  # noqa: PLW0603 - threads belong to the process
    life = CURRENT_CHILD_TASK.get()
    if life is not None:
        stop_timeout = min(stop_timeout, SHARE * max(0.0, life.stop_due - trio.current_time()))
    with trio.move_on_after(stop_timeout, shield=True):
        await thread.done.wait()
    if not thread.is_over:
        thread.is_abandoned = True
        _abandoned += 1
        log.error(
            "a thread that does not end was abandoned",
            service=thread.name,
            after=stop_timeout,
            where=thread_stack(thread.ident)[-1:],
        )
    elif thread.error is not None and not isinstance(thread.error, trio.Cancelled):
        log.warning(
            "a synchronous service raised while it was being stopped",
            service=thread.name,
            cause=one_line(thread.error),
        )
