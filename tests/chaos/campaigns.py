"""Run every fault over each example plugin and over no plugin: ``make chaos``.

Each of three seeds is a campaign. It has a server, ports, a state folder and a broker of its own, and
ends when each fault has struck once, after `MOST_SECONDS` at the latest. The table at the end has a row
for each campaign; the exit status is 1 where one did not hold.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Final

import attrs
import trio

from tangram.chaos.campaign import run_campaign
from tangram.testing import FAULTS
from tangram.testing.checks.log_records import quiet
from tangram.testing.run.workers import cores, in_processes

EXAMPLES: Final = (
    "tangram_example_commands",
    "tangram_example_endpoint",
    "tangram_example_fleet",
    "tangram_example_periodic",
    "tangram_example_publish",
    "tangram_demo",
)
"""Every plugin under ``examples/``."""

MOST_SECONDS: Final = 180.0
"""Seconds for one campaign.

A pass through all faults takes a minute: the slowest, a service that ignores its cancellation, takes 11
s. A busy machine is allowed three times as long.
"""

LEFT_OUT_FOR_PLUGINS: Final = "process"
"""Faults that start a server of their own strike the same server under any configuration: once is enough."""


@attrs.frozen
class Row:
    """The result of one campaign."""

    plugin: str
    """Its name, empty for a server without plugins."""
    seed: int
    struck: int
    seconds: float
    skipped: dict[str, str]
    """Faults that did not strike, and why."""
    broken: list[str]

    @property
    def passed(self) -> bool:
        """Return whether faults struck and every invariant held."""
        return bool(self.struck) and not self.broken


WITH_HISTORY: Final = {"channel": {"history": [{"topics": "flights:*"}]}}
"""With a history of any topic two clients recover, and the broker keeps its data on the disk."""


def play(plugin: str, seed: int) -> Row:
    """Run one campaign to its end."""
    names = [name for name, one in FAULTS.items() if not plugin or one.on != LEFT_OUT_FOR_PLUGINS]
    run = partial(
        run_campaign,
        [plugin] if plugin else [],
        WITH_HISTORY,
        seed=seed,
        duration=MOST_SECONDS,
        faults=names,
        once=True,
    )
    with quiet():
        campaign = trio.run(run)
    return Row(
        plugin,
        seed,
        len(campaign.struck),
        campaign.ended - campaign.began,
        campaign.skipped,
        [str(one) for one in campaign.broken],
    )


def play_share(wanted: Sequence[tuple[str, int]]) -> list[Row]:
    """Run several campaigns one after another and show each result at once."""
    rows = []
    for plugin, seed in wanted:
        row = play(plugin, seed)
        sys.stderr.write(f"{row.plugin or 'no plugin'}, seed {seed}: {'held' if row.passed else 'broken'}\n")
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaigns and print their table; return 1 where one did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.campaigns", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="campaigns of each plugin (default 3)")
    parser.add_argument("--plugins", default=",".join(("", *EXAMPLES)), help="names with commas between")
    parser.add_argument("--jobs", type=int, default=cores(), help="campaigns at a time (default: cores)")
    options = parser.parse_args(arguments)
    wanted = [(plugin, seed) for seed in range(options.seeds) for plugin in options.plugins.split(",")]
    jobs = min(options.jobs, len(wanted))
    shares = in_processes([partial(play_share, wanted[number::jobs]) for number in range(jobs)])
    rows = sorted((row for share in shares for row in share), key=lambda row: (row.plugin, row.seed))
    sys.stdout.write(table(rows))
    return 0 if all(row.passed for row in rows) else 1


def table(rows: Sequence[Row]) -> str:
    """Return the results as text: one line for each campaign, and its faults below it."""
    lines = [f"{'plugin':<26} {'seed':>4} {'faults':>6} {'seconds':>7}  result"]
    for row in rows:
        result = "held" if row.passed else "BROKEN"
        lines.append(
            f"{row.plugin or 'none':<26} {row.seed:>4} {row.struck:>6} {row.seconds:>7.1f}  {result}"
        )
        lines += [f"    broken: {message}" for message in row.broken]
        lines += [f"    left out: {name}: {why}" for name, why in row.skipped.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    # By its name: the processes that run campaigns import the functions of this module.
    sys.exit(import_module("tests.chaos.campaigns").main())
