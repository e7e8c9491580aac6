"""Cancel, crash, break or stop at every step: a scenario is run once to count its steps, then again and
again with something done to it at step k, for every k, until a run has passed without anything being done. It
is the way in which SQLite tests what happens when memory runs out.

A step is one scheduling of one of the server's tasks, as a Trio instrument sees it. Each run has a loop, a
virtual clock and a broker in memory of its own, and its tasks are scheduled from a seed, so that step k is
the same in each.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import attrs
import structlog
import trio
import trio.testing

from tangram.plugins import Plugin
from tangram.supervision import CURRENT_LIFE
from tangram.supervision.lives import Life
from tangram.testing.census import UNDER_TEST
from tangram.testing.faults import InjectedFault
from tangram.testing.invariants import InvariantBroken
from tangram.testing.server import CHEAP, RunningTangram, TangramEnded, open_tangram

__all__ = ["KINDS", "Blow", "StepFailed", "StepReport", "every_step", "run_every_step", "scheduled_from"]

Scenario = Callable[[RunningTangram], Awaitable[object]]
Blow = Literal["cancel", "crash", "drop", "kill", "stop"]

KINDS: tuple[Blow, ...] = ("cancel", "crash", "drop", "kill", "stop")
"""``cancel``: the scope of the child in whose task the step is; ``crash``: an exception in the nearest child
of the tree; ``drop``: every connection to the broker breaks; ``kill``: the broker ends; ``stop``: the whole
server is stopped."""

SCENARIO_SECONDS = 60.0
"""Of virtual time, for one run of a scenario: it costs nothing where nothing hangs."""

STEADY_SECONDS = 120.0
"""Of virtual time, until the tree is at rest again: four start limits."""

MOST_STEPS = 100_000
"""A scenario that goes on for longer never ends."""


class StepFailed(AssertionError):
    """A run with something done to it at one step ended otherwise than it must; the message says which."""


@attrs.define
class StepReport:
    """What was done in all runs, and what came of it."""

    steps: int = 0
    """Steps of the scenario when nothing is done to it."""
    runs: Counter[str] = attrs.field(factory=Counter)
    """Runs, by kind."""
    outcomes: Counter[str] = attrs.field(factory=Counter)
    """``kind: outcome``: ``up`` again, ``quarantined``, ``ended`` with its cause, ``stopped``, ``not
    started``.
    """

    def __str__(self) -> str:
        runs = ", ".join(f"{count} {kind}" for kind, count in sorted(self.runs.items()))
        return f"{self.steps} steps; runs: {runs}; outcomes: {dict(self.outcomes)}"


@contextmanager
def scheduled_from(seed: int) -> Iterator[None]:
    """Trio schedules the tasks of one batch in an order drawn from ``seed``: the one place that reaches for
    its private generator.
    """
    from trio._core import _run

    before = _run._r.getstate(), _run._ALLOW_DETERMINISTIC_SCHEDULING  # noqa: SLF001
    _run._r.seed(seed)  # noqa: SLF001
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]  # noqa: SLF001 - as hypothesis-trio does
    try:
        yield
    finally:
        _run._r.setstate(before[0])  # noqa: SLF001
        _run._ALLOW_DETERMINISTIC_SCHEDULING = before[1]  # type: ignore[misc]  # noqa: SLF001


class Stepper(trio.abc.Instrument):
    """Counts the steps of the server's tasks, and at one of them does something."""

    def __init__(self, kind: Blow | None, at: int) -> None:
        self.kind = kind
        self.at = at
        self.count = 0
        self.struck = ""
        """Where it struck; empty until then."""
        self.server: RunningTangram | None = None

    def watch(self, server: RunningTangram) -> None:
        self.server = server

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.server is None or task.context.get(UNDER_TEST) is not self.server:
            return
        self.count += 1
        # Where there is nothing to strike (a task of no child's, a broker that is not up), the next is taken.
        if self.kind is not None and not self.struck and self.count >= self.at and self._strike(task):
            life = task.context.get(CURRENT_LIFE)
            self.struck = f"task {task.name} of {'the root' if life is None else life.child}"

    def _strike(self, task: trio.lowlevel.Task) -> bool:
        server = self.server
        assert server is not None
        life = task.context.get(CURRENT_LIFE)
        if self.kind == "stop":
            server.stop()
        elif self.kind in {"drop", "kill"}:
            return self._strike_broker(server)
        elif self.kind == "crash":
            return self._crash(server, life)
        elif life is None or life.task is None:
            return False
        else:
            life.scope.cancel()
        return True

    def _strike_broker(self, server: RunningTangram) -> bool:
        broker = server.memory
        assert broker is not None
        if not broker.statistics().up:
            return False
        (broker.drop if self.kind == "drop" else broker.kill)()
        return True

    def _crash(self, server: RunningTangram, life: Life | None) -> bool:
        """In the child itself, or in the nearest above it that has a port."""
        while life is not None:
            try:
                server.crash(life.child, InjectedFault(f"at step {self.count}"))
            except LookupError:
                life = life.supervisor.parent
            else:
                return True
        return False


