"""Run the fuzzers: ``make fuzz [ARGS="--inputs N --seed N --jobs N TARGET ..."]``.

A seed gives the same inputs. Without one the day decides, so that each day tries new inputs. The exit status
is 1 if an invariant is broken; the input is printed, and kept in ``.cache/fuzz``.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Final

from tests.fuzz.runner import Finding, Outcome, run_target
from tests.fuzz.targets import TARGETS, shares

INPUTS: Final = 1_000_000
"""Inputs of a run, over all targets."""

PIECES: Final = 4
"""Parts of each target's inputs, which run in parallel, each with a seed of its own."""

FOUND: Final = Path(".cache/fuzz")


def main() -> int:
    """Run all targets or the named ones, and print a table."""
    options = _options()
    wanted = [target for target in TARGETS if not options.targets or target.name in options.targets]
    jobs = [
        (target.name, share // PIECES, options.seed * PIECES + piece)
        for target, share in shares(wanted, options.inputs).items()
        for piece in range(PIECES)
    ]
    print(f"{options.inputs} inputs, seed {options.seed}, {options.jobs} processes", flush=True)
    began = time.monotonic()
    with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
        outcomes = list(pool.map(_run, *zip(*jobs, strict=True)))
    _tell(outcomes)
    print(f"{sum(one.inputs for one in outcomes)} inputs in {time.monotonic() - began:.0f} s")
    findings = [one.finding for one in outcomes if one.finding is not None]
    for finding in findings:
        _keep(finding)
    return 1 if findings else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[[], *(target.name for target in TARGETS)])
    parser.add_argument("--inputs", type=int, default=INPUTS)
    parser.add_argument("--seed", type=int, default=int(time.time()) // 86_400)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def _run(name: str, inputs: int, seed: int) -> Outcome:
    target = next(one for one in TARGETS if one.name == name)
    return run_target(target, inputs, seed)


def _tell(outcomes: list[Outcome]) -> None:
    print(f"{'target':18}{'inputs':>10}{'results':>9}{'us/input':>10}{'slowest ms':>12}")
    for target in TARGETS:
        mine = [one for one in outcomes if one.target == target.name]
        if mine:
            inputs = sum(one.inputs for one in mine)
            each = 1e6 * sum(one.seconds for one in mine) / max(inputs, 1)
            slowest = 1e3 * max(one.slowest for one in mine)
            results = max(one.results for one in mine)
            print(f"{target.name:18}{inputs:10}{results:9}{each:10.0f}{slowest:12.1f}")


def _keep(finding: Finding) -> None:
    FOUND.mkdir(parents=True, exist_ok=True)
    path = FOUND / f"{finding.target}-{hashlib.sha256(finding.data).hexdigest()[:12]}"
    path.write_bytes(finding.data)
    print(f"\nBROKEN {finding.target}: {finding.data[:500]!r}\nkept in {path}\n{finding.problem}")


if __name__ == "__main__":
    sys.exit(main())
