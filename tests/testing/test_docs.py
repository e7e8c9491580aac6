"""docs/testing.md names every fault and invariant, and all its examples work."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from inspect import CO_COROUTINE
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from trio.testing import MockClock

from tangram.supervision import SupervisionEvent
from tangram.testing import (
    FAULTS,
    INVARIANTS,
    Chaos,
    Evidence,
    InvariantBroken,
    KeptMessage,
    check,
    open_tangram,
)
from tests.app.helpers import Journal, make_plugin
from tests.testing.test_catalogue import SHORT, make_quick_plugin

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "testing.md").read_text()
EXAMPLES = {
    name: code
    for name, code in re.findall(r"^\| `(\w+)` \|.*\| `(.+)` \|$", PAGE, re.MULTILINE)
    if "(" in code
}
ON_FAKES = sorted(name for name, one in FAULTS.items() if one.on in {"anything", "sockets"})
QUICK = [pytest.param(name, marks=pytest.mark.slow) if name == "plugin_flood" else name for name in ON_FAKES]
"""Faults on fakes; the ones that send much are marked slow."""
SLOW = sorted(FAULTS.keys() - set(ON_FAKES))


@pytest.mark.parametrize("name", [*FAULTS, *INVARIANTS])
def test_each_fault_and_invariant_is_documented(name: str) -> None:
    """Each fault and invariant has a row and an example in docs/testing.md."""
    assert name in EXAMPLES


def test_every_documented_fault_exists() -> None:
    """An example of a renamed fault fails."""
    assert set(EXAMPLES) == {*FAULTS, *INVARIANTS}


async def run(code: str, names: dict[str, Any]) -> None:
    """Run a line as it would stand in an async test."""
    compiled = compile(code, "docs/testing.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = FunctionType(compiled, names)()
    if compiled.co_flags & CO_COROUTINE:
        await result


@pytest.mark.parametrize("name", QUICK)
async def test_the_example_of_a_fault_runs(autojump_clock: MockClock, name: str) -> None:
    """The line on the page injects its fault, and the server is up again."""
    async with open_tangram([make_plugin(Journal())], fakes=True) as tangram:
        chaos = Chaos(tangram)
        await run(EXAMPLES[name], {"chaos": chaos})

        assert [(struck.name, struck.outcome) for struck in chaos.struck] == [(name, "up")]


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
async def test_the_example_of_a_slow_fault_runs(name: str) -> None:
    """The same holds for faults that need a real broker, real time or a process."""
    async with open_tangram([make_quick_plugin()], SHORT) as tangram:
        chaos = Chaos(tangram)
        await run(EXAMPLES[name], {"chaos": chaos})

        assert [(struck.name, struck.outcome) for struck in chaos.struck] == [(name, "up")]


def event(kind: Any, child: str, **more: Any) -> SupervisionEvent:
    return SupervisionEvent(kind, "incarnation", child, 0.0, 1, path=("incarnation", child), **more)


@pytest.mark.parametrize("name", INVARIANTS)
async def test_the_example_of_an_invariant_breaks_it(name: str) -> None:
    """The line on the page breaks its invariant."""
    names = {"check": check, "Evidence": Evidence, "KeptMessage": KeptMessage, "event": event}
    with pytest.raises(InvariantBroken, match=name):
        await run(EXAMPLES[name], names)


@pytest.mark.slow
def test_the_first_tests_of_the_page_run(tmp_path: Path) -> None:
    """The page's tests pass as printed with the plugin of the README; the first has ten lines."""
    plugin = re.search(r"```python\n(# src/my_plugin.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert plugin is not None
    (tmp_path / "my_plugin.py").write_text(plugin.group(1))
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    tests = [block for block in blocks if "def test_" in block]
    mode = "[pytest]\ntrio_mode = true\n"
    (tmp_path / "pytest.ini").write_text(mode)
    for number, block in enumerate(tests):
        # Every step of all takes minutes; that the example runs is seen at a few.
        short = block.replace("every_step(plugins=[plugin])", "every_step(plugins=[plugin], most=2)")
        (tmp_path / f"test_{number}.py").write_text("from my_plugin import plugin\n" + short)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(tests) >= 3
    assert len([line for line in tests[0].splitlines() if line.strip()]) <= 10
