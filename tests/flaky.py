"""How often a test is red although nothing is broken: ``make flaky``.

Runs what is not marked slow 50 times, and everything 3 times, and counts. Everything is what ``make test``
runs: what is tested in the process is tested again where FastAPI is installed. ``--stress`` runs two at a
time, which finds tests that depend on how fast the machine is.
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
"""What ``make test`` runs a second time, in the environment that has FastAPI."""

RUN_SECONDS = 3600.0
"""For one run of pytest. All parts of CI have 20 minutes together: one that takes three times as long on a
slow machine, beside another, is still not taken for one that hangs.
"""

ASK_SECONDS = 30.0
"""For a run that hangs to tell where, and to end what it has started, when it is asked to end: a server that
a test runs has 15 s. Then it is killed.
"""

END_SECONDS = 5.0
"""SIGKILL ends a process at once unless the kernel holds it."""


@attrs.define
class Found:
    """What all runs came to."""

    red: Counter[str] = attrs.field(factory=Counter)
    """How often, by test."""
    seconds: dict[str, list[float]] = attrs.field(factory=dict)
    """Of each run, by what was run."""
    red_runs: int = 0


@attrs.frozen
class Run:
    """One run that has ended."""

    status: int
    said: str
    seconds: float
    hung: bool = False
    """It did not end in time."""

    @property
    def red(self) -> list[str]:
        """Who was red in it."""
        return red_in(self.status, self.said) + (["a run that did not end in time"] if self.hung else [])


def say(line: str) -> None:
    """At once, for who waits an hour for the end."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def start(command: Sequence[str], output: IO[str]) -> subprocess.Popen[str]:
    """One run of pytest in a process group of its own; what it says goes into a file."""
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
    """Whether it ended in time; one that goes on is asked to end (Ctrl-C: pytest tells where it stands), and
    made to.
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
    """Nothing of its process group goes on."""
    with suppress(ProcessLookupError):  # nobody is left of it
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(END_SECONDS)


def run(command: Sequence[str], beside: int, within: float) -> list[Run]:
    """So many runs at once; none takes longer than so many seconds."""
    with ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(beside)]
        began = time.monotonic()
        running: list[subprocess.Popen[str]] = []
        for output in outputs:
            running.append(start(command, output))
            stack.callback(end, running[-1])  # for Ctrl-C, and for what a run has left behind
        ended = []
        for process, output in zip(running, outputs, strict=True):
            hung = not wait(process, began + within)
            seconds = time.monotonic() - began
            output.seek(0)
            ended.append(Run(process.returncode, output.read(), seconds, hung))
        return ended


def red_in(status: int, said: str) -> list[str]:
    """The tests that were red in one run; a run that failed without one counts as itself."""
    if status == 0:
        return []
    return sorted(set(RED.findall(said))) or [f"the run itself (status {status})"]


def repeat(
    name: str, command: Sequence[str], times: int, found: Found, *, beside: int, keep: Path, within: float
) -> None:
    """Run it ``times`` times, and tell each run; the output of red ones is kept in a folder."""
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
    """All in one line; ``load`` is that of the last minute, at the begin and at the end."""
    runs = sum(map(len, found.seconds.values()))
    each = ", ".join(f"{statistics.median(took):.0f} s {name}" for name, took in found.seconds.items())
    loads = f"load {load[0]:.1f} at the begin, {load[1]:.1f} at the end"
    return f"{runs} runs, {found.red_runs} red; in the median {each or 'nothing'}; {loads}"


def arguments_of(words: Sequence[str] | None) -> argparse.Namespace:
    """What is on the command line."""
    parser = argparse.ArgumentParser(prog="make flaky", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--fast", type=int, default=50, help="runs of what is not marked slow (50)")
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
    """The exit status: 0 if none was red."""
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
    say("none was red" if not found.red else f"what red runs said is in {given.keep}")
    say(summary(found, (load, os.getloadavg()[0])))
    return 1 if found.red else 0


if __name__ == "__main__":
    sys.exit(main())
