"""One life of a child in a task, and what a nested supervisor knows of the life it runs in."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import attrs
import trio

if TYPE_CHECKING:
    from tangram.supervision.runner import Supervisor

__all__ = ["CURRENT_LIFE", "Life", "Started", "takes_task_status"]


@attrs.define(eq=False)
class Life:
    """One incarnation of a child: a task, in a cancel scope of its own."""

    child: str
    incarnation: int
    supervisor: Supervisor
    # Shielded: what cancels the supervisor must not reach the children at random, but one by one through
    # it. The deadline of this shield is the stop that the supervisor then begins.
    scope: trio.CancelScope = attrs.Factory(lambda: trio.CancelScope(shield=True))
    task: trio.lowlevel.Task | None = None
    is_up: bool = False
    value: object = None
    stop_due: float = math.inf
    """When a stop that is under way should be over, on the supervisor's clock."""
    nested: list[Supervisor] = attrs.Factory(list)


CURRENT_LIFE: ContextVar[Life | None] = ContextVar("tangram_current_life", default=None)
"""The life in which a task runs: set in the context of each child, found by supervisors opened below it."""


class Started:
    """The ``task_status`` of a child: reports its start to the supervisor."""

    __slots__ = ("_life", "_report")

    def __init__(self, life: Life, report: Callable[[Life, object], None]) -> None:
        self._life = life
        self._report = report

    def started(self, value: Any = None) -> None:
        """Report that the start is over; ``value`` is kept for whoever asks the supervisor."""
        if self._life.is_up:
            raise RuntimeError("called 'started' twice on the same task status")
        self._report(self._life, value)


def takes_task_status(run: Callable[..., Awaitable[object]]) -> bool:
    """Whether a child's start is more than its call."""
    try:
        parameters = inspect.signature(run).parameters
    except (TypeError, ValueError):
        return False
    return "task_status" in parameters
