"""Every parser of bytes from outside keeps its invariants on generated inputs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.runner import Target, run_target
from tests.fuzz.targets import TARGETS, shares

INPUTS = 20_000
"""Inputs of all targets together; ``make fuzz`` runs a million."""

SHARES = shares(TARGETS, INPUTS)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_invariants_hold(target: Target) -> None:
    """No generated input breaks an invariant of the parser."""
    outcome = run_target(target, SHARES[target], seed=1)

    assert outcome.finding is None, f"{outcome.finding.data!r}\n{outcome.finding.problem}"
    assert outcome.inputs == SHARES[target]
    assert outcome.results >= 2


def planted(data: bytes) -> bool:
    if b"!" in data:
        raise RuntimeError("planted")
    return b"?" in data


def test_a_planted_fault_is_found_and_made_small() -> None:
    """An exception is found, with the smallest input that raises it."""
    outcome = run_target(Target("planted", planted, (b"abc",), (b"!", b"xyz?")), 10_000, seed=1)

    assert outcome.finding is not None
    assert outcome.finding.data == b"!"
    assert "RuntimeError: planted" in outcome.finding.problem
    assert outcome.inputs < 1_000


def test_a_planted_delay_and_a_planted_leak_are_found() -> None:
    """An input that costs too much time or memory is found."""
    slow = run_target(Target("slow", lambda data: sum(range(20_000_000)), (b"abc",)), 10, seed=1)
    large = run_target(Target("large", lambda data: len(bytes(5_000_000)), (b"abc",)), 1_000, seed=1)

    assert slow.finding is not None
    assert "processor time" in slow.finding.problem
    assert large.finding is not None
    assert "of memory" in large.finding.problem


def test_the_same_seed_gives_the_same_inputs() -> None:
    """Inputs depend on the seed and the target alone."""
    seen: list[list[bytes]] = []
    for seed in (1, 1, 2):
        inputs: list[bytes] = []
        run_target(Target("seen", inputs.append, (b"abc", b"def"), (b"x",)), 200, seed)
        seen.append(inputs)

    assert seen[0] == seen[1]
    assert seen[0] != seen[2]


@pytest.mark.slow
def test_the_command_runs_the_named_targets() -> None:
    """``python -m tests.fuzz`` prints a table and ends with 0."""
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", "400", "--jobs", "1", "query", "cookies"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "query" in done.stdout
    assert "phoenix_text" not in done.stdout
