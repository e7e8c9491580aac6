"""Every guard of hazards.md and every rule of supervision.md is held by a test that goes red without it."""

from __future__ import annotations

import ast
from collections.abc import Callable

import pytest

from tests.mutants.table import MUTANTS
from tests.mutants.workshop import ROOT, Mutant, Run

GUARDS = [f"D{number}" for number in range(1, 19)]
RULES = [f"R{number}" for number in range(1, 11)]


@pytest.mark.parametrize("guard", [*GUARDS, *RULES])
def test_each_guard_and_each_rule_has_a_mutant(guard: str) -> None:
    """D1-D18 and the rules 1-10 are each taken away at least once."""
    assert [mutant for mutant in MUTANTS if mutant.guard == guard]


def test_ids_are_names() -> None:
    """No two mutants have the same id, and each says what it takes away."""
    ids = [mutant.id for mutant in MUTANTS]

    assert sorted(set(ids)) == sorted(ids)
    assert all(mutant.taken and mutant.tests for mutant in MUTANTS)


def test_what_is_taken_away_is_still_there() -> None:
    """The text of each guard stands exactly once where the table says; else the table is to be mended."""
    assert [fault for mutant in MUTANTS if (fault := mutant.fault())] == []


def test_the_tests_that_must_go_red_are_still_there() -> None:
    """Each node id names a file and a function in it; else the table is to be mended."""
    nodes = {node.partition("[")[0] for mutant in MUTANTS for node in mutant.tests}
    functions = {
        f"{path.relative_to(ROOT)}::{each.name}"
        for path in {ROOT / node.partition("::")[0] for node in nodes}
        if path.is_file()
        for each in ast.walk(ast.parse(path.read_text()))
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    }

    assert sorted(nodes - functions) == []


@pytest.mark.slow
def test_nothing_is_red_where_nothing_is_taken_away(control: Run) -> None:
    """On an unchanged copy all the tests that the table names are green, in time."""
    red = [f"{line.node}: {line.told}" for line in control.lines if line.raised]

    assert control.in_time, control.output
    assert red == [], control.output
    ran = {line.node.partition("[")[0] for line in control.lines}
    assert {node.partition("[")[0] for mutant in MUTANTS for node in mutant.tests} <= ran, control.output


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.id for mutant in MUTANTS])
def test_caught(mutant: Mutant, verdict: Callable[[Mutant], list[str]]) -> None:
    """Without the guard its test goes red, by what the test asserts."""
    complaints = verdict(mutant)

    assert not complaints, "\n".join(complaints)
