"""Make any task raise at its current await, by means of Trio's internals.

A plugin cannot crash the bus or the web part, and a hook for that in the server could be misused. Trio
delivers ``KeyboardInterrupt`` to its main task by the same call.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import trio


def all_tasks() -> Iterator[trio.lowlevel.Task]:
    root = trio.lowlevel.current_root_task()
    waiting = [root] if root is not None else []
    while waiting:
        task = waiting.pop()
        yield task
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]


def raise_in_task(name: str, error: Exception) -> None:
    """Raise *error* in the task called *name*; `LookupError` names those there are."""
    found = {task.name: task for task in all_tasks()}
    if name not in found:
        raise LookupError(f"no task {name!r} among {sorted(found)}")

    def raise_error() -> NoReturn:
        raise error

    task = found[name]
    if task._abort_func is None:
        raise RuntimeError(f"task {name!r} cannot be interrupted where it stands")
    task._attempt_abort(raise_error)
