"""A Trio ``task_status`` between a task and the nursery that waits for its start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import trio

__all__ = ["RelayedStatus"]

T = TypeVar("T")


class RelayedStatus(Generic[T]):
    """A ``task_status`` that remembers its call, runs a callback, and passes the value on.

    Args:
        outer: the status to pass the value on to; None where the callback does everything.
        on_started: called with the value before it is passed on.
        repeatable: ignore a second call, for a task that starts several times within one start. Otherwise a
            second call raises ``RuntimeError``, as with Trio's own status.

    Example:
        ``await nursery.start(...)`` inside a child, with a look at the value on its way up::

            await broker.run(task_status=RelayedStatus(task_status, on_started=remember_url))
    """

    __slots__ = ("_on_started", "_outer", "_repeatable", "called")

    def __init__(
        self,
        outer: trio.TaskStatus[T] | None = None,
        *,
        on_started: Callable[[T], None] | None = None,
        repeatable: bool = False,
    ) -> None:
        self.called = False
        """Whether the start was reported."""
        self._outer = outer
        self._on_started = on_started
        self._repeatable = repeatable

    def started(self, value: Any = None) -> None:
        """Report the start, with a value for the waiting task.

        Raises:
            RuntimeError: it was reported before, and the status is not repeatable.
        """
        if self.called:
            if self._repeatable:
                return
            raise RuntimeError("called 'started' twice on the same task status")
        self.called = True
        if self._on_started is not None:
            self._on_started(value)
        if self._outer is not None:
            self._outer.started(value)
