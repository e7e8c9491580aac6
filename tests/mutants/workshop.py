"""Copy the sources with one guard removed, run the named tests on it, and judge.

1. A copy consists of hard links to one clean copy of this checkout; only the mutated file is written anew. So
   the checkout is never touched, and all copies share the compiled modules.
2. A mutant is caught when each of its tests fails by an assertion of that test. A test that cannot be
   imported, or that only the time limit ends, has caught nothing.
"""

from __future__ import annotations

import compileall
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import attrs

from tests.mutants.witness import OUTPUT

__all__ = [
    "CONTROL_LIMIT",
    "ROOT",
    "Line",
    "Mutant",
    "MutationRunner",
    "Run",
    "copy_checkout",
    "judge",
    "link_copy",
]

ROOT = Path(__file__).parents[2]
SOURCES = "src/tangram/"

TIME_LIMIT = 60.0
"""Seconds for one run. Most take one; a run that reaches the limit has caught nothing."""

CONTROL_LIMIT = 240.0
"""Seconds for all the tests at once on a clean copy."""

ASSERTED = frozenset(
    {"AssertionError", "Failed", "InvariantBroken", "SimulationFailed", "StepFailed", "TooSlowError"}
)
"""Exceptions by which tests, invariants and bounds fail; ``Failed`` comes from ``pytest.raises``."""


@attrs.frozen
class Mutant:
    """One guard, removed."""

    guard: str
    """``D1`` to ``D18`` of hazards.md, ``R1`` to ``R10`` for the rules of supervision.md, or a word."""
    name: str
    """The part of the guard."""
    taken: str
    """The behaviour without the guard, as a clause."""
    file: str
    """A path below ``src/tangram``, or a file of the checkout's root."""
    old: str
    """The text to replace, which the file contains exactly once."""
    new: str
    """Its replacement."""
    tests: tuple[str, ...]
    """The node ids that must go red; for a test with parameters, at least one of its items."""
    because: str = ""
    """Text that the failure must contain, for example the name of an invariant."""
    raises: tuple[str, ...] = ()
    """Exceptions that show the damage itself, where the test fails without an assertion."""

    @property
    def id(self) -> str:
        return f"{self.guard}-{self.name}"

    @property
    def path(self) -> str:
        """Return the path of the file below the checkout."""
        return self.file if (ROOT / self.file).is_file() else SOURCES + self.file

    def fault(self, root: Path = ROOT) -> str | None:
        """Return the reason why the mutant cannot be applied, or None."""
        path = root / self.path
        if not path.is_file():
            return f"{self.id}: there is no file {self.path!r}; name the one that the guard has moved to"
        count = path.read_text().count(self.old)
        if count != 1:
            return (
                f"{self.id}: expected its old text exactly once in {self.path!r}, found it {count} times; "
                f"write down how the guard is spelled now: {self.old!r}"
            )
        return None

    def apply(self, root: Path) -> None:
        """Remove the guard in the copy at ``root``."""
        path = root / self.path
        text = path.read_text()
        path.unlink()  # a hard link: the other copies must not change
        path.write_text(text.replace(self.old, self.new))
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            compiled.unlink()


@attrs.frozen
class Line:
    """One line of the witness."""

    node: str
    when: str
    raised: tuple[str, ...]
    message: str = ""


@attrs.frozen
class Run:
    """The outcome of one run."""

    lines: Sequence[Line]
    output: str
    in_time: bool = True


def copy_checkout(to: Path) -> Path:
    """Copy the files that tests need to ``to``, compile them, and return ``to``.

    Compiled files come along, also those in which pytest has rewritten the assertions: to rewrite them takes
    longer than most runs. Python and pytest check that they belong to the copied source, whose time is kept.
    """
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, to / folder)
    for name in ("docs", "examples", "benchmarks", ".cache"):
        if (ROOT / name).exists():
            (to / name).symlink_to(ROOT / name)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy2(path, to)
    compileall.compile_dir(to / "src", quiet=2)
    return to


def link_copy(clean: Path, to: Path) -> Path:
    """Copy the copy by hard links; return ``to``."""
    shutil.copytree(clean, to, copy_function=os.link, symlinks=True)
    return to


class MutationRunner:
    """A client of ``mutation_runner``, which does one run after another."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("mutation_runner.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run_tests(self, root: Path, nodes: Sequence[str], limit: float) -> Run:
        """Run ``nodes`` in the copy at ``root``, with the sources of the copy, in a new process."""
        seen, output = root / "witness.jsonl", root / "output.txt"
        arguments = ["-q", "-p", "no:cacheprovider", "-p", "tests.mutants.witness"]
        # The runner has imported pytest's plugins already; their assertions need no rewriting.
        arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        environ = {
            "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)]),
            "PYTEST_ADDOPTS": "",
            OUTPUT: str(seen),
        }
        request = {
            "root": str(root),
            "arguments": [*arguments, *(["-x"] if len(nodes) == 1 else []), *nodes],
            "environ": environ,
            "output": str(output),
            "limit": limit,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        written = [json.loads(one) for one in seen.read_text().splitlines()] if seen.exists() else []
        lines = [Line(one["node"], one["when"], tuple(one["raised"]), one["message"]) for one in written]
        return Run(lines, output.read_text(errors="replace"), answer["in_time"])

    def run_mutant(self, mutant: Mutant, clean: Path, to: Path) -> list[str]:
        """Make the copy, run the tests, judge; return complaints, none if it was caught."""
        fault = mutant.fault(clean)
        if fault is not None:
            return [fault]
        root = link_copy(clean, to)
        try:
            mutant.apply(root)
            return judge(mutant, self.run_tests(root, mutant.tests, TIME_LIMIT))
        finally:
            shutil.rmtree(root)


def judge(mutant: Mutant, run: Run) -> list[str]:
    """Return complaints about the run of a mutant: none if it was caught."""
    if not run.in_time:
        return [f"{mutant.id}: the time limit ended the run: give the test a bound of its own", run.output]
    found = [one for node in mutant.tests if (one := _complaint(mutant, node, run.lines)) is not None]
    return [*found, run.output] if found else []


def _complaint(mutant: Mutant, node: str, lines: Sequence[Line]) -> str | None:
    unread = [line for line in lines if line.when == "collect" and node.startswith(line.node)]
    if unread:
        return f"{mutant.id}: {unread[0].node} cannot be read: {unread[0].message}"
    mine = [line for line in lines if line.node == node or line.node.startswith(f"{node}[")]
    if not mine:
        return f"{mutant.id}: the node id {node!r} is gone; name the test that holds the guard now"
    red = [line for line in mine if line.raised]
    if not red:
        return f"{mutant.id}: survives {node}, although {mutant.taken}"
    good = ASSERTED | set(mutant.raises)
    for line in red:
        if line.when != "call" or not good.intersection(line.raised):
            raised = ", ".join(line.raised)
            return f"{mutant.id}: {line.node} is red by {raised} ({line.when}), which it does not assert"
    if not any(mutant.because in line.message for line in red):
        return f"{mutant.id}: {node} is red, but does not mention {mutant.because!r}"
    return None
