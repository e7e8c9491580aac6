"""Plain records of exceptions, tasks and threads: the cause, and the line in execution."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Final

import trio

from tangram.descriptors import exhaustion_note
from tangram.errors import OperatorError
from tangram.groups import leaves
from tangram.supervision.spec import Crash

__all__ = ["attach_crash", "cause_of", "crash_of", "exception_name", "fatal_leaf", "where_stands"]

FRAMES_KEPT: Final = 8
"""The last frames of a traceback: enough to see the plugin's line and its callers."""

_ATTACHED: Final = "tangram_crash"
_TRIO: Final = str(Path(trio.__file__).parent)
_HERE: Final = str(Path(__file__).parent)
_TANGRAM: Final = str(Path(__file__).parents[1]) + "/"
_STDLIB: Final = str(Path(types.__file__).parent) + "/"
_INSTALLED: Final = re.compile(r".*/(?:site|dist)-packages/")
"""The folder in which distributions are installed."""


def exception_name(error: BaseException) -> str:
    """Return an exception's type with its module, as in ``redis.exceptions.ConnectionError``."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def causes(error: BaseException) -> list[BaseException]:
    """Return the leaves of an exception group in their order, cancellations last.

    A cancellation is seldom the cause.
    """
    return sorted(leaves(error), key=lambda leaf: isinstance(leaf, trio.Cancelled))


def fatal_leaf(error: BaseException) -> BaseException | None:
    """Return the ``KeyboardInterrupt`` or ``SystemExit`` in an exception, or None.

    Both end the process, and no restart follows them.
    """
    for leaf in leaves(error):
        if isinstance(leaf, KeyboardInterrupt | SystemExit):
            return leaf
    return None


def attach_crash(error: BaseException, crash: Crash) -> None:
    """Attach the record of the innermost crash, for the supervisors above to name that child."""
    vars(error)[_ATTACHED] = crash


def crash_of(child: str, error: BaseException, *, at: float, incarnation: int) -> Crash:
    """Return the record of the exception with which a child ended.

    Args:
        child: the child's name.
        error: the exception; the first leaf of a group is the cause.
        at: the time on the supervisor's clock.
        incarnation: the child's incarnation.
    """
    first, *others = causes(error)
    inner = _attached(first)
    listed = tuple(one_line(other) for other in others)
    if inner is not None:
        return Crash(
            path=(child, *inner.path),
            exception=inner.exception,
            message=inner.message,
            at=at,
            incarnation=incarnation,
            others=inner.others + listed,
            traceback=inner.traceback,
            where=inner.where,
            why=str(first),
        )
    # The operator corrects a setting or the machine, and the frames would be tangram's own.
    frames, own = ((), "") if isinstance(first, OperatorError) else own_frames(first.__traceback__)
    return Crash(
        path=(child,),
        exception=exception_name(first),
        message=_message(first),
        at=at,
        incarnation=incarnation,
        others=listed,
        traceback=frames,
        where=own,
    )


def cause_of(error: BaseException) -> str:
    """Return the crash for which supervisors gave up, else the text of the exception.

    The text of a supervisor's own exception names supervisors and budgets before the cause.
    """
    first = causes(error)[0]
    inner = _attached(first)
    if inner is None:
        return _message(first) or exception_name(first)
    return f"{inner.cause} at {inner.where}" if inner.where else inner.cause


def one_line(error: BaseException) -> str:
    """Return ``Type: message``."""
    message = _message(error)
    return f"{exception_name(error)}: {message}" if message else exception_name(error)


def _message(error: BaseException) -> str:
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - a plugin's broken __str__ must not stop its supervisor
        return "(its message cannot be read)"
    # Which child meets this error first is chance, so the record names the limit and not only the child.
    note = exhaustion_note(error)
    return f"{message}: {note}" if note else message


def _attached(error: BaseException) -> Crash | None:
    """Return the record that `attach_crash` put on the exception or on one of its causes."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return None
        crash = vars(seen).get(_ATTACHED)
        if isinstance(crash, Crash):
            return crash
        seen = seen.__cause__
    return None


def own_frames(traceback: types.TracebackType | None) -> tuple[tuple[str, ...], str]:
    """Return the last frames of the child's own code, and its innermost own frame.

    Frames are ``file:line in function``, innermost last. The frames before the first one outside of tangram,
    Trio and the standard library are left out, if there is such a frame. The innermost own frame is the last
    one in the same package as that frame. No source file is read, because this runs on the event loop during
    a restart.
    """
    frames: list[str] = []
    begin, own, package = 0, "", ""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        file = code.co_filename
        if not file.startswith(_HERE):
            line = f"{file}:{traceback.tb_lineno} in {code.co_qualname}"
            if not package and not _is_infrastructure(file):
                begin, package = len(frames), _package_of(file)
            if package and file.startswith(package):
                own = line
            frames.append(line)
        traceback = traceback.tb_next
    return tuple(frames[begin:][-FRAMES_KEPT:]), own


def _is_infrastructure(file: str) -> bool:
    if file.startswith((_TANGRAM, _TRIO, "<frozen")):
        return True
    if (installed := _INSTALLED.match(file)) is not None:
        return file.startswith(("outcome/", "trio_asyncio/"), installed.end())
    return file.startswith(_STDLIB)


def _package_of(file: str) -> str:
    """Return a module's folder, or its file if other distributions are in the folder."""
    folder = str(Path(file).parent)
    return file if _INSTALLED.fullmatch(f"{folder}/") else f"{folder}/"


def where_stands(task: trio.lowlevel.Task) -> str:
    """Return the line on which a task waits, Trio's own frames left out.

    For a task that waits at the end of a nursery, return the lines of the nursery's tasks.
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
    """Return a thread's frames as (file name, ``file:line in function``), innermost first."""
    stacks = sys._current_frames()  # noqa: SLF001 - the documented way to see another thread's stack
    frame = None if ident is None else stacks.get(ident)
    frames: list[tuple[str, str]] = []
    while frame is not None:
        code = frame.f_code
        frames.append((code.co_filename, f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}"))
        frame = frame.f_back
    return frames


def thread_stack(ident: int | None) -> tuple[str, ...]:
    """Return a thread's last frames as ``file:line in function``, innermost last."""
    return tuple(line for _, line in thread_frames(ident)[:FRAMES_KEPT][::-1])
