"""Measure the figures of supervision beside their targets; exit with 1 if one is missed.

    python benchmarks/supervision.py [--quick | --full] [FIGURE ...]

The figures are: restarts readyz stop leftovers blocked redis broker. Without names all are measured, in about
five minutes; with ``--full`` in about 15 and with ``--quick`` in one, with more or fewer rounds.
docs/figures.md says how each is measured, with the numbers of a full run.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import leftovers, readyz, redis_back, restarts, stop
from benchmarks.figures.common import Figure, tell
from benchmarks.lib.report import Promise, conclude

from tangram.cli.logs import configure_logging

Measure = Callable[[], Awaitable[list[Figure]]]

FULL: dict[str, Measure] = {
    "restarts": lambda: restarts.measure(900, 100),
    "readyz": lambda: readyz.measure(100),
    "stop": lambda: stop.measure_stop(10),
    "leftovers": lambda: leftovers.measure(10_000),
    "blocked": lambda: stop.measure_blocked(20),
    "redis": lambda: redis_back.measure_external(60),
    "broker": lambda: redis_back.measure_embedded(60),
}
USUAL: dict[str, Measure] = {
    "restarts": lambda: restarts.measure(300, 40),
    "readyz": lambda: readyz.measure(40),
    "stop": lambda: stop.measure_stop(4),
    "leftovers": lambda: leftovers.measure(2_000, 500),
    "blocked": lambda: stop.measure_blocked(8),
    "redis": lambda: redis_back.measure_external(16),
    "broker": lambda: redis_back.measure_embedded(40),
}
QUICK: dict[str, Measure] = {
    "restarts": lambda: restarts.measure(90, 10),
    "readyz": lambda: readyz.measure(8),
    "stop": lambda: stop.measure_stop(1),
    "leftovers": lambda: leftovers.measure(100, 100),
    "blocked": lambda: stop.measure_blocked(2),
    "redis": lambda: redis_back.measure_external(3),
    "broker": lambda: redis_back.measure_embedded(5),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="few rounds: about a minute in all")
    size.add_argument("--full", action="store_true", help="all rounds: about 15 minutes")
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=" ".join(FULL))
    options = parser.parse_args()
    unknown = sorted(set(options.figures) - set(FULL))
    if unknown:
        parser.error(f"unknown: {' '.join(unknown)}; expected some of {' '.join(FULL)}")
    configure_logging("CRITICAL", "console")
    wanted = QUICK if options.quick else FULL if options.full else USUAL
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Python {platform.python_version()}")
    promises: list[Promise] = []
    began = time.monotonic()
    for name in options.figures or wanted:
        at = time.monotonic()
        for figure in trio.run(wanted[name]):
            print(figure, flush=True)
            if figure.ok is not None:
                promises.append(Promise(figure.what.strip(), figure.measured, figure.target, figure.ok))
        tell(f"  {name}: {time.monotonic() - at:.0f} s")
    print(f"{len(promises)} promises, in {time.monotonic() - began:.0f} s")
    conclude(promises)


if __name__ == "__main__":
    main()
