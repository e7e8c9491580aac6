"""The decisions alone: a complete table, and random events that never break the rules."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tangram.supervision.decide import Decider
from tangram.supervision.spec import Backoff, Child, Crash, Window
from tangram.supervision.table import ALIVE, MOVES, VERDICTS, Cancel, Effect, Happening, Start, State

INTENSITY, PERIOD = 3, 20.0


async def nothing() -> None: ...


def crash(name: str, at: float) -> Crash:
    return Crash(path=(name,), exception="ValueError", message="boom", at=at)


def test_moves_are_complete() -> None:
    """Each state of a living child handles each end; only starts and stops can be overdue."""
    for state in ALIVE:
        assert (state, Happening.RETURNED) in MOVES
        assert (state, Happening.CRASHED) in MOVES
    overdue = {state for state, happening in MOVES if happening is Happening.OVERDUE}
    assert overdue == {State.STARTING, State.STOPPING}
    assert all(inspect.isfunction(getattr(Decider, name)) for name in MOVES.values())
    assert len(VERDICTS) == 6


class SupervisorMachine(RuleBasedStateMachine):
    """Drives the decider with random events, beside a model that knows only OTP's text.

    The model knows the running children (from the effects alone), the window as a list of times, and the
    promise of each restart type.
    """

    @initialize(
        strategy=st.sampled_from(["one_for_all", "rest_for_one", "one_for_one"]),
        types=st.lists(st.sampled_from(["permanent", "transient", "temporary"]), min_size=1, max_size=4),
    )
    def open(self, strategy: str, types: list[str]) -> None:
        self.now = 0.0
        self.strategy = strategy
        self.types = {f"c{n}": kind for n, kind in enumerate(types)}
        self.alive: dict[str, str] = {}
        self.charges: list[float] = []
        self.planned = False
        self.asked_to_close = False
        self.added = len(types)
        self.rank = {name: n for n, name in enumerate(self.types)}
        children = [Child(name, nothing, restart=kind, start_timeout=30) for name, kind in self.types.items()]  # type: ignore[arg-type]
        self.decider = Decider(
            children,
            strategy=strategy,  # type: ignore[arg-type]
            window=Window(INTENSITY, PERIOD),
            backoff=Backoff(jitter=0.0),
            draw=lambda: 0.5,
        )
        self.do(self.decider.open(self.now))

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Start):
                assert effect.child not in self.alive, "two incarnations of a child overlap"
                assert not self.decider.closing, "a start after the stop was asked for"
                if self.strategy != "one_for_one":
                    assert set(self.alive.values()) <= {"up"}, "a start beside a stop or another start"
                self.alive[effect.child] = "starting"
            elif isinstance(effect, Cancel):
                self._check_cancel(effect)
                self.alive[effect.child] = "cancelled"
            elif effect.event.kind == "restarting":
                assert effect.event.delay is not None
                assert 0 <= effect.event.delay <= 5.0

    def _check_cancel(self, effect: Cancel) -> None:
        assert self.alive.get(effect.child) in ("starting", "up")
        assert effect.limit <= 5.0
        if self.decider.closing and effect.limit > 0:
            behind = [n for n, how in self.alive.items() if self.rank[n] > self.rank[effect.child]]
            assert all(self.decider.entries[n].lates for n in behind), "stopped before its juniors were gone"

    def pick(self, data: st.DataObject, *states: str) -> str:
        return data.draw(st.sampled_from(sorted(n for n, how in self.alive.items() if how in states)))

    def has(self, *states: str) -> bool:
        return any(how in states for how in self.alive.values())

    @precondition(lambda self: self.has("starting"))
    @rule(data=st.data())
    def starts(self, data: st.DataObject) -> None:
        name = self.pick(data, "starting")
        self.alive[name] = "up"
        self.do(self.decider.started(name, self.now))

    @precondition(lambda self: self.has("starting", "up"))
    @rule(data=st.data())
    def crashes(self, data: st.DataObject) -> None:
        name = self.pick(data, "starting", "up")
        entry = self.decider.entries[name]
        before, was, boot = dict(self.alive), entry.state, not entry.ever_up
        asked = entry.asked is not None
        del self.alive[name]
        self.do(self.decider.ended(name, self.now, crash(name, self.now)))
        if was is State.STARTING and (boot or asked):
            return
        if was in (State.RUNNING, State.STARTING) and self.types[name] != "temporary":
            self._charged(name, before)
        else:
            self._not_restarted(name, was)

    def _charged(self, name: str, before: dict[str, str]) -> None:
        self.charges = [at for at in self.charges if at >= self.now - PERIOD] + [self.now]
        too_many = len(self.charges) > INTENSITY
        assert (self.decider.failure is not None) == too_many
        if too_many:
            return
        for other, how in before.items():
            if other == name or self.decider.entries.get(other) is None:
                continue
            goes = self.strategy == "one_for_all" or (
                self.strategy == "rest_for_one" and self.rank[other] > self.rank[name]
            )
            if goes:
                assert self.decider.entries[other].state is not State.RUNNING
            elif how == "up" and not self.planned:
                assert self.decider.entries[other].state in (State.RUNNING, State.LEAVING)

    def _not_restarted(self, name: str, was: State) -> None:
        if self.types[name] == "temporary":
            assert name not in self.decider.entries or was is State.LEAVING

    @precondition(lambda self: self.has("up"))
    @rule(data=st.data())
    def returns(self, data: st.DataObject) -> None:
        name = self.pick(data, "up")
        was = self.decider.entries[name].state
        before = dict(self.alive)
        del self.alive[name]
        self.do(self.decider.ended(name, self.now))
        if was is not State.RUNNING:
            return
        if self.types[name] == "permanent":
            self._charged(name, before)
        elif self.types[name] == "transient":
            assert self.decider.entries[name].state is State.FINISHED
        else:
            assert name not in self.decider.entries

    @precondition(lambda self: self.has("cancelled"))
    @rule(data=st.data(), dirty=st.booleans())
    def obeys(self, data: st.DataObject, *, dirty: bool) -> None:
        name = self.pick(data, "cancelled")
        restarts = self.decider.restarts
        failed = self.decider.failure
        del self.alive[name]
        self.do(self.decider.ended(name, self.now, crash(name, self.now) if dirty else None))
        assert self.decider.restarts == restarts, "what is raised after a requested stop is no crash"
        assert self.decider.failure is failed

    @rule(seconds=st.sampled_from([0.01, 0.5, 4.0, 25.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.do(self.decider.tick(self.now))
        # An overdue start is a failed one: its charge is taken over from the window, times in order.
        self.charges = list(self.decider.window._charged)

    @rule(data=st.data())
    def is_stopped(self, data: st.DataObject) -> None:
        if self.decider.entries:
            name = data.draw(st.sampled_from(sorted(self.decider.entries)))
            self.do(self.decider.stop(name, self.now))
            entry = self.decider.entries.get(name)
            assert entry is None or entry.state is not State.RUNNING

    @rule(data=st.data())
    def is_restarted(self, data: st.DataObject) -> None:
        if self.decider.entries:
            name = data.draw(st.sampled_from(sorted(self.decider.entries)))
            used = self.decider.window.used(self.now)
            self.do(self.decider.restart(name, self.now))
            assert self.decider.window.used(self.now) == used

    @rule(kind=st.sampled_from(["permanent", "transient", "temporary"]))
    def is_added(self, kind: str) -> None:
        name = f"c{self.added}"
        self.rank[name] = self.added
        self.added += 1
        self.types[name] = kind
        self.do(self.decider.add(Child(name, nothing, restart=kind), self.now))  # type: ignore[arg-type]

    @precondition(lambda self: any(e.state is State.STOPPED for e in self.decider.entries.values()))
    @rule()
    def is_deleted(self) -> None:
        name = next(n for n, e in self.decider.entries.items() if e.state is State.STOPPED)
        self.do(self.decider.delete(name, self.now))
        assert name not in self.decider.entries

    @rule()
    def all_are_restarted(self) -> None:
        self.planned = True
        self.do(self.decider.restart_all(self.now))

    @rule()
    def hurries(self) -> None:
        self.do(self.decider.hurry(self.now))

    @rule(chance=st.integers(0, 9))
    def closes(self, chance: int) -> None:
        if chance == 0:
            self.asked_to_close = True
            self.do(self.decider.close(self.now))

    @invariant()
    def agrees_with_the_effects(self) -> None:
        if not hasattr(self, "decider"):
            return
        entries = self.decider.entries
        assert {n for n, e in entries.items() if e.state in ALIVE} == set(self.alive)
        assert all((e.state in ALIVE) == (not e.gone) for e in entries.values())
        assert {n for n, how in self.alive.items() if how == "cancelled"} == {
            n for n, e in entries.items() if e.state is State.STOPPING
        }
        assert sum(len(found) for found in self.decider.roster._by_state.values()) == len(entries)

    @invariant()
    def ends_when_all_are_gone(self) -> None:
        if hasattr(self, "decider") and self.decider.closing:
            assert self.decider.closed == (not self.alive)
            assert self.asked_to_close or self.decider.failure is not None

    @invariant()
    def there_is_always_a_next_step(self) -> None:
        """While there is work, a child can report, or time moves the supervisor on."""
        if not hasattr(self, "decider"):
            return
        if any(e.state in (State.WAITING, State.LEAVING) for e in self.decider.entries.values()):
            busy = any(how in ("starting", "cancelled") for how in self.alive.values())
            assert busy or self.decider.wake_at < float("inf")


TestSupervisorMachine = pytest.mark.slow(SupervisorMachine.TestCase)
TestSupervisorMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
