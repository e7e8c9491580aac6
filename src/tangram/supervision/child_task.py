"""The task of one incarnation of a child, and its link to supervisors inside the task."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Final, Protocol

import attrs
import trio

from tangram.supervision.spec import SupervisionEvent, SupervisorStatistics

__all__ = [
    "CURRENT_CHILD_TASK",
    "ChildTask",
    "OnEvent",
    "SupervisorChain",
    "takes_task_status",
]

OnEvent = Callable[[SupervisionEvent], None]


class SupervisorChain(Protocol):
    """A supervisor as a child's task sees it: its own one, or one opened inside the task."""

    on_event: OnEvent | None

    @property
    def parent(self) -> ChildTask | None:
        """The child's task in which the supervisor was opened; None for the outermost."""

    @property
    def path(self) -> tuple[str, ...]:
        """The names of the children around it, from the outermost supervisor down."""

    def hurry(self) -> None:
        """Skip every pending back-off delay, also in nested supervisors."""

    def statistics(self) -> SupervisorStatistics:
        """Return the whole tree below."""


@attrs.define(eq=False)
class ChildTask:
    """One incarnation of a child: a task in a cancel scope of its own."""

    child: str
    incarnation: int
    supervisor: SupervisorChain
    # Shielded: a cancellation of the supervisor must not reach the children in random order. The supervisor
    # cancels them one by one, and its stop is the deadline of this shield.
    scope: trio.CancelScope = attrs.Factory(lambda: trio.CancelScope(shield=True))
    trio_task: trio.lowlevel.Task | None = None
    is_up: bool = False
    value: object = None
    """The value that the child reported with ``task_status.started(value)``."""
    due: float = math.inf
    """The time on the supervisor's clock at which a stop by the supervisor should be over."""
    limit: Callable[[], float] = attrs.field(default=lambda: math.inf)
    """Returns a time at which everything inside must have ended, for example because a lease was lost."""
    nested: list[SupervisorChain] = attrs.Factory(list)
    """Supervisors that were opened inside this task."""

    @property
    def stop_due(self) -> float:
        """The time on the supervisor's clock at which a stop that is under way should be over."""
        return min(self.due, self.limit())


CURRENT_CHILD_TASK: Final[ContextVar[ChildTask | None]] = ContextVar(
    "tangram_current_child_task", default=None
)
"""The child's task around the running task; supervisors that are opened inside find their parent here."""


def takes_task_status(run: Callable[..., Awaitable[object]]) -> bool:
    """Return whether a function has a ``task_status`` parameter, and reports its own start."""
    try:
        parameters = inspect.signature(run).parameters
    except (TypeError, ValueError):
        return False
    return "task_status" in parameters
