"""Run a scenario once for each of its steps, with something injected at that step.

The scenario runs once to count its steps, then again with an injection at step k, for every k, until a
run has passed without one. SQLite tests its reaction to a lack of memory in the same way.

A step is one scheduling of one of the server's tasks, as a Trio instrument sees it. Each run has a
loop, a virtual clock, a broker and a web port in memory of its own, and its tasks are scheduled from a
seed, so that step k is the same in each run.

1. A run costs about 30 ms: no file is read twice, plugins are loaded once, nothing is printed, and the
   garbage collector runs between runs. With ``jobs`` the runs are shared among processes.
2. Two numbers k that lead to the same injection are one run: where step k has no target (no broker yet,
   a task outside of all children), the next step with a target is taken, and the numbers in between are
   left out. No other steps are taken for equal, because at each another task is in progress.
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
from typing import Any, Final

import attrs
import trio
import trio.testing

from tangram.config import LoadedConfig
from tangram.groups import first_leaf
from tangram.plugins import Plugin
from tangram.plugins.registry import LoadedPlugins
from tangram.testing.checks.invariants import InvariantBroken
from tangram.testing.checks.log_records import quiet
from tangram.testing.checks.sometimes import observe, sometimes
from tangram.testing.faults.step_faults import (
    HARMLESS_FAULTS,
    KINDS,
    StepFault,
    StepInstrument,
    children_in_state,
)
from tangram.testing.run.server import CHEAP, RunningTangram, TangramEnded, open_tangram
from tangram.testing.run.setup import configure, load_given
from tangram.testing.run.workers import in_processes

__all__ = [
    "KINDS",
    "StepFailed",
    "StepFault",
    "StepReport",
    "every_step",
    "run_every_step",
    "scheduled_from",
]

Scenario = Callable[[RunningTangram], Awaitable[object]]

SCENARIO_SECONDS: Final = 60.0
"""Virtual seconds for one run of a scenario: they cost nothing where nothing hangs."""

STEADY_SECONDS: Final = 120.0
"""Virtual seconds until the tree is at rest again: four start timeouts."""

MOST_STEPS: Final = 100_000
"""Steps after which a scenario is taken for endless."""

COLLECT_EVERY: Final = 25
"""Runs between two passes of the garbage collector. One run makes some MB of garbage, most of it in
cycles.
"""


class StepFailed(AssertionError):
    """A run with an injection at one step ended in a wrong way; the message says which step."""


@attrs.define
class StepReport:
    """Counts of all runs and their outcomes."""

    steps: int = 0
    """Steps of the scenario without an injection."""
    runs: Counter[str] = attrs.field(factory=Counter)
    """Runs, by kind."""
    outcomes: Counter[str] = attrs.field(factory=Counter)
    """Counts by ``kind: outcome``.

    Outcomes are ``up``, ``quarantined`` where that is allowed, ``ended`` with its cause, ``stopped``
    and ``not started``.
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
    """Let Trio schedule the tasks of each batch in an order drawn from ``seed``.

    This is the one place that reaches for Trio's private random generator.
    """
    from trio._core import _run

    before = _run._r.getstate(), _run._ALLOW_DETERMINISTIC_SCHEDULING  # noqa: SLF001 - there is no public name
    _run._r.seed(seed)  # noqa: SLF001 - there is no public name
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]  # noqa: SLF001 - as hypothesis-trio does
    try:
        yield
    finally:
        _run._r.setstate(before[0])  # noqa: SLF001 - there is no public name
        _run._ALLOW_DETERMINISTIC_SCHEDULING = before[1]  # type: ignore[misc]  # noqa: SLF001 - there is no public name


@attrs.frozen
class _Plan:
    """The parameters that all runs share; can be handed to another process."""

    scenario: Scenario
    plugins: list[Plugin | str]
    tables: Mapping[str, Any] | None
    kinds: tuple[StepFault, ...]
    scope: str | None
    seed: int


