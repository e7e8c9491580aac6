"""The judge of hostile scenarios, and the short scenarios whose guards all hold."""

from __future__ import annotations

import attrs
import pytest

from tests.hostile.__main__ import table
from tests.hostile.attacks import ATTACKS
from tests.hostile.campaign import Judged, Kind, Measured, judge, run_judged
from tests.hostile.scenarios import MIB, SCENARIOS, Scenario

CALM = Measured(
    blocked=0.01,
    memory=MIB,
    p99_before=0.01,
    p99=0.02,
    machine=0.0,
    closed=0,
    lines=1,
    connections=5,
    data=MIB,
    crashes=0,
)
"""Measurements that break no promise."""


def test_each_attack_has_a_scenario() -> None:
    """No attack is left out of the table, and every scenario has an attack."""
    assert sorted(one.attack for one in SCENARIOS) == sorted(ATTACKS)


def test_every_place_is_attacked_in_the_short_version() -> None:
    """CI attacks before and after a join, by HTTP/1.1, HTTP/2 and compression."""
    assert {one.where for one in SCENARIOS if one.short} == {one.where for one in SCENARIOS}


def test_calm_measurements_break_no_promise() -> None:
    """A server that holds has no fault in the table."""
    assert list(judge(SCENARIOS[0], CALM)) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"blocked": 0.08}, "the loop was blocked for 80 ms"),
        ({"memory": 500 * MIB}, "memory grew by 500 MiB"),
        ({"p99": 0.3}, "p99 of good clients was 300 ms"),
        ({"closed": 2}, "2 connections of good clients were closed"),
        ({"lines": 0}, "no log line names"),
        ({"lines": 500}, "500 log lines name"),
        ({"crashes": 1}, "1 children crashed"),
    ],
)
def test_each_broken_promise_is_found(change: dict[str, float], fault: str) -> None:
    """Each measurement beyond its bound is one fault, and is shown in the table."""
    measured = attrs.evolve(CALM, **change)  # type: ignore[arg-type]  # a number each
    faults = list(judge(SCENARIOS[0], measured))

    assert len(faults) == 1
    assert fault in str(faults[0])
    assert "RED" in table([Judged(SCENARIOS[0], measured, faults)])


def test_a_busy_machine_is_allowed_for() -> None:
    """Lateness of a process without a server, and passes without a processor, are no fault of the server."""
    for late in (attrs.evolve(CALM, machine=0.1), attrs.evolve(CALM, starved=0.05)):
        measured = attrs.evolve(late, p99=0.2)

        assert list(judge(SCENARIOS[0], measured)) == []


BLOCKED = attrs.evolve(CALM, blocked=0.055)
LATE = attrs.evolve(CALM, p99=0.3)
LEAKING = attrs.evolve(CALM, memory=500 * MIB)
CLOSING = attrs.evolve(CALM, closed=1)
CRASHING = attrs.evolve(CALM, crashes=1)
SILENT = attrs.evolve(CALM, lines=0)


class Runs:
    """Runs of a scenario whose measurements are given."""

    def __init__(self, *measured: Measured) -> None:
        self.left = list(measured)

    async def run(self, scenario: Scenario, _seconds: float) -> Judged:
        """Judge the next measurements."""
        measured = self.left.pop(0)
        return Judged(scenario, measured, list(judge(scenario, measured)))


async def kinds_of(runs: Runs, *ignored: Kind) -> list[Kind]:
    """Return which promises count as broken."""
    judged = await run_judged(SCENARIOS[0], 1.0, ignored=frozenset(ignored), run=runs.run)
    return [one.kind for one in judged.faults]


@pytest.mark.parametrize("measured", [BLOCKED, LATE], ids=["blocked", "p99"])
async def test_a_time_that_is_broken_in_both_runs_is_a_fault(measured: Measured) -> None:
    """A step that always takes too long is red, on any machine."""
    assert len(await kinds_of(Runs(measured, measured))) == 1


async def test_a_time_that_one_run_breaks_is_no_fault() -> None:
    """A machine that is slow for a moment does not make a scenario red."""
    assert await kinds_of(Runs(BLOCKED, CALM)) == []
    assert await kinds_of(Runs(LATE, CALM)) == []


@pytest.mark.parametrize("measured", [LEAKING, CLOSING, CRASHING, SILENT])
async def test_any_other_promise_counts_at_once(measured: Measured) -> None:
    """Memory, connections, crashes and lines do not depend on the machine: each run decides alone."""
    late = attrs.evolve(measured, blocked=0.055)
    once, second = Runs(late, CALM), Runs(BLOCKED, measured)

    assert len(await kinds_of(once)) == 2
    assert once.left == [CALM]
    assert len(await kinds_of(second)) == 1


async def test_a_calm_scenario_runs_once() -> None:
    """No second run takes time without a reason; an ignored promise is none."""
    calm, late = Runs(CALM, CALM), Runs(LATE, BLOCKED)

    assert await kinds_of(calm) == []
    assert await kinds_of(late, "p99") == []
    assert calm.left == [CALM]
    assert late.left == [BLOCKED]
    assert await kinds_of(Runs(BLOCKED, LATE), "p99") == []
    assert await kinds_of(Runs(BLOCKED, BLOCKED), "p99") == ["blocked"]
