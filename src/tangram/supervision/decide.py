"""Who is stopped, who is started, when, and when it is too much: the supervisor's decisions.

1. Everything that depends on strategy, restart type, intensity, back-off or order lives here.
2. This file knows no Trio, no clock, no chance and no log: ``now`` is an argument, jitter is drawn from a
   function
   handed in, and exceptions come as `Crash` records.
3. Events in, effects out. Each public method takes one event and returns what is to be done, in that order;
   the
   shell does it and reports what came of it as further events. Nothing is decided anywhere else.

The theory. Each child is in one `State`; `MOVES` (in ``table``) says what a happening does to it in that
state. A happening that is not in the table cannot occur. What a decision wants is written into the children
(who must go, as what each shall rest, from when it may come back), and `_settle` then finds the next steps
from that alone:

- whoever must go is ``LEAVING`` until its turn, then ``STOPPING``: highest place first, one after another;
- with `one_for_all` and `rest_for_one` nobody is started while somebody must still go; then in order, one
  after another;
- with `one_for_one` each child comes back by itself; only boots and planned restarts go in order.

So a crash in the middle of a restart, a stop during back-off, or two crashes at once need no code of their
own: they change what is wanted, and the next steps follow from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from tangram.errors import SpecError
from tangram.supervision.roster import TIMED, UNSETTLED, Roster
from tangram.supervision.spec import (
    Child,
    Crash,
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
    Start,
    State,
)

__all__ = ["Decider"]

LATES_ALLOWED = 3
"""A restart waits this many stop times for a stubborn child, then the supervisor fails: rule 9."""


class Decider(Roster):
    """The decisions of one supervisor. Every public method takes one event and returns the effects, in
    order.
    """

    # -- events --------------------------------------------------------------------------------------------

    def open(self, now: float) -> list[Effect]:
        """Begin the first boot."""
        return self._settled(now)

    def started(self, name: str, now: float) -> list[Effect]:
        """A child reported its start."""
        self._happen(self.entries[name], Happening.STARTED, None, now)
        return self._settled(now)

    def ended(
        self, name: str, now: float, crash: Crash | None = None, *, fatal: bool = False
    ) -> list[Effect]:
        """A child is gone: it returned, or ``crash`` says what it raised. ``fatal``: that ends the
        process.
        """
        entry = self.entries[name]
        entry.gone = True
        if fatal and crash is not None:
            self._note(entry, crash)
            self._move(entry, State.STOPPED)
            self._fail(Failure("fatal", name, crash.cause, crash), now)
        else:
            self._happen(entry, Happening.RETURNED if crash is None else Happening.CRASHED, crash, now)
        return self._settled(now)

    def tick(self, now: float) -> list[Effect]:
        """Time has passed."""
        for entry in [e for state in TIMED for e in self._by[state].values() if e.due <= now]:
            # What happens to one may send the next away: only who is still timed is late.
            if entry.state in TIMED:
                self._happen(entry, Happening.OVERDUE, None, now)
        return self._settled(now)

    def add(self, child: Child, now: float) -> list[Effect]:
        """A child is added behind all others, and started in its turn."""
        if child.name in self.entries:
            raise SpecError(
                f"there is a child {child.name!r} already; delete it first, or choose another name"
            )
        if child.significant and self.auto_shutdown == "never":
            raise SpecError(f"child {child.name!r} is significant, but auto_shutdown is 'never'")
        entry = self._enter(child)
        entry.asked = State.REMOVED
        entry.gate = now
        if self.closing:
            self._move(entry, State.REMOVED)
        return self._settled(now)

    def stop(self, name: str, now: float) -> list[Effect]:
        """Somebody asked that a child be stopped, or not be restarted."""
        entry = self.entry(name)
        entry.asked = None
        if entry.state not in AT_REST:
            self._send_away(entry, State.REMOVED if entry.spec.restart == "temporary" else State.STOPPED, now)
        return self._settled(now)

    def restart(self, name: str, now: float) -> list[Effect]:
        """Somebody asked for a restart of one child: not charged; a quarantined one starts with a clear
        window.
        """
        entry = self.entry(name)
        if not self.closing:
            if entry.state in AT_REST:
                entry.asked = entry.state
            if entry.state is State.QUARANTINED and entry.spec.window is not None:
                entry.spec.window.clear()
                entry.pace = Pace()
            self._tell("planned", now, entry)
            self._send_away(entry, State.WAITING, now)
            entry.gate = now
        return self._settled(now)

    def restart_all(self, now: float, reason: str = "") -> list[Effect]:
        """A planned clean restart of everybody, whatever the strategy; the quarantined get another chance."""
        if not self.closing:
            self._tell("planned", now, cause=reason)
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
        self._move(entry, State.REMOVED)
        return self._settled(now)

    def hurry(self, now: float) -> list[Effect]:
        """What was missing is back: nobody waits any longer."""
        self._gate = min(self._gate, now)
        for entry in self.entries.values():
            entry.gate = min(entry.gate, now)
        return self._settled(now)

    def close(self, now: float, due: float = math.inf) -> list[Effect]:
        """Stop everything; it should be over at ``due``, and after ``shutdown_timeout`` at the latest."""
        self._close(now, due)
        return self._settled(now)

    # -- what a happening does: the right side of MOVES ----------------------------------------------------

    def _happen(self, entry: Entry, happening: Happening, crash: Crash | None, now: float) -> None:
        getattr(self, MOVES[entry.state, happening])(entry, crash, now)

    def _ignore(self, entry: Entry, crash: Crash | None, now: float) -> None:
        """Too late to matter."""

    def _came_up(self, entry: Entry, _crash: Crash | None, now: float) -> None:
        self._move(entry, State.RUNNING)
        entry.ever_up = True
        entry.asked = None
        self._tell("started", now, entry)

    def _returned_early(self, entry: Entry, _crash: Crash | None, now: float) -> None:
        # OTP's `ignore`: it has nothing to do here, and that is no fault. A permanent child says that it
        # always has.
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
        # A temporary child that was running may be restarted by request; retried it is never.
        once = entry.ever_up and entry.spec.restart == "temporary"
        if entry.asked is not None or once:
            self._note(entry, crash)
            self._tell("crashed", now, entry, crash=crash)
            fallback, entry.asked = entry.asked or State.REMOVED, None
            if fallback is State.QUARANTINED:
                self._quarantine(entry, crash, now)  # told: who asked had taken it out of its quarantine
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
            self._tell("crashed", now, entry, crash=crash)
            self._rest(entry, verdict, now, cause=crash.cause)
            self._shut_down_after(entry, now)

    def _gone(self, entry: Entry, crash: Crash | None, now: float) -> None:
        if crash is not None and entry.state is State.LEAVING:
            # It fell by itself before its turn came: told, but the restart that is on its way is restart
            # enough.
            self._note(entry, crash)
            self._tell("crashed", now, entry, crash=crash)
        self._rest(entry, entry.then, now, cause=None if crash is None else crash.cause)

    def _late(self, entry: Entry, _crash: Crash | None, now: float) -> None:
        entry.lates += 1
        entry.blocks = False
        entry.due = now + entry.spec.stop_timeout
        self._tell("stubborn", now, entry)
        if entry.lates >= LATES_ALLOWED and not self.closing and self._awaited(entry):
            message = (
                f"child {entry.spec.name!r} goes on {entry.lates} stop times of "
                f"{entry.spec.stop_timeout:g} s after it was cancelled; "
                "it cannot be started a second time beside itself"
            )
            self._fail(Failure("stubborn", entry.spec.name, message, entry.last_crash), now)
        if entry.lates >= LATES_ALLOWED and self.failure is not None and not self._held_told:
            # Whoever is above waits for this supervisor's end, hears of no crash before, and has no limit.
            self._held_told = True
            cause = (
                f"supervisor {self.name!r} gave up and cannot end: child {entry.spec.name!r} goes on "
                f"{entry.lates} stop times of {entry.spec.stop_timeout:g} s after it was cancelled"
            )
            self._tell("gave_up", now, entry, cause=cause)

    # -- what follows from it ------------------------------------------------------------------------------

    def _boot_failed(self, entry: Entry, crash: Crash, now: float) -> None:
        self._note(entry, crash)
        self._tell("crashed", now, entry, crash=crash)
        if entry.spec.start_failure == "quarantine":
            self._quarantine(entry, crash, now)
        else:
            self._send_away(entry, State.STOPPED, now)
            message = f"child {entry.spec.name!r} of supervisor {self.name!r} did not start: {crash.cause}"
            self._fail(Failure("boot", entry.spec.name, message, crash), now)

    def _restart(self, entry: Entry, crash: Crash, now: float) -> None:
        """A crash that asks for a restart: charge it, then take down whom the strategy names."""
        self._note(entry, crash)
        self._tell("crashed", now, entry, crash=crash)
        pace = entry.pace if self.strategy == "one_for_one" else self._pace
        delay = pace.next(self.backoff, now, self._draw())
        window = entry.spec.window or self.window
        if window.charge(now):
            entry.restarts += 1
            self.restarts += 1
            self._tell("restarting", now, entry, crash=crash, delay=delay)
            self._send_away(entry, State.WAITING, now)
            entry.gate = now + delay
            self._take_down(entry, now + delay, now)
        elif window is entry.spec.window and entry.spec.exhausted == "quarantine":
            self._quarantine(entry, crash, now)
            self._take_down(entry, now + delay, now)
        else:
            self._send_away(entry, State.STOPPED, now)
            message = (
                f"supervisor {self.name!r} gives up: more than {window.restarts} restarts "
                f"in {window.seconds:g} s, the last for {' > '.join(crash.path)}: {crash.cause}"
            )
            self._fail(Failure("exhausted", entry.spec.name, message, crash), now)

    def _take_down(self, crashed: Entry, gate: float, now: float) -> None:
        """The others of its group go and come back with it."""
        if self.strategy != "one_for_one":
            self._gate = gate
        goes_with = GROUPS[self.strategy]
        for entry in list(self.entries.values()):
            if entry is not crashed and goes_with(crashed.rank, entry.rank):
                self._take_along(entry, now)

    def _take_along(self, entry: Entry, now: float) -> None:
        if entry.state in (State.STARTING, State.RUNNING):
            # A temporary child is never restarted, also not when a sibling's restart took it down.
            again = entry.spec.restart != "temporary" or entry.asked is not None
            self._send_away(entry, State.WAITING if again else State.REMOVED, now)
        elif entry.state is State.FINISHED:
            # As in OTP: a child that returned belongs to the new incarnation of its group again.
            self._send_away(entry, State.WAITING, now)

    def _quarantine(self, entry: Entry, crash: Crash, now: float) -> None:
        self._send_away(entry, State.QUARANTINED, now)
        self._tell("quarantined", now, entry, crash=crash)

    def _shut_down_after(self, entry: Entry, now: float) -> None:
        """OTP's automatic shutdown: a significant child ended by itself."""
        if not entry.spec.significant or self.auto_shutdown == "never":
            return
        others = (other for other in self.entries.values() if other is not entry and other.spec.significant)
        if self.auto_shutdown == "any_significant" or all(other.state in AT_REST for other in others):
            self._close(now, math.inf)

    def _fail(self, failure: Failure, now: float) -> None:
        if self.failure is None or failure.kind == "fatal":
            self.failure = failure
            self._tell("gave_up", now, crash=failure.crash, cause=failure.message)
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
        effects, self._effects = self._effects, []
        return effects

    def _settle_stops(self, now: float) -> None:
        leaving = self._by[State.LEAVING]
        while leaving and not any(entry.blocks for entry in self._by[State.STOPPING].values()):
            entry = leaving[max(leaving)]
            limit = entry.spec.stop_timeout
            if self.closing:
                limit = min(limit, max(0.0, self._total_due - now))
            self._move(entry, State.STOPPING)
            entry.lates = 0
            # Where the total is used up nobody is waited for any more, but one has to have had time to be
            # called late.
            entry.blocks = limit > 0
            entry.due = now + (limit or entry.spec.stop_timeout)
            self._effects.append(Cancel(entry.spec.name, limit))

    def _settle_starts(self, now: float) -> None:
        if self.closing or self._held_up():
            return
        for entry in self._startable(now):
            self._move(entry, State.STARTING)
            entry.incarnation += 1
            entry.gone = False
            entry.due = now + entry.spec.start_timeout
            self._effects.append(Start(entry.spec.name, entry.incarnation))

    def _held_up(self) -> bool:
        """In order, nobody starts while somebody must go or another start is going on."""
        return self._in_order and any(self._by[state] for state in UNSETTLED)

    def _startable(self, now: float) -> Iterator[Entry]:
        waiting = self._by[State.WAITING]
        candidates = [waiting[rank] for rank in sorted(waiting)]
        for entry in candidates[:1] if self._in_order else candidates:
            if self.gate_of(entry) <= now:
                yield entry

    def _awaited(self, entry: Entry) -> bool:
        """Whether a restart cannot go on before this child is gone."""
        if entry.then is State.WAITING:
            return True
        return self._in_order and bool(self._by[State.WAITING])

    def _settle_phase(self, now: float) -> None:
        if self.closing:
            if not any(self._by[state] for state in ALIVE):
                self.closed = True
                self._tell("stopped", now)
        elif self._unsettled and not any(self._by[state] for state in (State.WAITING, *UNSETTLED)):
            self._unsettled = self._planned = False
            self.booted = True
            self._tell("ready", now)
