"""From exceptions and tasks to plain records: which leaf is the cause, and where somebody stands."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import trio

from tangram.supervision.spec import Crash

__all__ = ["attach_crash", "crash_of", "exception_name", "fatal_leaf", "where_stands"]

FRAMES_KEPT = 8
"""The last frames of a traceback: enough to see the plugin's line and who called it."""

_ATTACHED = "tangram_crash"
_TRIO = str(Path(trio.__file__).parent)
_HERE = str(Path(__file__).parent)


def exception_name(error: BaseException) -> str:
    """``ValueError``, ``redis.exceptions.ConnectionError``."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The leaves of a group in the order in which they came; cancellations last, for they are seldom a
    cause.
    """
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    found = [leaf for inner in error.exceptions for leaf in leaves(inner)]
    yield from sorted(found, key=lambda leaf: isinstance(leaf, trio.Cancelled))


def fatal_leaf(error: BaseException) -> BaseException | None:
    """The ``KeyboardInterrupt`` or ``SystemExit`` in it: these end the process, and nobody restarts after
    them.
    """
    for leaf in leaves(error):
        if isinstance(leaf, KeyboardInterrupt | SystemExit):
            return leaf
    return None


def attach_crash(error: BaseException, crash: Crash) -> None:
    """Let whoever is above name the innermost child that crashed."""
    vars(error)[_ATTACHED] = crash


def crash_of(child: str, error: BaseException, *, at: float, incarnation: int) -> Crash:
    """What is kept of an exception with which a child ended."""
    first, *others = leaves(error)
    inner = _attached(first)
    told = tuple(one_line(other) for other in others)
    if inner is not None:
        return Crash(
            path=(child, *inner.path),
            exception=inner.exception,
            message=inner.message,
            at=at,
            incarnation=incarnation,
            others=inner.others + told,
            traceback=inner.traceback,
            why=str(first),
        )
    return Crash(
        path=(child,),
        exception=exception_name(first),
        message=_message(first),
        at=at,
        incarnation=incarnation,
        others=told,
        traceback=last_frames(first.__traceback__),
    )


def one_line(error: BaseException) -> str:
    message = _message(error)
    return f"{exception_name(error)}: {message}" if message else exception_name(error)


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a plugin's broken __str__ must not stop its supervisor
        return "(its message cannot be read)"


def _attached(error: BaseException) -> Crash | None:
    """The record of a supervisor that gave up, on the exception itself or on what caused it."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return None
        crash = vars(seen).get(_ATTACHED)
        if isinstance(crash, Crash):
            return crash
        seen = seen.__cause__
    return None


def last_frames(traceback: types.TracebackType | None) -> tuple[str, ...]:
    """The last frames as ``file:line in function``. No source is read: this runs on the event loop, during
    a restart.
    """
    frames: list[str] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if not code.co_filename.startswith(_HERE):
            frames.append(f"{code.co_filename}:{traceback.tb_lineno} in {code.co_qualname}")
        traceback = traceback.tb_next
    return tuple(frames[-FRAMES_KEPT:])


def where_stands(task: trio.lowlevel.Task) -> str:
    """The line a task waits on, below Trio's own frames; where it waits for tasks of its own, the lines of
    those.
    """
    innermost = ""
    in_nursery = False
    for frame, line in task.iter_await_frames():
        code = frame.f_code
        in_nursery |= code.co_name == "_nested_child_finished"
        if not code.co_filename.startswith((_TRIO, _HERE)) and not code.co_filename.endswith("contextlib.py"):
            innermost = f"{code.co_filename}:{line} in {code.co_qualname}"
    if in_nursery and task.child_nurseries:
        lines = sorted(where_stands(child) for child in task.child_nurseries[-1].child_tasks)
        if lines:
            return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")
    return innermost or f"task {task.name}"


def thread_frames(ident: int | None) -> list[tuple[str, str]]:
    """Where a thread stands: its frames as (file name, ``file:line in function``), innermost first."""
    everybody = sys._current_frames()  # noqa: SLF001 - the documented way to see another thread's stack
    frame = None if ident is None else everybody.get(ident)
    frames: list[tuple[str, str]] = []
    while frame is not None:
        code = frame.f_code
        frames.append((code.co_filename, f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}"))
        frame = frame.f_back
    return frames


def thread_stack(ident: int | None) -> tuple[str, ...]:
    """Its last frames, innermost last."""
    return tuple(line for _, line in thread_frames(ident)[:FRAMES_KEPT][::-1])
