"""Cancel, crash, break or stop at every step: a scenario is run once to count its steps, then again and
again with something done to it at step k, for every k, until a run has passed without anything being done. It
is the way in which SQLite tests what happens when memory runs out.

A step is one scheduling of one of the server's tasks, as a Trio instrument sees it. Each run has a loop, a
virtual clock, a broker and a web port in memory of its own, and its tasks are scheduled from a seed, so that
step k is the same in each.

1. A run costs about 40 ms: nothing is read from files twice, nothing is printed, and the garbage collector
   runs between runs. With ``jobs`` they are shared among processes.
2. Two numbers k that come to the same blow are one run: where there is nothing to strike at step k (no broker
   yet, a task of no child's), the next step is taken that has something, and the numbers in between are left
   out. Nothing else is taken for equal: at each other step another task is on its way.
"""

from __future__ import annotations

import gc
import random
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import attrs
import trio
import trio.testing

from tangram.config import Loaded as LoadedConfig
from tangram.plugins import Plugin
from tangram.supervision import CURRENT_LIFE
from tangram.supervision.lives import Life
from tangram.testing.census import UNDER_TEST
from tangram.testing.faults import InjectedFault, NothingToStrike
from tangram.testing.given import configure
from tangram.testing.invariants import InvariantBroken
from tangram.testing.reached import observe, sometimes
from tangram.testing.record import quiet
from tangram.testing.seams import SEAMS, Operation
from tangram.testing.server import CHEAP, RunningTangram, TangramEnded, open_tangram
from tangram.testing.workers import in_processes

__all__ = [
    "KINDS",
    "Blow",
    "StepFailed",
    "StepReport",
    "every_step",
    "run_every_step",
    "scheduled_from",
]

Scenario = Callable[[RunningTangram], Awaitable[object]]
Blow = Literal["cancel", "crash", "drop", "kill", "reset", "stop", "dial", "send", "receive"]

KINDS: tuple[Blow, ...] = ("cancel", "crash", "drop", "kill", "reset", "stop", *SEAMS)
"""``cancel``: the scope of the child in whose task the step is; ``crash``: an exception in the nearest child
of the tree; ``drop``: every connection to the broker breaks; ``kill``: the broker ends; ``reset``: every
connection to the web port breaks; ``stop``: the whole server is stopped; ``dial``, ``send``, ``receive``: the
next such operation towards the broker raises."""

HARMLESS: frozenset[str] = frozenset({"drop", "reset", *SEAMS})
"""What crashes no part of the core: connections come and go."""

SCENARIO_SECONDS = 60.0
"""Of virtual time, for one run of a scenario: it costs nothing where nothing hangs."""

STEADY_SECONDS = 120.0
"""Of virtual time, until the tree is at rest again: four start limits."""

MOST_STEPS = 100_000
"""A scenario that goes on for longer never ends."""

COLLECT_EVERY = 25
"""Runs between two passes of the garbage collector. One run makes some MB of it, most of it in cycles."""


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

    def merge(self, other: StepReport) -> None:
        """Add the runs of another process."""
        self.steps = max(self.steps, other.steps)
        self.runs.update(other.runs)
        self.outcomes.update(other.outcomes)

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

    def __init__(self, kind: Blow | None, at: int, scope: str | None = None) -> None:
        self.kind = kind
        self.at = at
        self.count = 0
        self.struck = ""
        """Where it struck; empty until then."""
        self.struck_at = 0
        self.server: RunningTangram | None = None
        self._scope = scope
        self._files: dict[str, bool] = {}

    def watch(self, server: RunningTangram) -> None:
        self.server = server
        if self.kind in SEAMS:
            server.seam.fails = self._meets

    def _meets(self, operation: Operation) -> bool:
        """An operation at the seam: the first one of the kind from the step on is struck."""
        if operation != self.kind or self.struck or self.count < self.at:
            return False
        self._note(trio.lowlevel.current_task())
        return True

    def _note(self, task: trio.lowlevel.Task) -> None:
        life = task.context.get(CURRENT_LIFE)
        self.struck = f"task {task.name} of {'the root' if life is None else life.child}"
        self.struck_at = self.count

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.server is None or task.context.get(UNDER_TEST) is not self.server:
            return
        if self._scope is not None and not self._in_scope(task, self._scope):
            return
        self.count += 1
        # Where there is nothing to strike (a task of no child's, a broker that is not up), the next is taken.
        if self.kind is not None and not self.struck and self.count >= self.at and self._strike(task):
            self._note(task)

    def _in_scope(self, task: trio.lowlevel.Task, scope: str) -> bool:
        """Whether the task stands below the child, or in code of the plugin that the child is."""
        life = below = task.context.get(CURRENT_LIFE)
        while life is not None:
            if life.child == scope:
                return True
            life = life.supervisor.parent
        if below is None or below.child != "web":
            return False
        # A handler runs in the connection's task.
        return any(self._owned(frame.f_code.co_filename, scope) for frame, _ in task.iter_await_frames())

    def _owned(self, filename: str, scope: str) -> bool:
        known = self._files.get(filename)
        if known is None:
            assert self.server is not None
            tree = self.server.server.tree
            owner = None if tree is None else tree.plugins.owner_of(filename)
            known = self._files[filename] = owner is not None and scope == f"plugin:{owner}"
        return known

    def _strike(self, task: trio.lowlevel.Task) -> bool:
        server = self.server
        assert server is not None
        life = task.context.get(CURRENT_LIFE)
        if self.kind in SEAMS:
            return False  # struck where the operation is
        if self.kind == "stop":
            server.stop()
        elif self.kind == "reset":
            return server.port is not None and server.port.reset() > 0
        elif self.kind in {"drop", "kill"}:
            return self._strike_broker(server)
        elif self.kind == "crash":
            return self._crash(server, life)
        elif life is None or life.task is None:
            return False
        else:
            server.out_of_turn.add(life.child)
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
            except NothingToStrike:
                life = life.supervisor.parent
            else:
                return True
        return False


