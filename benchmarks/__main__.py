"""Run all benchmarks one after another, and print each figure beside its target.

    make bench [ARGS="--quick | --full | NAME ..."]

They take at most 30 minutes on two idle processors. ``--quick`` takes 4 minutes, with shorter runs that only
show that everything works. ``--full`` takes 10 minutes more, for the figures of supervision at the size of
docs/figures.md. A missed target does not stop the run: the next benchmark follows, and the exit status is 1.
The table of targets is written to ``benchmarks/results/promised.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.lib.processes import ROOT
from benchmarks.lib.report import FIGURES, RESULTS, Promise, machine, promised

NAMES = (
    "channels",
    "declared",
    "singles",
    "joins",
    "presence",
    "requests",
    "existing",
    "workers",
    "nodes",
    "upgrade",
    "supervision",
    "history",
    "startup",
    "reload",
    "hub",
    "bus",
    "routing",
    "console",
    "forward",
)
"""The benchmarks, those that need two idle processors first."""


def run(name: str, arguments: list[str], figures: Path) -> tuple[list[Promise], bool]:
    """Run one benchmark; return its figures with targets, and whether it completed."""
    before = len(read(figures))
    print(f"\n== {name}", flush=True)
    began = time.monotonic()
    program = ROOT / "benchmarks" / f"{name}.py"
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environ = {**os.environ, FIGURES: str(figures), "PYTHONPATH": path}
    status = subprocess.run([sys.executable, program, *arguments], env=environ, check=False).returncode
    promises = read(figures)[before:]
    print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
    # Status 1 means missed targets, which were reported, or a benchmark that failed without a report.
    return promises, status == 0 or any(one.met is False for one in promises)


def read(figures: Path) -> list[Promise]:
    return [Promise(**json.loads(line)) for line in figures.read_text().splitlines()]


def tell(promises: list[Promise], where: str, seconds: float, *, quick: bool) -> None:
    folder = RESULTS / "quick" if quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    text = f"# Targets\n\n{where} All of `make bench` took {seconds / 60:.0f} minutes.\n\n"
    text += promised(promises)
    (folder / "promised.md").write_text(text)
    width = max((len(one.what) for one in promises), default=0)
    print("\n== targets")
    for one in promises:
        verdict = {True: "met", False: "MISSED", None: "not measured"}[one.met]
        print(f"{one.what:{width}}  {one.measured:>26}  {one.target:22} {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="short runs: about four minutes in all")
    size.add_argument(
        "--full", action="store_true", help="supervision with all its rounds: half an hour in all"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=" ".join(NAMES))
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(NAMES))
    if unknown:
        parser.error(f"unknown: {' '.join(unknown)}; expected some of {' '.join(NAMES)}")
    where = machine()
    print(where)
    began = time.monotonic()
    promises: list[Promise] = []
    broken: list[str] = []
    with tempfile.NamedTemporaryFile() as file:
        for name in options.names or NAMES:
            arguments = ["--quick"] if options.quick else []
            if options.full and name == "supervision":
                arguments = ["--full"]
            more, ended = run(name, arguments, Path(file.name))
            promises += more
            if not ended:
                broken.append(name)
    tell(promises, where, time.monotonic() - began, quick=options.quick)
    missed = [one.what for one in promises if one.met is False]
    for what in missed:
        print(f"missed: {what}")
    for name in broken:
        print(f"broken: benchmarks/{name}.py did not come to its end")
    print(f"{len(promises)} promises, {len(missed)} missed, in {(time.monotonic() - began) / 60:.1f} minutes")
    sys.exit(1 if missed or broken else 0)


if __name__ == "__main__":
    main()
