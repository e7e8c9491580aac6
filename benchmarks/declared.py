"""Measure pushes to declared channels: checked, handled and replied to, beside undeclared ones.

    python benchmarks/declared.py [--quick] [--rounds N] [--only WORD ...] [--servers NAME ...]

50 clients push 200 bytes each, 20,000 a second of all together. The handler is async and returns a value from
the payload, a ``msgspec.Struct``; the undeclared push is replied to when Redis has it. Both go to Redis as
well. CPU is the operating system's figure for the server's threads and children, without the broker. Rounds
are interleaved, and the table shows medians. Results are written to ``benchmarks/results/declared.md``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.channels import PUSHERS, Inbound, inbound
from benchmarks.lib.program import compare, parse_options
from benchmarks.lib.report import Results, Target, promised, results_table
from benchmarks.lib.servers import Server, start_tangram

DECLARED, UNDECLARED = "declared", "undeclared"
SERVERS: dict[str, Callable[[Path], Server]] = {
    DECLARED: partial(start_tangram, plugin="declared_bench"),
    UNDECLARED: partial(start_tangram, plugin="tangram_bench"),
}
INBOUNDS = (Inbound(50, 20_000, 3.0), Inbound(20, 20_000, 3.0), Inbound(50, 0, 2.0))
AIM = 15.0
"""The target, in microseconds of CPU for each push at 20,000/s in writes of 50."""
COLUMNS = {
    "cpu_us": "CPU us a push",
    "per_second": "a second",
    **{name: name for name in ("lost", "disordered", "unanswered", "refused", "closed")},
}


def measure(options: argparse.Namespace) -> Results:
    results = Results()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = {}
        for name in options.servers:
            servers[name] = SERVERS[name](Path(folder) / name)
            stack.callback(servers[name].end)
        for _ in range(options.rounds):
            for load in INBOUNDS[:1] if options.quick else INBOUNDS:
                for name, server in servers.items() if options.wanted(load.name) else ():
                    seconds = 0.5 if options.quick else load.seconds
                    results.add(load.name, name, inbound(server, load, seconds))
    return results


def targets(results: Results) -> list[Target]:
    first = INBOUNDS[0].name
    wrong = sum(
        results.value(load, DECLARED, figure)
        for load in results.samples
        for figure in ("lost", "disordered", "unanswered", "refused", "closed")
    )
    return [
        Target("CPU a declared push, 20,000/s", results.value(first, DECLARED, "cpu_us"), AIM, "us"),
        Target(
            "CPU a push: declared to undeclared", results.ratio(first, DECLARED, UNDECLARED, "cpu_us"), 3, "x"
        ),
        Target("declared pushes: lost, disordered, unanswered, refused or closed", wrong, 0),
    ]


HEAD = """# Declared channels

{machine}

Medians of {rounds} interleaved rounds, {pushers} clients that push 200 bytes each. *Declared*: the payload is
checked, an async handler of a plugin is called, and its value is the reply. *Undeclared*: the reply says that
Redis has the push. Both are published on Redis.
"""


def text(results: Results, options: argparse.Namespace, where: str) -> str:
    return "\n".join(
        [
            HEAD.format(machine=where, rounds=options.rounds, pushers=PUSHERS),
            "## Promised\n",
            promised([target.promise() for target in targets(results)]),
            "## Pushes\n",
            results_table(results, COLUMNS, [load.name for load in INBOUNDS]),
        ]
    )


def main() -> None:
    options = parse_options(__doc__, rounds=5, servers=list(SERVERS))
    compare(
        "declared",
        options,
        measure=measure,
        targets=targets,
        text=text,
        picture=lambda _results: "",
    )


if __name__ == "__main__":
    main()
