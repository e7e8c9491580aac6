"""The figures of supervision, each beside its target; exit status 1 where one is missed.

    python benchmarks/supervision.py [--quick] [restarts readyz stop leftovers blocked redis broker ...]

Without names all of them, in about 15 minutes; with --quick in under a minute, with fewer rounds. How each
is measured stands in docs/figures.md, with the numbers of a full run.
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
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under a minute in all")
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=" ".join(FULL))
    options = parser.parse_args()
    unknown = sorted(set(options.figures) - set(FULL))
    if unknown:
        parser.error(f"unknown: {' '.join(unknown)}; expected some of {' '.join(FULL)}")
    configure_logging("CRITICAL", "console")
    wanted = QUICK if options.quick else FULL
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Python {platform.python_version()}")
    missed = 0
    began = time.monotonic()
    for name in options.figures or wanted:
        at = time.monotonic()
        for figure in trio.run(wanted[name]):
            missed += figure.ok is False
            print(figure, flush=True)
        tell(f"  {name}: {time.monotonic() - at:.0f} s")
    print(f"{missed} missed, in {time.monotonic() - began:.0f} s")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