@attrs.frozen
class _Plan:
    """What is run again and again; can be handed to another process."""

    scenario: Scenario
    plugins: list[Plugin | str]
    tables: Mapping[str, Any] | None
    kinds: tuple[Blow, ...]
    scope: str | None
    seed: int


async def every_step(
    scenario: Scenario | None = None,
    *,
    plugins: Iterable[Plugin | str] = (),
    config: Mapping[str, Any] | None = None,
    kinds: Iterable[Blow] = KINDS,
    scope: str | None = None,
    step: int | None = None,
    stride: int = 1,
    most: int | None = None,
    jobs: int = 1,
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
        scope: a child (``"plugin:my_plugin"``): only its steps are struck at, those of what stands below it,
        and those at which a handler of an installed plugin is on its way. ``None``: all steps of the
        server's.
        step: strike at this step only: how a failure is played again.
        stride: strike at every so manieth step only.
        most: strike at so many steps at most for each kind, evenly spread over the scenario.
        jobs: share the runs among so many processes; plugins and scenario are imported there by their names.
        seed: of the order in which Trio runs tasks, of all jitter, and of where a stride begins.

    Raises:
        StepFailed: a run ended otherwise; the message names kind, step, seed and place, and how to play it
        again. Or nothing could be struck: no step is in ``scope``, or there are fewer than ``step``.
        ValueError: a kind that there is not.
    """
    run = partial(run_every_step, scenario, plugins=plugins, config=config, kinds=kinds, scope=scope)
    more = partial(run, step=step, stride=stride, most=most, jobs=jobs, seed=seed)
    return await trio.to_thread.run_sync(more)


def run_every_step(
    scenario: Scenario | None = None,
    *,
    plugins: Iterable[Plugin | str] = (),
    config: Mapping[str, Any] | None = None,
    kinds: Iterable[Blow] = KINDS,
    scope: str | None = None,
    step: int | None = None,
    stride: int = 1,
    most: int | None = None,
    jobs: int = 1,
    seed: int = 0,
) -> StepReport:
    """`every_step` for a synchronous test."""
    chosen = tuple(kinds)
    if unknown := [kind for kind in chosen if kind not in KINDS]:
        raise ValueError(f"no kind {unknown[0]!r}: expected some of {', '.join(KINDS)}")
    plan = _Plan(scenario or serve_and_restart, list(plugins), config, chosen, scope, seed)
    if step is not None:
        return _strike_at(plan, step)
    report = _strike_shares(plan, stride, most, jobs)
    if not report.steps:
        raise StepFailed(f"no step is in scope {scope!r}: expected a child, as 'plugin:NAME', that runs")
    return report


def _strike_shares(plan: _Plan, stride: int, most: int | None, jobs: int) -> StepReport:
    if jobs == 1:
        return _strike_all(plan, stride, most)
    calls = [partial(_strike_all, plan, stride, most, share=share, shares=jobs) for share in range(jobs)]
    report = StepReport()
    for part in in_processes(calls):
        report.merge(part)
    return report


def _strike_all(plan: _Plan, stride: int, most: int | None, *, share: int = 0, shares: int = 1) -> StepReport:
    """Every step, or the share of this process: each ``shares``-th of them."""
    report = StepReport()
    with _runs(plan) as once:
        report.steps = once(None, 0)[0].count
        if most is not None:
            stride = max(stride, -(-report.steps // most))
        for kind in plan.kinds:
            at = 1 + random.Random(f"{plan.seed} {kind}").randrange(stride) + share * stride  # noqa: S311 - reproducible
            while at < MOST_STEPS:
                stepper, outcome = once(kind, at)
                if not stepper.struck:
                    break
                report.runs[kind] += 1
                report.outcomes[f"{kind}: {outcome}"] += 1
                while at <= stepper.struck_at:  # what lies in between comes to the same blow
                    at += stride * shares
    return report


def _strike_at(plan: _Plan, step: int) -> StepReport:
    report = StepReport()
    with _runs(plan) as once:
        for kind in plan.kinds:
            stepper, outcome = once(kind, step)
            if not stepper.struck:
                raise StepFailed(f"{kind} found nothing to strike at step {step}: there are {stepper.count}")
            report.steps = max(report.steps, stepper.count)
            report.runs[kind] += 1
            report.outcomes[f"{kind}: {outcome}"] += 1
    return report


Once = Callable[[Blow | None, int], tuple[Stepper, str]]


@contextmanager
def _runs(plan: _Plan) -> Iterator[Once]:
    """What is common to all runs is made once: the configuration, the silence, the collector's pause."""
    runs = 0

    def once(kind: Blow | None, at: int) -> tuple[Stepper, str]:
        nonlocal runs
        runs += 1
        if runs % COLLECT_EVERY == 0:
            gc.collect()
        return _run_once(plan, config, kind, at)

    with tempfile.TemporaryDirectory(prefix="tangram-steps-") as folder, quiet():
        config = configure(_with_secrets(plan.tables or {}), Path(folder))
        thresholds = gc.get_threshold()
        gc.collect()
        gc.freeze()
        # Not disabled: the server asks whether it is on. Where it runs, tasks are not the same in each run.
        gc.set_threshold(0)
        try:
            yield once
        finally:
            gc.set_threshold(*thresholds)
            gc.unfreeze()


def _with_secrets(tables: Mapping[str, Any]) -> dict[str, Any]:
    """With secrets of its own a server needs no state folder: 4 ms of each run."""
    chosen = {name: dict(table) for name, table in tables.items()}
    for table, key in [("channel", "jwt_secret"), ("server", "operator_token")]:
        chosen.setdefault(table, {}).setdefault(key, f"the-{key}-of-a-server-under-test")
    return chosen


async def serve_and_restart(tangram: RunningTangram) -> None:
    """The scenario that every server passes: it is ready, restarts cleanly, and is ready."""
    for last in (False, True):
        answer = await tangram.http.get("/-/readyz")
        assert answer.status_code == 200, answer.text
        if not last:
            await tangram.server.restart()


def _run_once(plan: _Plan, config: LoadedConfig, kind: Blow | None, at: int) -> tuple[Stepper, str]:
    stepper = Stepper(kind, at, plan.scope)
    main = partial(_live, stepper, plan, config)
    try:
        with scheduled_from(plan.seed):
            outcome = trio.run(
                main, clock=trio.testing.MockClock(autojump_threshold=0), instruments=[stepper]
            )
    except Exception as error:
        where = f"with nothing done to it (nothing was struck), seed {plan.seed}"
        if stepper.struck:
            where = f"{kind} at step {at} ({stepper.struck}), seed {plan.seed}"
            again = f"kinds=[{kind!r}], step={at}, seed={plan.seed}"
            again += f", scope={plan.scope!r}" if plan.scope is not None else ""
            where += f" (to play it again: {again})"
        raise StepFailed(f"{where}: {_told(error)}") from error
    return stepper, outcome


def _told(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


async def _live(stepper: Stepper, plan: _Plan, config: LoadedConfig) -> str:
    outcome = "not started"
    try:
        async with open_tangram(
            plan.plugins,
            config,
            fakes=True,
            memory_port=True,
            seed=plan.seed,
            checks=(*CHEAP, "comes_to_rest"),
            on_server=stepper.watch,
        ) as tangram:
            outcome = await _play(stepper, plan.scenario, tangram)
    except TangramEnded as ended:
        # A core part that fails at first boot ends the server, with its cause: rule 2.
        if not stepper.struck:
            raise
        if (stepper.kind == "stop") != (ended.status == 0):
            told = f"{stepper.kind} in the first boot ended it with status {ended.status}"
            raise AssertionError(told) from ended
    if stepper.server is not None:
        observe(stepper.server.events)
        sometimes(f"every step: {stepper.kind} at {outcome}", stepper.struck)
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
    if stepper.kind in HARMLESS and (crashed := _core_crashes(tangram)):
        raise AssertionError(f"a lost connection crashed {', '.join(crashed)}")
    if outcome == "ended":
        assert tangram.status, "the server ended by itself, without a cause"
        assert any(event.kind == "gave_up" for event in tangram.events), "it ended and told nobody why"
    elif outcome == "up":
        with trio.fail_after(SCENARIO_SECONDS):
            await scenario(tangram)
    return outcome


def _core_crashes(tangram: RunningTangram) -> list[str]:
    core = {"root", "incarnation"}
    crashed = [one.child or "" for one in tangram.events if one.kind == "crashed" and one.supervisor in core]
    return [name for name in crashed if not name.startswith("plugin:")]
