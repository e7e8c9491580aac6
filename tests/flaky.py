"""Count how often each test fails although the code is right: ``make flaky``.

The fast tests (not marked slow) run 50 times, and everything runs 3 times. Everything includes the tests that
``make test`` runs again where FastAPI is installed. ``--stress`` runs two at a time, which finds tests that
depend on the speed of the machine.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

import attrs

ROOT = Path(__file__).parents[1]
RED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
QUIET = ("-q", "--tb=short", "--no-header", "-p", "no:cacheprovider")
WITH_FASTAPI = ("tests/compat",)
"""Folders that ``make test`` runs again in the environment with FastAPI."""

RUN_SECONDS = 3600.0
"""The bound of one run of pytest, in seconds.

All parts of CI have 20 minutes together, so a run that takes three times as long does not count as hanging.
"""

ASK_SECONDS = 30.0
"""Seconds between SIGINT and SIGKILL for a run that hangs.

It reports its position meanwhile and ends the processes that it has started: a server under test has 15 s.
"""

END_SECONDS = 5.0
"""Seconds for a killed process to end: at once, unless the kernel holds it."""


@attrs.define
class Found:
    """The outcome of all runs."""

    red: Counter[str] = attrs.field(factory=Counter)
    """Failures by test."""
    seconds: dict[str, list[float]] = attrs.field(factory=dict)
    """Seconds of each run, by the kind of the run."""
    red_runs: int = 0


@attrs.frozen
class Run:
    """One run that has ended."""

    status: int
    said: str
    seconds: float
    hung: bool = False
    """Whether the run did not end in time."""

    @property
    def red(self) -> list[str]:
        """Return the tests that were red in this run."""
        return red_in(self.status, self.said) + (["a run that did not end in time"] if self.hung else [])


def say(line: str) -> None:
    """Print a line at once: the end of all runs may be an hour away."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def start(command: Sequence[str], output: IO[str]) -> subprocess.Popen[str]:
    """Start pytest in a process group of its own, with its output in a file."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def wait(process: subprocess.Popen[str], deadline: float) -> bool:
    """Wait for a run; return whether it ended in time.

    A run past its deadline gets SIGINT, so that pytest reports its position, and is killed after that.
    """
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(ASK_SECONDS)
        end(process)
        return False
    return True


def end(process: subprocess.Popen[str]) -> None:
    """Kill every process of its group."""
    with suppress(ProcessLookupError):  # the group is empty
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(END_SECONDS)


def run(command: Sequence[str], beside: int, within: float) -> list[Run]:
    """Run ``beside`` copies of a command at once, each for ``within`` seconds at most."""
    with ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(beside)]
        began = time.monotonic()
        running: list[subprocess.Popen[str]] = []
        for output in outputs:
            running.append(start(command, output))
            stack.callback(end, running[-1])  # for Ctrl-C, and for processes that a run has left behind
        ended = []
        for process, output in zip(running, outputs, strict=True):
            hung = not wait(process, began + within)
            seconds = time.monotonic() - began
            output.seek(0)
            ended.append(Run(process.returncode, output.read(), seconds, hung))
        return ended


def red_in(status: int, said: str) -> list[str]:
    """Return the red tests of a run; a failed run without any counts as a test itself."""
    if status == 0:
        return []
    return sorted(set(RED.findall(said))) or [f"the run itself (status {status})"]


def repeat(
    name: str, command: Sequence[str], times: int, found: Found, *, beside: int, keep: Path, within: float
) -> None:
    """Run a command ``times`` times, report each, and keep the output of red runs."""
    done = red = 0
    while done < times:
        began = time.monotonic()
        for one in run(command, min(beside, times - done), within):
            done += 1
            found.seconds.setdefault(name, []).append(one.seconds)
            if one.red:
                red += 1
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{name.replace(' ', '-')}-{done}.txt").write_text(one.said)
            found.red.update(one.red)
        say(f"{name}: {done} of {times}, {red} red, {time.monotonic() - began:.0f} s")
    found.red_runs += red


def summary(found: Found, load: tuple[float, float]) -> str:
    """Return one line for all runs; ``load`` is the machine's at the begin and at the end."""
    runs = sum(map(len, found.seconds.values()))
    each = ", ".join(f"{statistics.median(took):.0f} s {name}" for name, took in found.seconds.items())
    loads = f"load {load[0]:.1f} at the begin, {load[1]:.1f} at the end"
    return f"{runs} runs, {found.red_runs} red; in the median {each or 'nothing'}; {loads}"


def arguments_of(words: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="make flaky", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument(
        "--fast", type=int, default=50, help="runs of the tests that are not marked slow (50)"
    )
    parser.add_argument("--all", type=int, default=3, help="runs of everything (3)")
    parser.add_argument("--stress", action="store_true", help="two runs at a time")
    parser.add_argument("--within", type=float, default=RUN_SECONDS, help="seconds for a run (3600)")
    parser.add_argument(
        "--keep", type=Path, default=ROOT / ".cache" / "flaky", help="where red runs are kept"
    )
    parser.add_argument(
        "--downstream", type=Path, help="a Python with FastAPI, for the second part of everything"
    )
    parser.add_argument("tests", nargs="*", help="which tests, in the first Python alone (all, in both)")
    return parser.parse_args(words)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 if no test was red."""
    given = arguments_of(arguments)
    pytest = (sys.executable, "-m", "pytest", *QUIET)
    tests = given.tests or ["tests"]
    parts: list[tuple[str, int, Sequence[str]]] = [
        ("not slow", given.fast, (*pytest, "-m", "not slow", *tests)),
        ("everything", given.all, (*pytest, *tests)),
    ]
    if given.downstream is not None and not given.tests:
        with_fastapi = (str(given.downstream), "-m", "pytest", *QUIET, *WITH_FASTAPI)
        parts.append(("everything with FastAPI", given.all, with_fastapi))
    found, load = Found(), os.getloadavg()[0]
    for name, times, command in parts:
        beside = 2 if given.stress else 1
        repeat(name, command, times, found, beside=beside, keep=given.keep, within=given.within)
    for test, times in found.red.most_common():
        say(f"{times:4} times red  {test}")
    say("none was red" if not found.red else f"the output of red runs is in {given.keep}")
    say(summary(found, (load, os.getloadavg()[0])))
    return 1 if found.red else 0


if __name__ == "__main__":
    sys.exit(main())
