"""The end of a server under test that does not end: who shields itself from its cancellation is named, and
cancelled all the same.

In a process of its own the last resort is the process's end. A test goes on, and has to: so this reaches for
the scopes of the server's tasks, the one place that does, and takes their shields away.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio

from tangram import supervision
from tangram.supervision import CURRENT_CHILD_TASK
from tangram.testing.checks.census import UNDER_TEST

__all__ = ["line_of", "remove_shields"]

_TRIO = str(Path(trio.__file__).parent)
_SUPERVISION = str(Path(supervision.__file__).parent)


def remove_shields(mark: object, within: trio.CancelScope) -> dict[trio.lowlevel.Task, str]:
    """Take away every shield of the tasks that carry ``mark``, up to ``within``; who stood behind one, and on
    which line.

    Whoever shields itself again, or takes its cancellation for nothing, goes on: `Patience` ends that.
    """
    told = {}
    for task in _tasks(mark):
        shielded = False
        for scope in _scopes(task, within):
            shielded = shielded or scope.shield
            scope.shield = False
        line = line_of(task)
        if shielded and line is not None and not any(nursery.child_tasks for nursery in task.child_nurseries):
            life = task.context.get(CURRENT_CHILD_TASK)
            told[task] = f"{task.name if life is None else life.child}, at {line}"
    return told


def _tasks(mark: object) -> Iterator[trio.lowlevel.Task]:
    root = trio.lowlevel.current_root_task()
    waiting = [] if root is None else [root]
    while waiting:
        task = waiting.pop()
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        if task.context.get(UNDER_TEST) is mark:
            yield task


def _scopes(task: trio.lowlevel.Task, within: trio.CancelScope) -> Iterator[trio.CancelScope]:
    """The scopes that the task is in, innermost first, without ``within`` and what is around it."""
    status: Any = task._cancel_status  # noqa: SLF001 - Trio tells nobody else
    while status is not None and status._scope is not within:  # noqa: SLF001 - as above
        yield status._scope  # noqa: SLF001 - as above
        status = status._parent  # noqa: SLF001 - as above


def line_of(task: trio.lowlevel.Task) -> str | None:
    """The innermost line that is not Trio's own; None where it is supervision that waits: for the one who is
    looked for.
    """
    frames = [(frame.f_code, line) for frame, line in task.iter_await_frames()]
    own = [one for one in frames if not one[0].co_filename.startswith(_TRIO)] or frames
    if not own or own[-1][0].co_filename.startswith(_SUPERVISION):
        return None
    code, line = own[-1]
    return f"{code.co_filename}:{line} in {code.co_name}"