async def every_step(
    scenario: Scenario | None = None,
    *,
    plugins: Iterable[Plugin | str] = (),
    config: Mapping[str, Any] | None = None,
    kinds: Iterable[StepFault] = KINDS,
    scope: str | None = None,
    step: int | None = None,
    stride: int = 1,
    most: int | None = None,
    jobs: int = 1,
    seed: int = 0,
) -> StepReport:
    """Inject faults at every step of a scenario, once for each step, in one line of a test.

    Each run boots a server, awaits ``scenario(tangram)``, and stops. An exception of the scenario after
    the injection is forgiven. But the server must then come to rest with every plugin that was up, the
    scenario must pass when it is run again, and every invariant must hold.

    Args:
        scenario: the code under test. ``None``: request ``/-/readyz``, restart cleanly, request it
            again.
        plugins: as for ``open_tangram``.
        config: as for ``open_tangram``.
        kinds: the injections; see `KINDS`.
        scope: a child (``"plugin:my_plugin"``): inject only at its steps, at those of tasks below it,
            and while a handler of an installed plugin runs. ``None``: at all steps of the server.
        step: inject at this step only, to play a failure again.
        stride: inject at every so manieth step only.
        most: inject at this many steps at most for each kind, evenly spread over the scenario.
        jobs: number of processes that share the runs; they import plugins and scenario by name.
        seed: of the order in which Trio runs tasks, of all jitter, and of the first step with a stride.

    Raises:
        StepFailed: a run ended in a wrong way; the message names kind, step, seed and task, and how to
            play it again. Or a plugin does not start without an injection. Or nothing was injected: no
            step is in ``scope``, there are fewer steps than ``step``, or no step had a target of the
            kind.
        ValueError: there is no such kind.
    """
    run = partial(run_every_step, scenario, plugins=plugins, config=config, kinds=kinds, scope=scope)
    more = partial(run, step=step, stride=stride, most=most, jobs=jobs, seed=seed)
    return await trio.to_thread.run_sync(more)


