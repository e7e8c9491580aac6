"""The decisions of a supervisor: which child to stop or start, and when to give up.

1. Everything that depends on strategy, restart type, intensity, back-off or order is in this file.
2. This file knows no Trio, no clock, no random source and no log: ``now`` is an argument, jitter is drawn
   from a function that is handed in, and exceptions come as `Crash` records.
3. Events in, effects out. Each public method takes one event and returns the effects that the shell must
   carry out, in that order; the shell reports their results as further events. No other file decides.

The theory. Each child is in one `State`; `MOVES` (in ``table``) names the reaction to each happening in that
state. A happening that is not in the table cannot occur. A decision only writes its wish into the children
(which must stop, which state each shall rest in, from which time it may start again), and `_settle_stops`
and `_settle_starts` then find the next steps from that alone:

- a child that must stop is ``LEAVING`` until its turn, then ``STOPPING``: highest rank first, one after
  another;
- with `one_for_all` and `rest_for_one` no child is started while another must still stop; then they start
  in order, one after another;
- with `one_for_one` each child comes back by itself; only boots and planned restarts go in order.

So a crash in the middle of a restart, a stop during back-off, or two crashes at once need no code of their
own: they change the wishes, and the next steps follow from them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from tangram import defaults
from tangram.errors import SpecError
from tangram.supervision.roster import UNSETTLED, Roster
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
from tangram.supervision.table import (
    ALIVE,
    AT_REST,
    GROUPS,
    MOVES,
    VERDICTS,
    Cancel,
    Effect,
    Entry,
    Failure,
    Happening,
    Pace,
    Report,
    Start,
    State,
)

__all__ = ["Decider"]

LATES_ALLOWED: Final = 3
"""Stop times that a restart waits for a stubborn child before the supervisor fails: rule 9."""

CRASHES_KEPT: Final = 10
"""The last crashes, which are reported when a supervisor gives up."""


class Decider:
    """The decisions of one supervisor.

    Every public method that takes ``now`` handles one event and returns the effects, in order.

    Args:
        children: in start order.
        name: the supervisor's name.
        strategy: which children are restarted together with one that crashes.
        window: the budget of restarts.
        backoff: the delays before restarts.
        auto_shutdown: whether the end of a significant child ends the supervisor.
        shutdown_timeout: seconds for a whole stop.
        draw: returns a number in [0, 1) for the jitter.
    """

    def __init__(
        self,
        children: Iterable[Child],
        *,
        name: str = "root",
        strategy: Strategy = "one_for_all",
        window: Window,
        backoff: Backoff,
        auto_shutdown: AutoShutdown = "never",
        shutdown_timeout: float = defaults.SHUTDOWN_TIMEOUT,
        draw: Callable[[], float],
    ) -> None:
        self.roster = Roster(name, children)
        self.name = name
        self.strategy: Strategy = strategy
        self.window = window
        self.backoff = backoff
        self.auto_shutdown = auto_shutdown
        self.shutdown_timeout = shutdown_timeout
        self.restarts = 0
        self.crashes: deque[Crash] = deque(maxlen=CRASHES_KEPT)
        self.failure: Failure | None = None
        self.booted = self.closing = self.closed = False
        self._delay_reported = False
        self._draw = draw
        self._gate = self._settled_at = -math.inf
        self._pace = Pace()
        self._total_due = math.inf
        self._planned = True
        self._effects: list[Effect] = []

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Every child by its name."""
        return self.roster.entries

    def entry(self, name: str) -> Entry:
        """Return the child of that name, or raise `NoSuchChild`."""
        return self.roster.entry(name)

    @property
    def phase(self) -> str:
        """The supervisor's state: ``booting``, ``up``, ``restarting``, ``closing`` or ``closed``."""
        if self.closed:
            return "closed"
        if self.closing:
            return "closing"
        if not self.booted:
            return "booting"
        return "restarting" if self.roster.has_work else "up"

    @property
    def wake_at(self) -> float:
        """The time at which `tick` has work if no event comes before; infinity for never.

        It may have passed already: time goes on between an event and the look at this.
        """
        waiting = self.roster.in_state(State.WAITING)
        if self._in_order and waiting:
            # No child overtakes the first in order, so that only its gate matters.
            waiting = {0: waiting[min(waiting)]}
        # A gate that the last event has found open waits for another event, not for time.
        gates = (gate for entry in waiting.values() if (gate := self.gate_of(entry)) > self._settled_at)
        return min(self.roster.next_due(), min(gates, default=math.inf))

    def gate_of(self, entry: Entry) -> float:
        """Return the time before which the child is not started."""
        return entry.gate if self.strategy == "one_for_one" else max(self._gate, entry.gate)

    def adjust(
        self, times: Mapping[str, tuple[float, float]], backoff: Backoff, shutdown_timeout: float
    ) -> None:
        """Set other limits for the decisions from now on; ``times`` as in `Roster.set_limits`."""
        self.roster.set_limits(times)
        self.backoff, self.shutdown_timeout = backoff, shutdown_timeout

    # -- events --------------------------------------------------------------------------------------------

    def open(self, now: float) -> list[Effect]:
        """Begin the first boot."""
        return self._settled(now)

    def started(self, name: str, now: float) -> list[Effect]:
        """Handle a child's report that its start is over."""
        self._happen(self.entries[name], Happening.STARTED, None, now)
        return self._settled(now)

    def ended(
        self, name: str, now: float, crash: Crash | None = None, *, fatal: bool = False
    ) -> list[Effect]:
        """Handle the end of a child's task.

        Args:
            name: the child.
            now: the time on the supervisor's clock.
            crash: the exception that it raised; None if it returned.
            fatal: whether the exception ends the process, as ``KeyboardInterrupt`` does.
        """
        entry = self.entries[name]
        entry.gone = True
        if fatal and crash is not None:
            self._note(entry, crash)
            self.roster.move(entry, State.STOPPED)
            self._fail(Failure("fatal", name, crash.cause, crash), now)
        else:
            self._happen(entry, Happening.RETURNED if crash is None else Happening.CRASHED, crash, now)
        return self._settled(now)

    def tick(self, now: float) -> list[Effect]:
        """Handle the passing of time: overdue starts and stops, and gates that have opened."""
        for entry in self.roster.overdue(now):
            self._happen(entry, Happening.OVERDUE, None, now)
        return self._settled(now)

    def add(self, child: Child, now: float) -> list[Effect]:
        """Add a child behind all others, and start it in its turn."""
        if child.name in self.entries:
            raise SpecError(
                f"there is a child {child.name!r} already; delete it first, or choose another name"
            )
        if child.significant and self.auto_shutdown == "never":
            raise SpecError(f"child {child.name!r} is significant, but auto_shutdown is 'never'")
        entry = self.roster.add(child)
        entry.asked = State.REMOVED
        entry.gate = now
        if self.closing:
            self.roster.move(entry, State.REMOVED)
        return self._settled(now)

    def stop(self, name: str, now: float) -> list[Effect]:
        """Handle a request to stop a child, or to give up its restart."""
        entry = self.entry(name)
        entry.asked = None
        if entry.state not in AT_REST:
            self._send_away(entry, State.REMOVED if entry.spec.restart == "temporary" else State.STOPPED, now)
        return self._settled(now)

    def restart(self, name: str, now: float) -> list[Effect]:
        """Handle a request to restart one child.

        The restart is not charged. A quarantined child starts with a clear window.
        """
        entry = self.entry(name)
        if not self.closing:
            if entry.state in AT_REST:
                entry.asked = entry.state
            if entry.state is State.QUARANTINED and entry.spec.window is not None:
                entry.spec.window.clear()
                entry.pace = Pace()
            self._report("planned", now, entry)
            self._send_away(entry, State.WAITING, now)
            entry.gate = now
        return self._settled(now)

    def restart_all(self, now: float, reason: str = "") -> list[Effect]:
        """Restart all children cleanly, under every strategy, also those in quarantine."""
        if not self.closing:
            self._report("planned", now, cause=reason)
            self._planned = True
            self._gate = now
            for entry in list(self.entries.values()):
                if entry.state is State.QUARANTINED and entry.spec.window is not None:
                    entry.spec.window.clear()
                if entry.state in (State.WAITING, State.QUARANTINED):
                    self._send_away(entry, State.WAITING, now)
                    entry.gate = now
                else:
                    self._take_along(entry, now)
        return self._settled(now)

    def delete(self, name: str, now: float) -> list[Effect]:
        """Forget a child that does not run."""
        entry = self.entry(name)
        if entry.state not in AT_REST:
            raise SpecError(f"child {name!r} is {entry.state.value}; stop it before it is deleted")
        self.roster.move(entry, State.REMOVED)
        return self._settled(now)

    def hurry(self, now: float) -> list[Effect]:
        """Skip pending back-off delays, for example when Redis has come back."""
        self._gate = min(self._gate, now)
        for entry in self.entries.values():
            entry.gate = min(entry.gate, now)
        return self._settled(now)

    def close(self, now: float, due: float = math.inf) -> list[Effect]:
        """Stop all children until ``due``, or within ``shutdown_timeout`` seconds."""
        self._close(now, due)
        return self._settled(now)

    # -- reactions: the right side of MOVES ----------------------------------------------------------------

    def _happen(self, entry: Entry, happening: Happening, crash: Crash | None, now: float) -> None:
        getattr(self, MOVES[entry.state, happening])(entry, crash, now)

    def _ignore(self, entry: Entry, crash: Crash | None, now: float) -> None:
        """Do nothing: the child is being stopped, and this comes too late to matter."""

    def _came_up(self, entry: Entry, _crash: Crash | None, now: float) -> None:
        self.roster.move(entry, State.RUNNING)
        entry.ever_up = True
        entry.asked = None
        self._report("started", now, entry)

    def _returned_early(self, entry: Entry, _crash: Crash | None, now: float) -> None:
        # OTP's `ignore`: the child has nothing to do here, which is no fault. A permanent child declares that
        # it always has work.
        if entry.spec.restart == "permanent":
            self._start_failed(entry, self._returned_crash(entry, now), now)
        else:
            entry.ever_up = True
            entry.asked = None
            self._rest(
                entry,
                VERDICTS[entry.spec.restart, Happening.RETURNED],
                now,
                cause="returned before its start",
            )

    def _start_failed(self, entry: Entry, crash: Crash | None, now: float) -> None:
        if crash is None:
            crash = Crash(
                path=(entry.spec.name,),
                exception="tangram.errors.StartTimeout",
                message=f"did not report its start within {entry.spec.start_timeout:g} s",
                at=now,
                incarnation=entry.incarnation,
            )
        entry.failure = crash
        # A temporary child that was running may be restarted by request, but is never retried.
        once = entry.ever_up and entry.spec.restart == "temporary"
        if entry.asked is not None or once:
            self._note(entry, crash)
            self._report("crashed", now, entry, crash=crash)
            fallback, entry.asked = entry.asked or State.REMOVED, None
            if fallback is State.QUARANTINED:
                self._quarantine(entry, crash, now)  # reported again: the request had ended its quarantine
            else:
                self._send_away(entry, fallback, now)
        elif entry.ever_up:
            self._restart(entry, crash, now)
        else:
            self._boot_failed(entry, crash, now)

    def _returned(self, entry: Entry, _crash: Crash | None, now: float) -> None:
        verdict = VERDICTS[entry.spec.restart, Happening.RETURNED]
        if verdict is State.WAITING:
            self._restart(entry, self._returned_crash(entry, now), now)
        else:
            self._rest(entry, verdict, now, cause="returned")
            self._shut_down_after(entry, now)

    def _crashed(self, entry: Entry, crash: Crash | None, now: float) -> None:
        assert crash is not None
        verdict = VERDICTS[entry.spec.restart, Happening.CRASHED]
        if verdict is State.WAITING:
            self._restart(entry, crash, now)
        else:
            self._note(entry, crash)
            self._report("crashed", now, entry, crash=crash)
            self._rest(entry, verdict, now, cause=crash.cause)
            self._shut_down_after(entry, now)

    def _gone(self, entry: Entry, crash: Crash | None, now: float) -> None:
        if crash is not None and entry.state is State.LEAVING:
            # It crashed before its turn to be stopped came. The crash is reported, but not charged: a restart
            # is on its way already.
            self._note(entry, crash)
            self._report("crashed", now, entry, crash=crash)
        self._rest(entry, entry.then, now, cause=None if crash is None else crash.cause)

    def _late(self, entry: Entry, _crash: Crash | None, now: float) -> None:
        entry.lates += 1
        entry.blocks = False
        entry.due = now + entry.spec.stop_timeout
        self._report("stubborn", now, entry)
        if entry.lates >= LATES_ALLOWED and not self.closing and self._awaited(entry):
            message = (
                f"child {entry.spec.name!r} goes on {entry.lates} stop times of "
                f"{entry.spec.stop_timeout:g} s after it was cancelled; "
                "it cannot be started a second time beside itself"
            )
            self._fail(Failure("stubborn", entry.spec.name, message, entry.last_crash), now)
        if entry.lates >= LATES_ALLOWED and self.failure is not None and not self._delay_reported:
            # The supervisor above waits for the end of this one without a limit, and gets no other report.
            self._delay_reported = True
            cause = (
                f"supervisor {self.name!r} gave up and cannot end: child {entry.spec.name!r} goes on "
                f"{entry.lates} stop times of {entry.spec.stop_timeout:g} s after it was cancelled"
            )
            self._report("gave_up", now, entry, cause=cause)

    # -- consequences --------------------------------------------------------------------------------------

    def _boot_failed(self, entry: Entry, crash: Crash, now: float) -> None:
        self._note(entry, crash)
        escalated = entry.spec.start_failure == "fail"
        self._report("crashed", now, entry, crash=crash, escalated=escalated)
        if entry.spec.start_failure == "quarantine":
            self._quarantine(entry, crash, now)
        else:
            self._send_away(entry, State.STOPPED, now)
            message = f"child {entry.spec.name!r} of supervisor {self.name!r} did not start: {crash.cause}"
            self._fail(Failure("boot", entry.spec.name, message, crash), now)

    def _restart(self, entry: Entry, crash: Crash, now: float) -> None:
        """Charge a crash, then stop the children that the strategy restarts together with it."""
        window = entry.spec.window or self.window
        charged = window.charge(now)
        quarantined = window is entry.spec.window and entry.spec.exhausted == "quarantine"
        self._note(entry, crash)
        left = max(0, window.restarts - window.used(now))
        escalated = not charged and not quarantined
        self._report("crashed", now, entry, crash=crash, restarts_left=left, escalated=escalated)
        pace = entry.pace if self.strategy == "one_for_one" else self._pace
        delay = pace.next(self.backoff, now, self._draw())
        if charged:
            entry.restarts += 1
            self.restarts += 1
            self._report("restarting", now, entry, crash=crash, delay=delay)
            self._send_away(entry, State.WAITING, now)
            entry.gate = now + delay
            self._take_down(entry, now + delay, now)
        elif quarantined:
            self._quarantine(entry, crash, now, restarts_left=left)
            self._take_down(entry, now + delay, now)
        else:
            self._send_away(entry, State.STOPPED, now)
            path = " > ".join(crash.path)
            budget = f"more than {window.restarts} restarts in {window.seconds:g} s, the last for"
            why = f"{budget} {path}" if window.restarts else f"it allows no restart of {path}"
            message = f"supervisor {self.name!r} gives up: {why}: {crash.cause}"
            self._fail(Failure("exhausted", entry.spec.name, message, crash), now)

    def _take_down(self, crashed: Entry, gate: float, now: float) -> None:
        """Stop the other children of the crashed child's group; they are started again with it."""
        if self.strategy != "one_for_one":
            self._gate = gate
        goes_with = GROUPS[self.strategy]
        for entry in list(self.entries.values()):
            if entry is not crashed and goes_with(crashed.rank, entry.rank):
                self._take_along(entry, now)

    def _take_along(self, entry: Entry, now: float) -> None:
        if entry.state in (State.STARTING, State.RUNNING):
            # A temporary child is never restarted, not even when a sibling's crash stopped it.
            again = entry.spec.restart != "temporary" or entry.asked is not None
            self._send_away(entry, State.WAITING if again else State.REMOVED, now)
        elif entry.state is State.FINISHED:
            # As in OTP: a child that returned belongs to the new incarnation of its group again.
            self._send_away(entry, State.WAITING, now)

    def _quarantine(
        self, entry: Entry, crash: Crash, now: float, *, restarts_left: int | None = None
    ) -> None:
        self._send_away(entry, State.QUARANTINED, now)
        self._report("quarantined", now, entry, crash=crash, restarts_left=restarts_left)

    def _shut_down_after(self, entry: Entry, now: float) -> None:
        """Begin OTP's automatic shutdown if a significant child ended by itself."""
        if not entry.spec.significant or self.auto_shutdown == "never":
            return
        others = (other for other in self.entries.values() if other is not entry and other.spec.significant)
        if self.auto_shutdown == "any_significant" or all(other.state in AT_REST for other in others):
            self._close(now, math.inf)

    def _fail(self, failure: Failure, now: float) -> None:
        if self.failure is None or failure.kind == "fatal":
            self.failure = failure
            self._report("gave_up", now, crash=failure.crash, cause=failure.message)
        self._close(now, math.inf)

    def _close(self, now: float, due: float) -> None:
        self.closing = True
        self._total_due = min(self._total_due, due, now + self.shutdown_timeout)
        for entry in list(self.entries.values()):
            if entry.state not in AT_REST:
                self._send_away(entry, State.STOPPED, now)
            if entry.state is State.STOPPING and entry.lates == 0:
                entry.due = min(entry.due, max(self._total_due, now))

    # -- the next steps ------------------------------------------------------------------------------------

    def _settled(self, now: float) -> list[Effect]:
        if not self.closed:
            self._settle_stops(now)
            self._settle_starts(now)
            self._settle_phase(now)
        self._settled_at = now
        effects, self._effects = self._effects, []
        return effects

    def _settle_stops(self, now: float) -> None:
        leaving = self.roster.in_state(State.LEAVING)
        while leaving and not any(entry.blocks for entry in self.roster.in_state(State.STOPPING).values()):
            entry = leaving[max(leaving)]
            limit = entry.spec.stop_timeout
            if self.closing:
                limit = min(limit, max(0.0, self._total_due - now))
            self.roster.move(entry, State.STOPPING)
            entry.lates = 0
            # Once the total is used up no child is waited for, but each gets its stop time before it is
            # reported as late.
            entry.blocks = limit > 0
            entry.due = now + (limit or entry.spec.stop_timeout)
            self._effects.append(Cancel(entry.spec.name, limit))

    def _settle_starts(self, now: float) -> None:
        if self.closing or self._starts_wait():
            return
        for entry in self._startable(now):
            self.roster.move(entry, State.STARTING)
            entry.incarnation += 1
            entry.gone = False
            entry.due = now + entry.spec.start_timeout
            self._effects.append(Start(entry.spec.name, entry.incarnation))

    def _starts_wait(self) -> bool:
        """Return whether starts wait: in order, until each stop and the start before are over."""
        return self._in_order and self.roster.any_in(UNSETTLED)

    def _startable(self, now: float) -> Iterator[Entry]:
        waiting = self.roster.in_state(State.WAITING)
        candidates = [waiting[rank] for rank in sorted(waiting)]
        for entry in candidates[:1] if self._in_order else candidates:
            if self.gate_of(entry) <= now:
                yield entry

    def _awaited(self, entry: Entry) -> bool:
        """Return whether a restart cannot go on before this child has ended."""
        if entry.then is State.WAITING:
            return True
        return self._in_order and bool(self.roster.in_state(State.WAITING))

    def _settle_phase(self, now: float) -> None:
        if self.closing:
            if not self.roster.any_in(ALIVE):
                self.closed = True
                self._report("stopped", now)
        elif self.roster.has_work and not self.roster.any_in((State.WAITING, *UNSETTLED)):
            self.roster.has_work = self._planned = False
            self.booted = True
            self._report("ready", now)

    # -- changes of one child ------------------------------------------------------------------------------

    @property
    def _in_order(self) -> bool:
        """Whether children start one after another: always, except restarts under one_for_one."""
        return self._planned or self.strategy != "one_for_one"

    def _send_away(self, entry: Entry, then: State, now: float) -> None:
        """Bring a child to the state ``then``: at once if its task has ended, else after its stop."""
        if entry.gone:
            self._rest(entry, then, now, quiet=True)
            return
        entry.then = then
        if then is State.WAITING:
            self.roster.has_work = True
        if entry.state in (State.STARTING, State.RUNNING):
            self.roster.move(entry, State.LEAVING)

    def _rest(
        self, entry: Entry, state: State, now: float, *, cause: str | None = None, quiet: bool = False
    ) -> None:
        if not quiet:
            self._report("stopped", now, entry, cause=cause)
        entry.lates = 0
        entry.blocks = False
        self.roster.move(entry, state)

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

    def _report(
        self,
        kind: Kind,
        now: float,
        entry: Entry | None = None,
        *,
        crash: Crash | None = None,
        cause: str | None = None,
        delay: float | None = None,
        restarts_left: int | None = None,
        escalated: bool = False,
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
            restarts_left=restarts_left,
            escalated=escalated,
        )
        self._effects.append(Report(event))
