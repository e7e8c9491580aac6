"""Run calls in processes of their own, to use all cores.

Arguments and results are pickled.

Processes are not forked, because this one has threads and an event loop. No pool is used, because it
would leave a process behind that the next census takes for a leak.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

import attrs

__all__ = ["cores", "in_processes"]

T = TypeVar("T")

WORK_SECONDS: Final = 4 * 3600.0
"""Seconds for all calls: the longest known, 10,000 seeds on two cores, takes 90 minutes at worst."""

END_SECONDS: Final = 30.0
"""Seconds for an end: SIGKILL ends a process at once unless the kernel holds it."""


@attrs.frozen
class _Answer:
    value: Any = None
    error: BaseException | None = None


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def in_processes(calls: Sequence[Callable[[], T]], *, within: float = WORK_SECONDS) -> list[T]:
    """Carry out each call in a process of its own, all at once; return their values in order.

    Args:
        calls: picklable functions without arguments.
        within: seconds for all of them; calls without an answer by then are killed.

    Raises:
        ValueError: a call cannot be pickled.
        TimeoutError: some did not answer within ``within`` seconds, and none raised.
        Exception: the first error of a call, once all have ended.
    """
    try:
        packed = [pickle.dumps((sys.path, call)) for call in calls]
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"this cannot be handed to another process ({error}); name plugins and scenarios that can be "
            "imported, or use jobs=1"
        ) from error
    command = [sys.executable, "-c", "from tangram.testing.run.workers import work; work()"]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ)  # noqa: S603 - ourselves
        for _ in packed
    ]
    try:
        with _killed_after(workers, within) as over:
            for worker, data in zip(workers, packed, strict=True):
                _send(worker, data)
            answers = [_read(worker, over, within) for worker in workers]
    finally:
        _end(workers)
    # A call that raised may be why others timed out: raise its error first.
    raised = [answer.error for answer in answers if answer.error is not None]
    for first in sorted(raised, key=lambda one: isinstance(one, TimeoutError)):
        raise first
    return [answer.value for answer in answers]


@contextmanager
def _killed_after(workers: Sequence[subprocess.Popen[bytes]], seconds: float) -> Iterator[threading.Event]:
    """Kill the workers if the block takes longer, which ends reads from and writes to them.

    Yields an event that tells whether this happened.
    """
    over = threading.Event()

    def kill() -> None:
        over.set()
        for worker in workers:
            worker.kill()

    timer = threading.Timer(seconds, kill)
    timer.start()
    try:
        yield over
    finally:
        timer.cancel()
        timer.join()  # it is cancelled, or just killing: neither takes time


def _send(worker: subprocess.Popen[bytes], data: bytes) -> None:
    assert worker.stdin is not None
    with suppress(BrokenPipeError):  # it has ended; `_read` reports the missing answer
        worker.stdin.write(data)
    with suppress(BrokenPipeError):
        worker.stdin.close()


def _end(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        worker.kill()
        for pipe in (worker.stdin, worker.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
    for worker in workers:
        worker.wait(END_SECONDS)


def _read(worker: subprocess.Popen[bytes], over: threading.Event, within: float) -> _Answer:
    assert worker.stdout is not None
    data = worker.stdout.read()
    if not data and over.is_set():
        return _Answer(error=TimeoutError(f"a worker had no answer within {within:g} s and was killed"))
    if not data:
        status = worker.wait(END_SECONDS)
        return _Answer(error=RuntimeError(f"a worker ended with status {status} and no answer"))
    answer = pickle.loads(data)  # noqa: S301 - our own process
    assert isinstance(answer, _Answer)
    return answer


def work() -> None:
    """Read a call from standard input and write its answer to standard output.

    This is the main function of a worker process.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # prints of plugins must not mix with the answer
    sys.path[:], call = pickle.load(sys.stdin.buffer)  # noqa: S301 - our own process
    try:
        answer = _Answer(value=call())
    except BaseException as error:  # noqa: BLE001 - raised again by the caller
        answer = _Answer(error=_plain(error))
    with answers:
        pickle.dump(answer, answers)


def _plain(error: BaseException) -> BaseException:
    """Return the error without parts that cannot be pickled.

    Where the error itself cannot be pickled, a `RuntimeError` with its text takes its place.
    """
    error.__cause__ = error.__context__ = error.__traceback__ = None
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - pickling may raise anything
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
