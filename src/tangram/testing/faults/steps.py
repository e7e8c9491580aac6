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
from typing import Any

import attrs
import trio
import trio.testing

from tangram.config import LoadedConfig
from tangram.groups import first_leaf
from tangram.plugins import Plugin
from tangram.testing.checks.invariants import InvariantBroken
from tangram.testing.checks.log_records import quiet
from tangram.testing.checks.sometimes import observe, sometimes
from tangram.testing.faults.step_faults import HARMLESS, KINDS, Blow, Stepper, in_state
from tangram.testing.run.server import CHEAP, RunningTangram, TangramEnded, open_tangram
from tangram.testing.run.setup import configure
from tangram.testing.run.workers import in_processes

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
    """``kind: outcome``: ``up`` again, ``quarantined`` where that may be, ``ended`` with its cause,
    ``stopped``, ``not started``.
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
    is forgiven; but then the server must come to rest, with every plugin that was up, the scenario must pass
    if it is run again, and every invariant must hold.

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
        again. Or a plugin does not start with nothing done to it. Or nothing could be struck: no step is in
        ``scope``, there are fewer than ``step``, or there was nothing of the kind at any of them.
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
    if chosen and not report.runs:
        what = f"nothing could be struck by {' or '.join(chosen)} in {report.steps} steps with {stride=}"
        wanted = "something of the kind in them, as a connected browser, or a shorter stride"
        raise StepFailed(f"{what}: expected {wanted}")
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
    with _runs(plan) as (once, steps):
        report = StepReport(steps)
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
    with _runs(plan) as (once, _):
        for kind in plan.kinds:
            stepper, outcome = once(kind, step)
            if not stepper.struck:
                raise StepFailed(f"{kind} found nothing to strike at step {step}: there are {stepper.count}")
            report.steps = max(report.steps, stepper.count)
            report.runs[kind] += 1
            report.outcomes[f"{kind}: {outcome}"] += 1
    return report


Once = Callable[[Blow, int], tuple[Stepper, str]]


@contextmanager
def _runs(plan: _Plan) -> Iterator[tuple[Once, int]]:
    """What is common to all runs is made once: the configuration, the silence, the collector's pause; and the
    run in which nothing is done, of which the steps are told.
    """
    runs = 0

    def once(kind: Blow, at: int) -> tuple[Stepper, str]:
        nonlocal runs
        runs += 1
        if runs % COLLECT_EVERY == 0:
            gc.collect()
        return _run_once(plan, config, Stepper(kind, at, plan.scope, undisturbed.left_out))

    with tempfile.TemporaryDirectory(prefix="tangram-steps-") as folder, quiet():
        config = configure(_with_secrets(plan.tables or {}), Path(folder))
        thresholds = gc.get_threshold()
        gc.collect()
        gc.freeze()
        # Not disabled: the server asks whether it is on. Where it runs, tasks are not the same in each run.
        gc.set_threshold(0)
        try:
            undisturbed, _ = _run_once(plan, config, Stepper(None, 0, plan.scope))
            yield once, undisturbed.count
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


def _run_once(plan: _Plan, config: LoadedConfig, stepper: Stepper) -> tuple[Stepper, str]:
    kind, at = stepper.kind, stepper.at
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
    error = first_leaf(error)
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
    if stepper.kind is None:
        _must_be_there(tangram, lambda _name: False, "does not start")
    try:
        with trio.fail_after(SCENARIO_SECONDS):
            await scenario(tangram)
    except InvariantBroken:
        raise
    except Exception:
        if not stepper.struck:
            raise
    if stepper.kind is None:
        stepper.left_out.update(in_state(tangram, "quarantined"))
    if not stepper.struck:
        return "up"
    return "stopped" if stepper.kind == "stop" else await _heal(stepper, scenario, tangram)


async def _heal(stepper: Stepper, scenario: Scenario, tangram: RunningTangram) -> str:
    """What comes of a blow, in the end."""
    outcome = await tangram.wait_steady(seconds=STEADY_SECONDS)
    if stepper.kind in HARMLESS and (crashed := _core_crashes(tangram)):
        raise AssertionError(f"a lost connection crashed {', '.join(crashed)}")
    if outcome == "ended":
        assert tangram.status, "the server ended by itself, without a cause"
        assert any(event.kind == "gave_up" for event in tangram.events), "it ended and told nobody why"
    elif outcome == "up":
        with trio.fail_after(SCENARIO_SECONDS):
            await scenario(tangram)
    else:
        _must_be_there(tangram, stepper.excuses, "ran and did not come back")
    return outcome


def _must_be_there(tangram: RunningTangram, excuses: Callable[[str], bool], otherwise: str) -> None:
    """Nobody is in quarantine but those who may be."""
    for name in in_state(tangram, "quarantined"):
        causes = [one.cause for one in tangram.events if one.kind == "quarantined" and one.child == name]
        assert excuses(name), f"{name!r} {otherwise}: {causes[-1]}"


def _core_crashes(tangram: RunningTangram) -> list[str]:
    core = {"root", "incarnation"}
    crashed = [one.child or "" for one in tangram.events if one.kind == "crashed" and one.supervisor in core]
    return [name for name in crashed if not name.startswith("plugin:")]
