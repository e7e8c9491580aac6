"""The tables of supervision: states, what may happen in them, and who goes with whom.

1. What is constant in the decisions lives here, and the records on which they are made; ``decide`` reads
   them.
2. Like ``decide``, this file knows no Trio, no clock, no chance and no log.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

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
    "Start",
    "State",
    "Tell",
]


class State(enum.Enum):
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
    STARTED = "started"
    RETURNED = "returned"
    CRASHED = "crashed"
    OVERDUE = "overdue"


ALIVE = (State.STARTING, State.RUNNING, State.LEAVING, State.STOPPING)
AT_REST = (State.STOPPED, State.FINISHED, State.QUARANTINED, State.REMOVED)

MOVES: dict[tuple[State, Happening], str] = {
    (State.STARTING, Happening.STARTED): "_came_up",
    (State.STARTING, Happening.RETURNED): "_returned_early",
    (State.STARTING, Happening.CRASHED): "_start_failed",
    (State.STARTING, Happening.OVERDUE): "_start_failed",
    (State.RUNNING, Happening.RETURNED): "_returned",
    (State.RUNNING, Happening.CRASHED): "_crashed",
    # Told to go, its turn has not come: whatever it does now, it is only gone sooner.
    (State.LEAVING, Happening.STARTED): "_ignore",
    (State.LEAVING, Happening.RETURNED): "_gone",
    (State.LEAVING, Happening.CRASHED): "_gone",
    (State.STOPPING, Happening.STARTED): "_ignore",
    (State.STOPPING, Happening.RETURNED): "_gone",
    (State.STOPPING, Happening.CRASHED): "_gone",
    (State.STOPPING, Happening.OVERDUE): "_late",
}

VERDICTS: dict[tuple[Restart, Happening], State] = {
    # What an end by itself makes of a child: WAITING means a restart.
    ("permanent", Happening.RETURNED): State.WAITING,
    ("permanent", Happening.CRASHED): State.WAITING,
    ("transient", Happening.RETURNED): State.FINISHED,
    ("transient", Happening.CRASHED): State.WAITING,
    ("temporary", Happening.RETURNED): State.REMOVED,
    ("temporary", Happening.CRASHED): State.REMOVED,
}

GROUPS: dict[Strategy, Callable[[int, int], bool]] = {
    # Who goes with the crashed child: (its rank, another's rank).
    "one_for_all": lambda _crashed, _other: True,
    "rest_for_one": lambda crashed, other: other >= crashed,
    "one_for_one": lambda crashed, other: other == crashed,
}


@attrs.define
class Pace:
    """Where in the back-off somebody is."""

    attempt: int = 0
    last: float | None = None

    def next(self, backoff: Backoff, now: float, chance: float) -> float:
        if self.last is not None and now - self.last >= backoff.reset:
            self.attempt = 0
        delay = backoff.delay(self.attempt, chance)
        self.attempt += 1
        self.last = now
        return delay


@attrs.define(eq=False)
class Entry:
    """What is known of one child."""

    spec: Child
    rank: int
    state: State = State.WAITING
    then: State = State.STOPPED
    """As what it rests once it is gone; WAITING: it comes back."""
    asked: State | None = None
    """Set while a caller waits for this start: as what it rests if the start fails, which is the caller's
    matter.
    """
    gone: bool = True
    """Its task has ended, or was never begun."""
    incarnation: int = 0
    restarts: int = 0
    ever_up: bool = False
    gate: float = 0.0
    """It is not started before."""
    due: float = 0.0
    """Its start or stop has to be over."""
    blocks: bool = False
    """Others wait for its stop before theirs begins."""
    lates: int = 0
    pace: Pace = attrs.Factory(Pace)
    last_crash: Crash | None = None
    failure: Crash | None = None
    """Why the last start that failed did: its incarnation says which that was."""


@attrs.frozen
class Start:
    """Start this incarnation of the child."""

    child: str
    incarnation: int


@attrs.frozen
class Cancel:
    """Cancel the child; it should be gone within ``limit`` seconds."""

    child: str
    limit: float


@attrs.frozen
class Tell:
    """Tell everybody who listens."""

    event: SupervisionEvent


Effect = Start | Cancel | Tell


@attrs.frozen
class Failure:
    """Why a supervisor ends although nobody asked it to."""

    kind: str
    """``boot``, ``exhausted``, ``stubborn``, ``fatal``."""
    child: str
    message: str
    crash: Crash | None = None
