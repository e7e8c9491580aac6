"""How often a test is red although nothing is broken: ``make flaky``.

Runs what is not marked slow 50 times, and everything 3 times, and counts. ``--stress`` runs two at a time,
which finds tests that depend on how fast the machine is.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
RED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
QUIET = ("-q", "--tb=short", "--no-header", "-p", "no:cacheprovider")


def say(line: str) -> None:
    """At once, for who waits an hour for the end."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def start(words: Sequence[str], output: IO[str]) -> subprocess.Popen[str]:
    """One run of pytest in a process of its own; what it says goes into a file."""
    command = [sys.executable, "-m", "pytest", *QUIET, *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True)


def run(words: Sequence[str], beside: int) -> list[tuple[int, str]]:
    """So many runs at once: of each, its status and what it said."""
    with ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(beside)]
        running = [stack.enter_context(start(words, output)) for output in outputs]
        for process in running:
            stack.callback(process.kill)  # for Ctrl-C; nothing where it has ended
        ended = [process.wait() for process in running]
        for output in outputs:
            output.seek(0)
        return [(status, output.read()) for status, output in zip(ended, outputs, strict=True)]


def red_in(status: int, said: str) -> list[str]:
    """The tests that were red in one run; a run that failed without one counts as itself."""
    if status == 0:
        return []
    return sorted(set(RED.findall(said))) or [f"the run itself (status {status})"]


def repeat(name: str, words: Sequence[str], times: int, *, beside: int, keep: Path) -> Counter[str]:
    """Run it ``times`` times, and tell each run; the output of red ones is kept in a folder."""
    found: Counter[str] = Counter()
    done = red = 0
    while done < times:
        began = time.monotonic()
        for status, said in run(words, min(beside, times - done)):
            done += 1
            names = red_in(status, said)
            if names:
                red += 1
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{name.replace(' ', '-')}-{done}.txt").write_text(said)
            found.update(names)
        say(f"{name}: {done} of {times}, {red} red, {time.monotonic() - began:.0f} s")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 if none was red."""
    parser = argparse.ArgumentParser(prog="make flaky", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--fast", type=int, default=50, help="runs of what is not marked slow (50)")
    parser.add_argument("--all", type=int, default=3, help="runs of everything (3)")
    parser.add_argument("--stress", action="store_true", help="two runs at a time")
    parser.add_argument(
        "--keep", type=Path, default=ROOT / ".cache" / "flaky", help="where red runs are kept"
    )
    parser.add_argument("tests", nargs="*", default=["tests"], help="which tests (all)")
    given = parser.parse_args(arguments)

    beside = 2 if given.stress else 1
    found: Counter[str] = Counter()
    for name, times, words in (("not slow", given.fast, ["-m", "not slow"]), ("everything", given.all, [])):
        found += repeat(name, [*words, *given.tests], times, beside=beside, keep=given.keep)
    for test, times in found.most_common():
        say(f"{times:4} times red  {test}")
    say("none was red" if not found else f"what red runs said is in {given.keep}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