async def every_step(
    scenario: Scenario | None = None,
    *,
    plugins: Iterable[Plugin | str] = (),
    config: Mapping[str, Any] | None = None,
    kinds: Iterable[Blow] = KINDS,
    stride: int = 1,
    most: int | None = None,
    seed: int = 0,
) -> StepReport:
    """Strike at every step of a scenario, once for each step, in one line of a test.

    Each run boots a server, awaits ``scenario(tangram)``, and stops. What the scenario raises after the blow
    is forgiven; but then the server must come to rest, the scenario must pass if it is run again, and every
    invariant must hold.

    Args:
        scenario: ``None``: ask for ``/-/readyz``, restart cleanly, and ask again.
        plugins: as for ``open_tangram``.
        config: as for ``open_tangram``.
        kinds: what is done; see `KINDS`.
        stride: strike at every so manieth step only.
        most: strike at so many steps at most for each kind, evenly spread over the scenario.
        seed: of the order in which Trio runs tasks, and of where a stride begins.

    Raises:
        StepFailed: a run ended otherwise; the message names kind, step, seed and place.
    """
    run = partial(run_every_step, scenario, plugins=plugins, config=config, kinds=kinds)
    return await trio.to_thread.run_sync(partial(run, stride=stride, most=most, seed=seed))


def run_every_step(
    scenario: Scenario | None = None,
    *,
    plugins: Iterable[Plugin | str] = (),
    config: Mapping[str, Any] | None = None,
    kinds: Iterable[Blow] = KINDS,
    stride: int = 1,
    most: int | None = None,
    seed: int = 0,
) -> StepReport:
    """`every_step` for a synchronous test."""
    listed = list(plugins)
    report = StepReport()
    once = partial(_run_once, scenario or serve_and_restart, listed, config, seed)
    with _quiet():
        stepper, _ = once(kind=None, at=0)
        report.steps = stepper.count
        if most is not None:
            stride = max(stride, -(-report.steps // most))
        for kind in kinds:
            at = 1 + random.Random(f"{seed} {kind}").randrange(stride)  # noqa: S311 - reproducible
            while at < MOST_STEPS:
                stepper, outcome = once(kind=kind, at=at)
                if not stepper.struck:
                    break
                report.runs[kind] += 1
                report.outcomes[f"{kind}: {outcome}"] += 1
                at += stride
    return report


@contextmanager
def _quiet() -> Iterator[None]:
    """Hundreds of runs crash something each: their logs are recorded for the invariants, and not printed."""
    processors = structlog.get_config()["processors"]
    processors.append(_drop)
    try:
        yield
    finally:
        processors.remove(_drop)


def _drop(_logger: Any, _method: str, _event: Any) -> Any:
    raise structlog.DropEvent


async def serve_and_restart(tangram: RunningTangram) -> None:
    """The scenario that every server passes: it is ready, restarts cleanly, and is ready."""
    for last in (False, True):
        answer = await tangram.http.get("/-/readyz")
        assert answer.status_code == 200, answer.text
        if not last:
            await tangram.server.restart()


def _run_once(
    scenario: Scenario,
    plugins: list[Plugin | str],
    config: Mapping[str, Any] | None,
    seed: int,
    *,
    kind: Blow | None,
    at: int,
) -> tuple[Stepper, str]:
    stepper = Stepper(kind, at)
    main = partial(_live, stepper, scenario, plugins, config)
    try:
        with scheduled_from(seed):
            outcome = trio.run(
                main, clock=trio.testing.MockClock(autojump_threshold=0), instruments=[stepper]
            )
    except Exception as error:
        where = f"{kind} at step {at} ({stepper.struck or 'nothing was struck'}), seed {seed}"
        raise StepFailed(f"{where}: {_told(error)}") from error
    return stepper, outcome


def _told(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


async def _live(
    stepper: Stepper, scenario: Scenario, plugins: list[Plugin | str], config: Mapping[str, Any] | None
) -> str:
    outcome = "not started"
    checks = {*CHEAP, "comes_to_rest"}
    if stepper.kind == "cancel":
        # A child that is cancelled by us in the middle of the stop ends before its turn.
        checks.remove("stops_in_reverse_order")
    try:
        async with open_tangram(
            plugins, config, fakes=True, checks=checks, on_server=stepper.watch
        ) as tangram:
            outcome = await _play(stepper, scenario, tangram)
    except TangramEnded:
        # A core part that fails at first boot ends the server, with its cause: rule 2.
        if not stepper.struck:
            raise
    return outcome


async def _play(stepper: Stepper, scenario: Scenario, tangram: RunningTangram) -> str:
    try:
        with trio.fail_after(SCENARIO_SECONDS):
            await scenario(tangram)
    except InvariantBroken:
        raise
    except Exception:
        if not stepper.struck:
            raise
    if not stepper.struck:
        return "up"
    if stepper.kind == "stop":
        return "stopped"
    outcome = await tangram.wait_steady(seconds=STEADY_SECONDS)
    if outcome == "ended":
        assert tangram.status, "the server ended by itself, without a cause"
        assert any(event.kind == "gave_up" for event in tangram.events), "it ended and told nobody why"
    elif outcome == "up":
        with trio.fail_after(SCENARIO_SECONDS):
            await scenario(tangram)
    return outcome
