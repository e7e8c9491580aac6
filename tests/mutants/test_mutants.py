"""A test goes red without each guard of hazards.md and each rule of supervision.md."""

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
    """The table removes D1-D18 and the rules 1-10 at least once each."""
    assert [mutant for mutant in MUTANTS if mutant.guard == guard]


def test_ids_are_names() -> None:
    """No two mutants have the same id, and each describes its effect."""
    ids = [mutant.id for mutant in MUTANTS]

    assert sorted(set(ids)) == sorted(ids)
    assert all(mutant.taken and mutant.tests for mutant in MUTANTS)


def test_each_old_text_is_in_the_sources() -> None:
    """The old text of each mutant stands exactly once in its file; else mend the table."""
    assert [fault for mutant in MUTANTS if (fault := mutant.fault())] == []


def test_each_named_test_exists() -> None:
    """Each node id names a file and a function in it; else mend the table."""
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
def test_an_unchanged_copy_is_green(control: Run) -> None:
    """All tests that the table names are green, in time, on an unchanged copy."""
    red = [f"{line.node}: {line.message}" for line in control.lines if line.raised]

    assert control.in_time, control.output
    assert red == [], control.output
    ran = {line.node.partition("[")[0] for line in control.lines}
    assert {node.partition("[")[0] for mutant in MUTANTS for node in mutant.tests} <= ran, control.output


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.id for mutant in MUTANTS])
def test_caught(mutant: Mutant, verdict: Callable[[Mutant], list[str]]) -> None:
    """The test of a guard fails by an assertion without the guard."""
    complaints = verdict(mutant)

    assert not complaints, "\n".join(complaints)
