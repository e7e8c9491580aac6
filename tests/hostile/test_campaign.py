"""The judge of hostile scenarios, and the short scenarios whose guards all hold."""

from __future__ import annotations

import attrs
import pytest

from tests.hostile.__main__ import table
from tests.hostile.attacks import ATTACKS
from tests.hostile.campaign import Judged, Measured, judge
from tests.hostile.scenarios import MIB, SCENARIOS

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
