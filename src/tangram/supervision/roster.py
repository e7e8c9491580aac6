"""What a supervisor's decisions stand on: its children, by name and by state, and what is to be told.

1. The ledger of one supervisor lives here: who there is, in which state, and how a state is changed.
2. It decides nothing: ``decide`` does, which builds on it. Like ``decide`` it knows no Trio, no clock and
   no log.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping

import attrs

from tangram.errors import NoSuchChild
from tangram.supervision.spec import (
    AutoShutdown,
    Backoff,
    Child,
    Crash,
    Kind,
    Strategy,
    SupervisionEvent,
    Window,
)
from tangram.supervision.table import Effect, Entry, Failure, Pace, State, Tell

__all__ = ["TIMED", "UNSETTLED", "Roster"]

TIMED = (State.STARTING, State.STOPPING)
UNSETTLED = (State.STARTING, State.LEAVING, State.STOPPING)

CRASHES_KEPT = 10
"""So many last crashes make up the story told when a supervisor gives up."""


class Roster:
    """What is known of one supervisor."""

    def __init__(
        self,
        children: Iterable[Child],
        *,
        name: str = "root",
        strategy: Strategy = "one_for_all",
        window: Window,
        backoff: Backoff,
        auto_shutdown: AutoShutdown = "never",
        shutdown_timeout: float = 10.0,
        draw: Callable[[], float],
    ) -> None:
        self.name = name
        self.strategy: Strategy = strategy
        self.window = window
        self.backoff = backoff
        self.auto_shutdown = auto_shutdown
        self.shutdown_timeout = shutdown_timeout
        self.entries: dict[str, Entry] = {}
        self._by: dict[State, dict[int, Entry]] = {state: {} for state in State}
        self.restarts = 0
        self.crashes: deque[Crash] = deque(maxlen=CRASHES_KEPT)
        self.failure: Failure | None = None
        self.booted = self.closing = self.closed = False
        self._held_told = False
        self._draw = draw
        self._ranks = 0
        self._gate = -math.inf
        self._pace = Pace()
        self._total_due = math.inf
        self._unsettled = True
        self._planned = True
        self._effects: list[Effect] = []
        for child in children:
            self._enter(child)

    def adjust(
        self, times: Mapping[str, tuple[float, float]], backoff: Backoff, shutdown_timeout: float
    ) -> None:
        """Other limits for what is decided from now on."""
        specs = {
            name: attrs.evolve(self.entry(name).spec, start_timeout=start, stop_timeout=stop)
            for name, (start, stop) in times.items()
        }
        for name, spec in specs.items():
            self.entries[name].spec = spec
        self.backoff, self.shutdown_timeout = backoff, shutdown_timeout

    # -- what is known -------------------------------------------------------------------------------------

    @property
    def phase(self) -> str:
        if self.closed:
            return "closed"
        if self.closing:
            return "closing"
        if not self.booted:
            return "booting"
        return "restarting" if self._unsettled else "up"

    @property
    def _in_order(self) -> bool:
        """Whether children are started one after another: always but for restarts under one_for_one."""
        return self._planned or self.strategy != "one_for_one"

    def wake_at(self, now: float) -> float:
        """When `tick` has something to do, if nothing happens before; infinity: never."""
        soonest = min((e.due for state in TIMED for e in self._by[state].values()), default=math.inf)
        waiting = self._by[State.WAITING]
        if self._in_order and waiting:
            # Nobody passes by the first in order, whose gate is therefore the only one.
            waiting = {0: waiting[min(waiting)]}
        # A gate that is open and not gone through waits for another event, not for time.
        gates = (gate for entry in waiting.values() if (gate := self.gate_of(entry)) > now)
        return min(soonest, min(gates, default=math.inf))

    def gate_of(self, entry: Entry) -> float:
        """Before this time the child is not started."""
        return entry.gate if self.strategy == "one_for_one" else max(self._gate, entry.gate)

    def entry(self, name: str) -> Entry:
        """The child of that name, or `NoSuchChild` naming those that there are."""
        try:
            return self.entries[name]
        except KeyError:
            known = ", ".join(self.entries) or "none"
            raise NoSuchChild(f"supervisor {self.name!r} has no child {name!r}; it has: {known}") from None

    # -- changes -------------------------------------------------------------------------------------------

    def _enter(self, child: Child) -> Entry:
        entry = self.entries[child.name] = Entry(spec=child, rank=self._ranks)
        if child.quarantined is not None:
            entry.state, entry.last_crash = State.QUARANTINED, child.quarantined
        self._by[entry.state][entry.rank] = entry
        self._ranks += 1
        self._unsettled = True
        return entry

    def _move(self, entry: Entry, state: State) -> None:
        del self._by[entry.state][entry.rank]
        entry.state = state
        if state is State.REMOVED:
            del self.entries[entry.spec.name]
        else:
            self._by[state][entry.rank] = entry
        if state in (State.WAITING, State.STARTING):
            self._unsettled = True

    def _send_away(self, entry: Entry, then: State, now: float) -> None:
        """Bring a child to ``then``: at once if it is gone already, else when it has been stopped."""
        if entry.gone:
            self._rest(entry, then, now, quiet=True)
            return
        entry.then = then
        self._unsettled |= then is State.WAITING
        if entry.state in (State.STARTING, State.RUNNING):
            self._move(entry, State.LEAVING)

    def _rest(
        self, entry: Entry, state: State, now: float, *, cause: str | None = None, quiet: bool = False
    ) -> None:
        if not quiet:
            self._tell("stopped", now, entry, cause=cause)
        entry.lates = 0
        entry.blocks = False
        self._move(entry, state)

    def _note(self, entry: Entry, crash: Crash) -> None:
        entry.last_crash = crash
        self.crashes.append(crash)

    def _returned_crash(self, entry: Entry, now: float) -> Crash:
        return Crash(
            path=(entry.spec.name,),
            exception="tangram.errors.ChildReturned",
            message="a permanent child returned; declare it transient if it may",
            at=now,
            incarnation=entry.incarnation,
        )

    def _tell(
        self,
        kind: Kind,
        now: float,
        entry: Entry | None = None,
        *,
        crash: Crash | None = None,
        cause: str | None = None,
        delay: float | None = None,
    ) -> None:
        event = SupervisionEvent(
            kind=kind,
            supervisor=self.name,
            child=None if entry is None else entry.spec.name,
            at=now,
            incarnation=0 if entry is None else entry.incarnation,
            cause=cause if crash is None or cause is not None else crash.cause,
            strategy=self.strategy if kind == "restarting" else None,
            delay=delay,
            crash=crash,
        )
        self._effects.append(Tell(event))
