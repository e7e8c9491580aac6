"""Attack servers with hostile clients and print a table: ``make hostile``.

``--short`` runs the scenarios of CI for two seconds each, ``--only NAME,...`` chooses scenarios, and
``--seconds`` sets how long each attack lasts. The exit status is 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Final

import trio

from tests.hostile.campaign import Judged, run_judged
from tests.hostile.scenarios import MIB, SCENARIOS

SECONDS: Final = 8.0
"""For each attack: thirty of them, each with its server and its measurements before, take ten minutes."""

SHORT_SECONDS: Final = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the scenarios and print their table; return 1 where a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--short", action="store_true", help="the scenarios of CI, for 2 s each")
    parser.add_argument("--only", default="", help="names with commas between")
    parser.add_argument("--seconds", type=float, help="of each attack")
    options = parser.parse_args(arguments)
    only = set(filter(None, options.only.split(",")))
    if unknown := only - {one.attack for one in SCENARIOS}:
        parser.error(f"no scenario {sorted(unknown)}; expected some of {[one.attack for one in SCENARIOS]}")
    wanted = [one for one in SCENARIOS if (one.attack in only if only else one.short or not options.short)]
    seconds = options.seconds or (SHORT_SECONDS if options.short else SECONDS)
    judged = []
    for scenario in wanted:
        judged.append(trio.run(run_judged, scenario, seconds))
        sys.stderr.write(f"{scenario.attack}: {'; '.join(map(str, judged[-1].faults)) or 'held'}\n")
        sys.stderr.flush()
    sys.stdout.write(table(judged))
    return 1 if any(one.faults for one in judged) else 0


def table(judged: Sequence[Judged]) -> str:
    """Return the measurements as text: a line for each scenario and each broken promise."""
    title = (
        f"{'where':<14} {'attack':<20} {'sent':>9} {'conns':>6} {'blocked':>8} {'memory':>8} {'bound':>8} "
        f"{'p99':>7} {'before':>7} {'closed':>6} {'lines':>5}  result"
    )
    lines = [title]
    for one in judged:
        seen = one.measured
        lines.append(
            f"{one.scenario.where:<14} {one.scenario.attack:<20} {seen.data / MIB:>5.0f} MiB "
            f"{seen.connections:>6} {seen.blocked * 1000:>5.0f} ms {seen.memory / MIB:>4.0f} MiB "
            f"{one.scenario.memory / MIB:>4.0f} MiB {seen.p99 * 1000:>4.0f} ms "
            f"{seen.p99_before * 1000:>4.0f} ms {seen.closed:>6} {seen.lines:>5}  "
            f"{'RED' if one.faults else 'held'}"
        )
        lines += [f"    {fault}" for fault in one.faults]
    held = sum(not one.faults for one in judged)
    return "\n".join([*lines, f"{held} of {len(judged)} scenarios held", ""])


if __name__ == "__main__":
    sys.exit(main())
