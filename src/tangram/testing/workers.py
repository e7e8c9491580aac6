"""Runs in processes of their own, so that all cores work: each gets its share by pickle, and answers so.

No fork: the process that asks has threads and an event loop of its own. No pool either: it would leave a
process behind that the next census takes for somebody's leak.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs

__all__ = ["cores", "in_processes"]

T = TypeVar("T")


@attrs.frozen
class _Answer:
    value: Any = None
    error: BaseException | None = None


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def in_processes(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Carry out each call in a process of its own, all at once; their values, in order.

    Raises:
        ValueError: a call cannot be pickled.
        Exception: what the first of them raised that did, once all have ended.
    """
    try:
        packed = [pickle.dumps((sys.path, call)) for call in calls]
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"this cannot be handed to another process ({error}); name plugins and scenarios that can be "
            "imported, or use jobs=1"
        ) from error
    command = [sys.executable, "-c", "from tangram.testing.workers import work; work()"]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ)  # noqa: S603 - ourselves
        for _ in packed
    ]
    try:
        for worker, data in zip(workers, packed, strict=True):
            assert worker.stdin is not None
            worker.stdin.write(data)
            worker.stdin.close()
        answers = [_read(worker) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            if worker.stdout is not None:
                worker.stdout.close()
    for answer in answers:
        if answer.error is not None:
            raise answer.error
    return [answer.value for answer in answers]


def _read(worker: subprocess.Popen[bytes]) -> _Answer:
    assert worker.stdout is not None
    data = worker.stdout.read()
    if not data:
        return _Answer(error=RuntimeError(f"a worker ended with status {worker.wait()} and no answer"))
    answer = pickle.loads(data)  # noqa: S301 - our own process
    assert isinstance(answer, _Answer)
    return answer


def work() -> None:
    """One process: read a call from the standard input, answer on the standard output."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what plugins print must not get between
    sys.path[:], call = pickle.load(sys.stdin.buffer)  # noqa: S301 - our own process
    try:
        answer = _Answer(value=call())
    except BaseException as error:  # noqa: BLE001 - raised again by who asked
        answer = _Answer(error=_plain(error))
    with answers:
        pickle.dump(answer, answers)


def _plain(error: BaseException) -> BaseException:
    """The error without what cannot be pickled: its cause is told in its text."""
    error.__cause__ = error.__context__ = error.__traceback__ = None
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - whatever it is
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
