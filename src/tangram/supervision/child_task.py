"""One life of a child in a task, and what a nested supervisor knows of the life it runs in."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Protocol

import attrs
import trio

from tangram.supervision.spec import SupervisionEvent, SupervisorStatistics

__all__ = ["CURRENT_CHILD_TASK", "ChildTask", "OnEvent", "Started", "SupervisorChain", "takes_task_status"]

OnEvent = Callable[[SupervisionEvent], None]


class SupervisorChain(Protocol):
    """What a life knows of the supervisors around it: the one it belongs to, and those opened within it."""

    on_event: OnEvent | None

    @property
    def parent(self) -> ChildTask | None:
        """The life in which it was opened; None for the outermost."""

    @property
    def path(self) -> tuple[str, ...]:
        """The names of the children in which it stands, from the outermost supervisor down."""

    def hurry(self) -> None:
        """End every back-off, also below."""

    def statistics(self) -> SupervisorStatistics:
        """The whole tree below."""


@attrs.define(eq=False)
class ChildTask:
    """One incarnation of a child: a task, in a cancel scope of its own."""

    child: str
    incarnation: int
    supervisor: SupervisorChain
    # Shielded: what cancels the supervisor must not reach the children at random, but one by one through
    # it. The deadline of this shield is the stop that the supervisor then begins.
    scope: trio.CancelScope = attrs.Factory(lambda: trio.CancelScope(shield=True))
    task: trio.lowlevel.Task | None = None
    is_up: bool = False
    value: object = None
    stop_due: float = math.inf
    """When a stop that is under way should be over, on the supervisor's clock."""
    nested: list[SupervisorChain] = attrs.Factory(list)


CURRENT_CHILD_TASK: ContextVar[ChildTask | None] = ContextVar("tangram_current_life", default=None)
"""The life in which a task runs: set in the context of each child, found by supervisors opened below it."""


class Started:
    """The ``task_status`` of a child: reports its start to the supervisor."""

    __slots__ = ("_life", "_report")

    def __init__(self, life: ChildTask, report: Callable[[ChildTask, object], None]) -> None:
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
