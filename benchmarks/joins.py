"""Measure how fast thousands of clients join one topic with presence.

    python benchmarks/joins.py [--quick] [--rounds N]

All clients connect first. Then they join at once, in another process, and each has its reply; later each gets
the list of members, once. Bytes of presence are counted by the clients. There is no peer: the published
server refuses connections long before 5,000.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lib.loads import TOPIC, Clients
from benchmarks.lib.processes import cpu_seconds, keep_off
from benchmarks.lib.report import Results, Sample, Target, conclude, machine, promised, results_table, write
from benchmarks.lib.servers import Server, start_tangram

TARGETS = {5000: (1.0, 4.0), 9900: (2.0, 10.0)}
"""Clients, and the seconds until the last reply and until the last byte of presence."""
ENTRY = 64
"""Bytes of presence that each pair of clients may cost: an entry of a list, and a share of differences."""
QUIET = 1.0
"""Seconds without presence after which it is complete."""
GIVE_UP = 60.0

COLUMNS = {
    "connect_s": "connect s",
    "join_s": "first join to last reply s",
    "reply_us": "CPU us a join",
    "quiet_s": "until quiet s",
    "cpu_s": "CPU s of all",
    "megabytes": "MB of presence",
    "states": "lists",
    "lost": "lists missing",
    "closed": "closed",
}


def wait_quiet(clients: Clients) -> dict[str, Any]:
    """Return the report once no presence has come for a while."""
    until = time.monotonic() + GIVE_UP
    report = clients.ask("report")
    while time.monotonic() < until:
        time.sleep(QUIET)
        before, report = report, clients.ask("report")
        if report["presence_bytes"] == before["presence_bytes"]:
            break
    return report


def joins(server: Server, count: int) -> Sample:
    clients = Clients(server.port, server.token(TOPIC), count, window=500, hold=True)
    try:
        before = cpu_seconds(server.pid)
        # All at once: the window bounds how many wait for a reply at the same time.
        joined = clients.join()
        replied = cpu_seconds(server.pid)
        report = wait_quiet(clients)
        spent = cpu_seconds(server.pid) - before
    finally:
        clients.end()
    return {
        "connect_s": clients.joined["seconds"],
        "join_s": joined["seconds"],
        "reply_us": (replied - before) / count * 1e6,
        "quiet_s": report["presence_seconds"],
        "cpu_s": spent,
        "megabytes": report["presence_bytes"] / 1e6,
        "states": report["states"],
        "lost": count - report["states"],
        "closed": report["closed"],
    }


def name(count: int) -> str:
    return f"{count:,} clients"


def targets(results: Results) -> list[Target]:
    found = []
    for count, (replied, quiet) in TARGETS.items():
        workload = name(count)
        found += [
            Target(f"last reply, {workload}", results.value(workload, "tangram", "join_s"), replied, "s"),
            Target(
                f"presence complete, {workload}", results.value(workload, "tangram", "quiet_s"), quiet, "s"
            ),
            Target(
                f"presence, {workload}",
                results.value(workload, "tangram", "megabytes"),
                count**2 * ENTRY / 1e6,
                "MB",
            ),
            Target(f"lists missing, {workload}", results.value(workload, "tangram", "lost"), 0),
        ]
    return found


HEAD = """# Joins

{machine}

Medians of {rounds} rounds. All clients have connected before they join one topic at once. CPU is what the
operating system says that the server's threads used, the broker left out. Every client gets the list of
members once, and the differences after it: the bytes grow with the square of the clients, because each client
learns of each. `[channel] presence_rate` bounds them for each second.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round of 2,000 clients")
    parser.add_argument("--rounds", type=int, help="default: 3; quick: 1")
    options = parser.parse_args()
    rounds = options.rounds or (1 if options.quick else 3)
    keep_off()
    where = machine()
    results = Results()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for count in (2000,) if options.quick else TARGETS:
                place = Path(folder) / f"{number}-{count}"
                place.mkdir()
                server = start_tangram(place)
                try:
                    results.add(name(count), "tangram", joins(server, count))
                finally:
                    server.end()
    promises = [target.promise() for target in targets(results)]
    text = HEAD.format(machine=where, rounds=rounds)
    text += "\n## Promised\n\n" + promised(promises) + "\n## Measured\n\n"
    text += results_table(results, COLUMNS, list(results.samples))
    write("joins", text, "", quick=options.quick)
    conclude(promises)


if __name__ == "__main__":
    main()
