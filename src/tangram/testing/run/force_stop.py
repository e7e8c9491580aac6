"""End a server under test that does not end: remove the shields of its tasks.

A real server ends its process as a last resort. A test has to go on, so this module reaches for the
private cancel scopes of the server's tasks. It is the one place that does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import trio

from tangram import supervision
from tangram.supervision import CURRENT_CHILD_TASK
from tangram.testing.checks.census import UNDER_TEST

__all__ = ["line_of", "remove_shields"]

_TRIO: Final = str(Path(trio.__file__).parent)
_SUPERVISION: Final = str(Path(supervision.__file__).parent)


def remove_shields(mark: object, within: trio.CancelScope) -> dict[trio.lowlevel.Task, str]:
    """Remove every shield of the tasks that carry ``mark``, up to the scope ``within``.

    A task that shields itself again, or swallows its cancellation, goes on: `SwallowedCancelWatch` ends
    it.

    Returns:
        A description of each task that stood behind a shield, with its line.
    """
    shielded_tasks = {}
    for task in _tasks(mark):
        shielded = False
        for scope in _scopes(task, within):
            shielded = shielded or scope.shield
            scope.shield = False
        line = line_of(task)
        if shielded and line is not None and not any(nursery.child_tasks for nursery in task.child_nurseries):
            life = task.context.get(CURRENT_CHILD_TASK)
            shielded_tasks[task] = f"{task.name if life is None else life.child}, at {line}"
    return shielded_tasks


def _tasks(mark: object) -> Iterator[trio.lowlevel.Task]:
    root = trio.lowlevel.current_root_task()
    waiting = [] if root is None else [root]
    while waiting:
        task = waiting.pop()
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        if task.context.get(UNDER_TEST) is mark:
            yield task


def _scopes(task: trio.lowlevel.Task, within: trio.CancelScope) -> Iterator[trio.CancelScope]:
    """Yield the scopes of a task from the innermost outwards, up to ``within``.

    The scope ``within`` itself, and those around it, are left out.
    """
    status: Any = task._cancel_status  # noqa: SLF001 - Trio has no public access to it
    while status is not None and status._scope is not within:  # noqa: SLF001 - as above
        yield status._scope  # noqa: SLF001 - as above
        status = status._parent  # noqa: SLF001 - as above


def line_of(task: trio.lowlevel.Task) -> str | None:
    """Return the innermost line of a task that is not Trio's own.

    Returns:
        None for a task in which supervision waits.
    """
    frames = [(frame.f_code, line) for frame, line in task.iter_await_frames()]
    own = [one for one in frames if not one[0].co_filename.startswith(_TRIO)] or frames
    if not own or own[-1][0].co_filename.startswith(_SUPERVISION):
        return None
    code, line = own[-1]
    return f"{code.co_filename}:{line} in {code.co_name}"