def run_every_step(
    scenario: Scenario | None = None,
    *,
    plugins: Iterable[Plugin | str] = (),
    config: Mapping[str, Any] | None = None,
    kinds: Iterable[StepFault] = KINDS,
    scope: str | None = None,
    step: int | None = None,
    stride: int = 1,
    most: int | None = None,
    jobs: int = 1,
    seed: int = 0,
) -> StepReport:
    """Run `every_step` in a synchronous test; arguments and exceptions are the same."""
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
    """Inject at every step, or at the share of this process: each ``shares``-th of them."""
    with _runs(plan) as (once, steps):
        report = StepReport(steps)
        if most is not None:
            stride = max(stride, -(-report.steps // most))
        for kind in plan.kinds:
            at = 1 + random.Random(f"{plan.seed} {kind}").randrange(stride) + share * stride  # noqa: S311 - reproducible
            while at < MOST_STEPS:
                instrument, outcome = once(kind, at)
                if not instrument.struck:
                    break
                report.runs[kind] += 1
                report.outcomes[f"{kind}: {outcome}"] += 1
                while at <= instrument.struck_at:  # the steps in between lead to the same injection
                    at += stride * shares
    return report


def _strike_at(plan: _Plan, step: int) -> StepReport:
    report = StepReport()
    with _runs(plan) as (once, _):
        for kind in plan.kinds:
            instrument, outcome = once(kind, step)
            if not instrument.struck:
                raise StepFailed(
                    f"{kind} found nothing to strike at step {step}: there are {instrument.count}"
                )
            report.steps = max(report.steps, instrument.count)
            report.runs[kind] += 1
            report.outcomes[f"{kind}: {outcome}"] += 1
    return report


Once = Callable[[StepFault, int], tuple[StepInstrument, str]]


@attrs.frozen
class _Parts:
    """The parts of a server that all runs of a process share."""

    config: LoadedConfig
    plugins: LoadedPlugins


@contextmanager
def _runs(plan: _Plan) -> Iterator[tuple[Once, int]]:
    """Prepare the shared parts of all runs, and run the scenario once without an injection.

    Shared are the configuration, the loaded plugins, the silenced log and the pause of the garbage collector.
    Yields a function for one run, and the number of steps.
    """
    runs = 0

    def once(kind: StepFault, at: int) -> tuple[StepInstrument, str]:
        nonlocal runs
        runs += 1
        if runs % COLLECT_EVERY == 0:
            gc.collect()
        return _run_once(plan, parts, StepInstrument(kind, at, plan.scope, undisturbed.left_out))

    with tempfile.TemporaryDirectory(prefix="tangram-steps-") as folder, quiet():
        config = configure(_with_secrets(plan.tables or {}), Path(folder))
        parts = _Parts(config, load_given(plan.plugins, config.config.plugins))
        thresholds = gc.get_threshold()
        gc.collect()
        gc.freeze()
        # Not disabled, because the server asks whether it is on. A pass at a random moment would change which
        # tasks run when.
        gc.set_threshold(0)
        try:
            undisturbed, _ = _run_once(plan, parts, StepInstrument(None, 0, plan.scope))
            yield once, undisturbed.count
        finally:
            gc.set_threshold(*thresholds)
            gc.unfreeze()


def _with_secrets(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Add secrets to the tables.

    Without them a server needs a state folder, which costs 4 ms of each run.
    """
    chosen = {name: dict(table) for name, table in tables.items()}
    for table, key in [("channel", "jwt_secret"), ("server", "operator_token")]:
        chosen.setdefault(table, {}).setdefault(key, f"the-{key}-of-a-server-under-test")
    return chosen


async def serve_and_restart(tangram: RunningTangram) -> None:
    """Play the default scenario: the server is ready, restarts cleanly, and is ready again."""
    for last in (False, True):
        answer = await tangram.http.get("/-/readyz")
        assert answer.status_code == 200, answer.text
        if not last:
            await tangram.server.restart()


def _run_once(plan: _Plan, parts: _Parts, instrument: StepInstrument) -> tuple[StepInstrument, str]:
    kind, at = instrument.kind, instrument.at
    main = partial(_live, instrument, plan, parts)
    try:
        with scheduled_from(plan.seed):
            outcome = trio.run(
                main, clock=trio.testing.MockClock(autojump_threshold=0), instruments=[instrument]
            )
    except Exception as error:
        where = f"with nothing done to it (nothing was struck), seed {plan.seed}"
        if instrument.struck:
            where = f"{kind} at step {at} ({instrument.struck}), seed {plan.seed}"
            again = f"kinds=[{kind!r}], step={at}, seed={plan.seed}"
            again += f", scope={plan.scope!r}" if plan.scope is not None else ""
            where += f" (to play it again: {again})"
        raise StepFailed(f"{where}: {_innermost(error)}") from error
    return instrument, outcome


def _innermost(error: BaseException) -> str:
    error = first_leaf(error)
    return f"{type(error).__name__}: {error}"


async def _live(instrument: StepInstrument, plan: _Plan, parts: _Parts) -> str:
    outcome = "not started"
    try:
        async with open_tangram(
            parts.plugins,
            parts.config,
            fakes=True,
            memory_port=True,
            seed=plan.seed,
            checks=(*CHEAP, "comes_to_rest"),
            on_server=instrument.watch,
        ) as tangram:
            outcome = await _play(instrument, plan.scenario, tangram)
    except TangramEnded as ended:
        # A core part that fails in the first boot ends the server with its cause (rule 2 of supervision).
        if not instrument.struck:
            raise
        if (instrument.kind == "stop") != (ended.status == 0):
            message = f"{instrument.kind} in the first boot ended it with status {ended.status}"
            raise AssertionError(message) from ended
    if instrument.server is not None:
        observe(instrument.server.events)
        sometimes(f"every step: {instrument.kind} at {outcome}", instrument.struck)
    return outcome


async def _play(instrument: StepInstrument, scenario: Scenario, tangram: RunningTangram) -> str:
    if instrument.kind is None:
        _must_be_there(tangram, lambda _name: False, "does not start")
    try:
        with trio.fail_after(SCENARIO_SECONDS):
            await scenario(tangram)
    except InvariantBroken:
        raise
    except Exception:
        if not instrument.struck:
            raise
    if instrument.kind is None:
        instrument.left_out.update(children_in_state(tangram, "quarantined"))
    if not instrument.struck:
        return "up"
    return "stopped" if instrument.kind == "stop" else await _heal(instrument, scenario, tangram)


async def _heal(instrument: StepInstrument, scenario: Scenario, tangram: RunningTangram) -> str:
    """Wait for the outcome of an injection, and check it."""
    outcome = await tangram.wait_steady(seconds=STEADY_SECONDS)
    if instrument.kind in HARMLESS_FAULTS and (crashed := _core_crashes(tangram)):
        raise AssertionError(f"a lost connection crashed {', '.join(crashed)}")
    if outcome == "ended":
        assert tangram.status, "the server ended by itself, without a cause"
        assert any(event.kind == "gave_up" for event in tangram.events), "it ended without a gave_up event"
    elif outcome == "up":
        with trio.fail_after(SCENARIO_SECONDS):
            await scenario(tangram)
    else:
        _must_be_there(tangram, instrument.excuses, "ran and did not come back")
    return outcome


def _must_be_there(tangram: RunningTangram, excuses: Callable[[str], bool], otherwise: str) -> None:
    """Check that no plugin is in quarantine but those that are excused."""
    for name in children_in_state(tangram, "quarantined"):
        causes = [one.cause for one in tangram.events if one.kind == "quarantined" and one.child == name]
        assert excuses(name), f"{name!r} {otherwise}: {causes[-1]}"


def _core_crashes(tangram: RunningTangram) -> list[str]:
    core = {"root", "incarnation"}
    crashed = [one.child or "" for one in tangram.events if one.kind == "crashed" and one.supervisor in core]
    return [name for name in crashed if not name.startswith("plugin:")]
