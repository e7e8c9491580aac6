"""The program of a benchmark that compares servers: options, one measurement, a page and its picture."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.lib.processes import keep_off
from benchmarks.lib.report import Results, Target, conclude, machine, write

__all__ = ["add_piece", "compare", "parse_options"]


def parse_options(doc: str | None, *, rounds: int, servers: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line.

    Args:
        doc: the description.
        rounds: the default of ``--rounds``; ``--quick`` has one.
        servers: the names that ``--servers`` may have.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round, under a minute")
    parser.add_argument("--rounds", type=int, help=f"default: {rounds}; quick: 1")
    parser.add_argument("--only", nargs="*", default=[], help="workloads whose name contains one of these")
    parser.add_argument("--servers", nargs="*", default=list(servers), choices=list(servers))
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument(
        "--pieces", type=Path, metavar="FILE", help="add the samples to those in FILE, and tell all of them"
    )
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else rounds)
    options.wanted = lambda name: not options.only or any(word in name for word in options.only)
    options.missing = []
    return options


def add_piece(file: Path, results: Results, where: str) -> tuple[Results, str]:
    """Add a run to the runs in a file, and return the samples of all of them.

    The description of the machine is that of a busy run, if there was one. A run without samples is not
    added, so that ``--servers --pieces FILE`` writes the page of the others.

    Args:
        file: has one run in each line; it is made if there is none.
        results: the samples of this run.
        where: describes the machine during this run.
    """
    if results.samples:
        with file.open("a") as pieces:
            pieces.write(json.dumps({"where": where, "samples": results.samples}) + "\n")
    every, told = Results(), ""
    for piece in map(json.loads, file.read_text().splitlines()):
        if not told or "Nothing else" not in piece["where"]:
            told = piece["where"]
        for workload, contenders in piece["samples"].items():
            for contender, samples in contenders.items():
                every.samples.setdefault(workload, {}).setdefault(contender, []).extend(samples)
    return every, told


def compare(
    name: str,
    options: argparse.Namespace,
    *,
    measure: Callable[[argparse.Namespace], Results],
    targets: Callable[[Results], list[Target]],
    text: Callable[[Results, argparse.Namespace, str], str],
    picture: Callable[[Results], str],
) -> None:
    """Measure, write or print the page, and end with status 1 if a target was missed.

    Args:
        name: of the files in ``benchmarks/results``.
        options: those of ``parse_options``.
        measure: runs all workloads.
        targets: returns the figures with targets.
        text: returns the page; its last argument describes the machine.
        picture: returns the plots as SVG.
    """
    keep_off()
    where = machine()
    try:
        results = measure(options)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error}\n{error.stderr!r}")
    if options.pieces is not None:
        results, where = add_piece(options.pieces, results, where)
    told = text(results, options, where)
    promises = [target.promise() for target in targets(results)]
    if options.no_write:
        print("\n" + told)
    else:
        write(name, told, picture(results), quick=options.quick)
    conclude(promises)
