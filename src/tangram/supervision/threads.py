"""Synchronous services in threads, which are abandoned if they do not stop in time.

A thread cannot be cancelled. It has to call ``trio.from_thread.check_cancelled()``, which raises in it once
its service was cancelled. A thread that does not call it goes on: after its stop time it is abandoned, and
called a ghost. A ghost keeps its locks and files, so a warning is logged when the same function is started
beside it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, TypeVar, TypeVarTuple

import attrs
import structlog
import trio

from tangram import defaults
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

SHARE: Final = 0.9
"""The share of a child's stop time that its thread gets; the child itself has to end within the whole."""


@attrs.frozen
class AbandonedThread:
    """A thread that goes on although its service was stopped."""

    name: str
    where: tuple[str, ...]
    """The last frames of its stack, innermost last."""


@attrs.frozen
class ThreadStatistics:
    """The threads of synchronous services in the whole process."""

    running: int
    """The number of threads whose service is alive."""
    abandoned: int
    """The number of threads abandoned since the process started."""
    ghosts: tuple[AbandonedThread, ...]
    """The abandoned threads that still run."""


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
    """Return the number of threads of this event loop that run services."""
    return _serving.get()


def thread_statistics() -> ThreadStatistics:
    """Return the threads of running services, and the abandoned ones."""
    threads = [thread for thread in tuple(_threads) if not thread.is_over]
    ghosts = [thread for thread in threads if thread.is_abandoned]
    return ThreadStatistics(
        running=len(threads) - len(ghosts),
        abandoned=_abandoned,
        ghosts=tuple(AbandonedThread(ghost.name, thread_stack(ghost.ident)) for ghost in ghosts),
    )


async def run_sync_in_thread(
    fn: Callable[[*Ts], T], *args: *Ts, name: str | None = None, stop_timeout: float = defaults.STOP_TIMEOUT
) -> T:
    """Run a synchronous function in a thread until it returns or the task is cancelled.

    After a cancellation ``trio.from_thread.check_cancelled()`` raises in the thread. It then has
    ``stop_timeout`` seconds to end, or the rest of its supervised child's stop time if that is less; after
    that it is abandoned.

    Args:
        fn: the function.
        args: its arguments.
        name: the thread's name, for logs and statistics; the function's name by default.
        stop_timeout: seconds between the cancellation and the abandonment.
    """
    thread = _Thread(name=name or str(getattr(fn, "__qualname__", fn)), function=fn)
    _warn_of_ghosts(thread)
    token = trio.lowlevel.current_trio_token()

    def work() -> T:
        thread.ident = threading.get_ident()
        try:
            trio.from_thread.check_cancelled()  # the service may have been stopped before the thread began
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
    # A limiter of its own: services must not use up the thread slots of short calls.
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
    child_task = CURRENT_CHILD_TASK.get()
    if child_task is not None:
        stop_timeout = min(stop_timeout, SHARE * max(0.0, child_task.stop_due - trio.current_time()))
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
