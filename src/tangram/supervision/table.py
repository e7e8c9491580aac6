"""The tables of supervision: states, reactions to each happening, and restart groups.

1. The constant part of the decisions is in this file, and the records that they use; ``decide`` reads them.
2. Like ``decide``, this file knows no Trio, no clock, no random source and no log.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

import attrs

from tangram.supervision.spec import Backoff, Child, Crash, Restart, Strategy, SupervisionEvent

__all__ = [
    "ALIVE",
    "AT_REST",
    "GROUPS",
    "MOVES",
    "VERDICTS",
    "Cancel",
    "Effect",
    "Entry",
    "Failure",
    "Happening",
    "Pace",
    "Report",
    "Start",
    "State",
]


class State(enum.Enum):
    """The states of a child."""

    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    LEAVING = "leaving"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FINISHED = "finished"
    QUARANTINED = "quarantined"
    REMOVED = "removed"


class Happening(enum.Enum):
    """Events that a child's task causes, and the expiry of its limit."""

    STARTED = "started"
    RETURNED = "returned"
    CRASHED = "crashed"
    OVERDUE = "overdue"


ALIVE: Final = (State.STARTING, State.RUNNING, State.LEAVING, State.STOPPING)
"""States in which the child has a task."""

AT_REST: Final = (State.STOPPED, State.FINISHED, State.QUARANTINED, State.REMOVED)
"""States that only a request or a group restart ends."""

MOVES: Final[dict[tuple[State, Happening], str]] = {
    (State.STARTING, Happening.STARTED): "_came_up",
    (State.STARTING, Happening.RETURNED): "_returned_early",
    (State.STARTING, Happening.CRASHED): "_start_failed",
    (State.STARTING, Happening.OVERDUE): "_start_failed",
    (State.RUNNING, Happening.RETURNED): "_returned",
    (State.RUNNING, Happening.CRASHED): "_crashed",
    # A leaving child waits for its turn to be stopped: an end by itself only comes sooner.
    (State.LEAVING, Happening.STARTED): "_ignore",
    (State.LEAVING, Happening.RETURNED): "_gone",
    (State.LEAVING, Happening.CRASHED): "_gone",
    (State.STOPPING, Happening.STARTED): "_ignore",
    (State.STOPPING, Happening.RETURNED): "_gone",
    (State.STOPPING, Happening.CRASHED): "_gone",
    (State.STOPPING, Happening.OVERDUE): "_late",
}

"""The method of `Decider` that handles each happening in each state."""

VERDICTS: Final[dict[tuple[Restart, Happening], State]] = {
    # The state after an end by itself; WAITING means a restart.
    ("permanent", Happening.RETURNED): State.WAITING,
    ("permanent", Happening.CRASHED): State.WAITING,
    ("transient", Happening.RETURNED): State.FINISHED,
    ("transient", Happening.CRASHED): State.WAITING,
    ("temporary", Happening.RETURNED): State.REMOVED,
    ("temporary", Happening.CRASHED): State.REMOVED,
}

GROUPS: Final[dict[Strategy, Callable[[int, int], bool]]] = {
    # Whether another child is restarted too: (rank of the crashed child, rank of the other child).
    "one_for_all": lambda _crashed, _other: True,
    "rest_for_one": lambda crashed, other: other >= crashed,
    "one_for_one": lambda crashed, other: other == crashed,
}


@attrs.define
class Pace:
    """The position in the back-off of one child or one supervisor."""

    attempt: int = 0
    last: float | None = None

    def next(self, backoff: Backoff, now: float, chance: float) -> float:
        """Return the delay of the next restart, in seconds."""
        if self.last is not None and now - self.last >= backoff.reset:
            self.attempt = 0
        delay = backoff.delay(self.attempt, chance)
        self.attempt += 1
        self.last = now
        return delay


@attrs.define(eq=False)
class Entry:
    """The record of one child."""

    spec: Child
    rank: int
    state: State = State.WAITING
    then: State = State.STOPPED
    """The state that follows its stop; WAITING means a restart."""
    asked: State | None = None
    """The state that follows a failed start, while a caller waits for this start."""
    gone: bool = True
    """Whether its task has ended, or never began."""
    incarnation: int = 0
    restarts: int = 0
    ever_up: bool = False
    gate: float = 0.0
    """The time before which it is not started."""
    due: float = 0.0
    """The time at which its start or stop should be over."""
    blocks: bool = False
    """Whether the stops of other children wait for its stop."""
    lates: int = 0
    pace: Pace = attrs.Factory(Pace)
    last_crash: Crash | None = None
    failure: Crash | None = None
    """The crash of the last start that failed; its ``incarnation`` tells which start."""


@attrs.frozen
class Start:
    """Effect: start this incarnation of the child."""

    child: str
    incarnation: int


@attrs.frozen
class Cancel:
    """Effect: cancel the child, which should end within ``limit`` seconds."""

    child: str
    limit: float


@attrs.frozen
class Report:
    """Effect: hand an event to the log and to the listener."""

    event: SupervisionEvent


Effect = Start | Cancel | Report


@attrs.frozen
class Failure:
    """The reason for which a supervisor ends without a request."""

    kind: str
    """``boot``, ``exhausted``, ``stubborn``, ``fatal``."""
    child: str
    message: str
    crash: Crash | None = None
