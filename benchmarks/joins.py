"""Measure how fast thousands of clients join one topic with presence.

    python benchmarks/joins.py [--quick] [--rounds N]

All clients connect first. Then they join at once, in another process, and each has its reply; later each gets
the list of members, once. Bytes of presence are counted by the clients. The published server refuses
connections long before 5,000. ``ws`` with ``ioredis`` and NATS join beside it, without presence and tokens.
Then 2,000 clients are closed by a restart (SIGHUP), and come back 10 ms later, as phoenix.js does.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lib.loads import TOPIC, Clients
from benchmarks.lib.peers import Peer, start_nats, start_ws
from benchmarks.lib.processes import NotInstalled, cpu_seconds, keep_off
from benchmarks.lib.report import Results, Sample, Target, conclude, machine, promised, results_table, write
from benchmarks.lib.servers import Server, start_tangram

TARGETS = {5000: (1.0, 4.0), 9900: (2.0, 10.0)}
"""Clients, and the seconds until the last reply and until the last byte of presence."""
BACK, BACK_SECONDS = 2000, 1.5
"""Clients that come back after a restart, and the seconds in which all have joined again."""
PEERS: dict[str, Callable[[Path], Peer]] = {"ws + ioredis": start_ws, "NATS": start_nats}
"""Servers without presence."""
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
    "missing": "lists missing",
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


def held(server: Server, count: int, folder: Path) -> Clients:
    """Return clients that have connected and wait for the command to join the topic."""
    if not isinstance(server, Peer) or server.valkey is not None:
        return Clients(server.port, server.token(TOPIC), count, window=500, mode="hold")
    file = folder / "greetings"
    file.write_text(f"{TOPIC} {server.token(TOPIC)}\n" * count)
    return Clients(
        server.port, server.greeting, count, window=500, path=server.path, topic=f"@{file}", mode="hold"
    )


def joins(server: Server, count: int, folder: Path) -> Sample:
    clients = held(server, count, folder)
    try:
        before = cpu_seconds(server.pid)
        # All at once: the window bounds how many wait for a reply at the same time.
        joined = clients.join()
        replied = cpu_seconds(server.pid)
        report = wait_quiet(clients)
        spent = cpu_seconds(server.pid) - before
    finally:
        clients.end()
    sample = {
        "connect_s": clients.joined["seconds"],
        "join_s": joined["seconds"],
        "reply_us": (replied - before) / count * 1e6,
        "closed": report["closed"],
    }
    if isinstance(server, Peer):
        return sample
    return sample | {
        "quiet_s": report["presence_seconds"],
        "cpu_s": spent,
        "megabytes": report["presence_bytes"] / 1e6,
        "states": report["states"],
        "missing": count - report["states"],
    }


def coming_back(server: Server, count: int) -> Sample:
    """Restart the server under joined clients, until all have joined again."""
    clients = Clients(server.port, server.token(TOPIC), count, window=100)
    try:
        wait_quiet(clients)
        cpu = cpu_seconds(server.pid)
        clients.tell("return")
        os.kill(server.pid, signal.SIGHUP)
        back = clients.process.read_json()
        cpu = cpu_seconds(server.pid) - cpu
    finally:
        clients.end()
    refused = back["refused"] + back["moved"]
    return {"back_s": back["seconds"], "cpu_s": cpu, "refused": refused, "p50_ms": back["p50_ms"]}


def name(count: int) -> str:
    return f"{count:,} clients"


RETURN = f"{name(BACK)} after a restart"
RETURN_COLUMNS = {
    "back_s": "all joined again s",
    "p50_ms": "attempt to reply p50 ms",
    "cpu_s": "CPU s",
    "refused": "refused",
}


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
            Target(f"lists missing, {workload}", results.value(workload, "tangram", "missing"), 0),
        ]
    back = name(BACK)
    found += [
        Target(
            f"back after a restart, {back}", results.value(RETURN, "tangram", "back_s"), BACK_SECONDS, "s"
        ),
        Target(f"refused after a restart, {back}", results.value(RETURN, "tangram", "refused"), 0),
    ]
    return found


HEAD = """# Joins

{machine}

Medians of {rounds} rounds. All clients have connected before they join one topic at once. CPU is what the
operating system says that the server's threads used, the broker left out. Every client gets the list of
members once, and the differences after it: the bytes grow with the square of the clients, because each client
learns of each. `[channel] presence_rate` bounds them for each second. *ws + ioredis* and *NATS* have no
presence and check no token. After a restart the server closes 50 clients every 20 ms, and each comes back
10 ms later.
"""


def measure(results: Results, folder: Path, counts: tuple[int, ...]) -> None:
    """Measure one round, each time with a server that has just started."""
    starts: dict[str, Callable[[Path], Server]] = {"tangram": start_tangram, **PEERS}
    for count in counts:
        for contender, start in starts.items():
            place = folder / f"{count}-{contender}"
            place.mkdir(parents=True)
            try:
                server = start(place)
            except NotInstalled as error:
                print(error, flush=True)
                continue
            try:
                results.add(name(count), contender, joins(server, count, place))
            finally:
                server.end()
    place = folder / "return"
    place.mkdir()
    server = start_tangram(place)
    try:
        results.add(RETURN, "tangram", coming_back(server, BACK))
    finally:
        server.end()


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
            measure(results, Path(folder) / str(number), (2000,) if options.quick else tuple(TARGETS))
    promises = [target.promise() for target in targets(results)]
    text = HEAD.format(machine=where, rounds=rounds)
    text += "\n## Promised\n\n" + promised(promises) + "\n## Measured\n\n"
    text += results_table(results, COLUMNS, [workload for workload in results.samples if workload != RETURN])
    text += "\n" + results_table(results, RETURN_COLUMNS, [RETURN])
    write("joins", text, "", quick=options.quick)
    conclude(promises)


if __name__ == "__main__":
    main()
