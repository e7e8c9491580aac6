"""Measure presence on two nodes: how fast a change is seen, a node that dies, storms of joins, and rest.

    python benchmarks/presence.py [--quick] [--clients N]

Two servers are nodes of one broker. A change is a join on one node that a member on the other one sees. A
node that dies is killed by SIGKILL. In a storm all clients have connected, half of them to each node, and
join one topic at once, in other processes: with ``full`` each gets the list, with ``count`` the number.
Commands at rest are those of the nodes that MONITOR shows, without the commands inside functions.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lib.loads import TOPIC, Clients
from benchmarks.lib.processes import GIVE_UP, Valkey, cpu_seconds, keep_off
from benchmarks.lib.report import Sample, Target, conclude, machine, promised
from benchmarks.lib.servers import Server, start_bare_node

from tangram.client import Channel, fetch_token, open_socket

CLIENTS, QUICK_CLIENTS = 5000, 300
RESTING = 1000
"""Members at rest on each node."""
CHANGES, QUICK_CHANGES = 200, 30
DEATHS, QUICK_DEATHS = 3, 1
REST, QUICK_REST = 20.0, 6.0
"""Seconds for which commands are counted."""
NUMBER = 64
"""Bytes that one number of members may cost."""
QUIET = 1.5
"""Seconds without presence after which a storm is over."""
COUNTED = f'[[channel.presence]]\ntopics = "{TOPIC}"\nmode = "count"\n'


@contextmanager
def open_nodes(folder: Path, rules: str = "") -> Iterator[tuple[Valkey, list[Server]]]:
    """Run two nodes on one broker."""
    folder.mkdir(parents=True)
    valkey = Valkey(folder)
    nodes: list[Server] = []
    try:
        nodes.extend(start_bare_node(folder, name, valkey, rules) for name in "ab")
        yield valkey, nodes
    finally:
        for node in nodes:
            node.end()
        valkey.end()


async def watch_changes(nodes: list[Server], changes: int) -> list[float]:
    """Return the milliseconds from each join on one node until a member of the other one sees it."""
    found = []
    async with open_member(nodes[1], "watcher") as seen:
        for number in range(changes):
            name = f"id{number}"
            token = (await fetch_token(url_of(nodes[0]), TOPIC, name)).token
            async with open_socket(url_of(nodes[0])) as actor:
                began = time.monotonic()
                await actor.join(TOPIC, token=token)
                await wait_for(seen, name, present=True)
                found.append((time.monotonic() - began) * 1e3)
            await wait_for(seen, name, present=False)
    return found


@asynccontextmanager
async def open_member(node: Server, name: str) -> AsyncIterator[Channel]:
    token = (await fetch_token(url_of(node), TOPIC, name)).token
    async with open_socket(url_of(node)) as client:
        yield await client.join(TOPIC, token=token)


def url_of(node: Server) -> str:
    return f"http://127.0.0.1:{node.port}"


async def wait_for(channel: Channel, name: str, *, present: bool) -> None:
    with trio.fail_after(GIVE_UP):
        await channel.wait_presence(lambda seen: (name in seen) is present)


async def watch_death(nodes: list[Server]) -> float:
    """Return the seconds from a node's death until a member of the other one sees its members no more."""
    async with open_member(nodes[0], "watcher") as seen:
        token = (await fetch_token(url_of(nodes[1]), TOPIC, "doomed")).token
        clients = Clients(nodes[1].port, token, 50)
        try:
            await wait_for(seen, "doomed", present=True)
            os.kill(nodes[1].pid, signal.SIGKILL)
            began = time.monotonic()
            await wait_for(seen, "doomed", present=False)
            return time.monotonic() - began
        finally:
            clients.end()


def storm(nodes: list[Server], count: int) -> Sample:
    """Join all clients at once, half of them on each node."""
    halves: list[Clients] = []
    try:
        halves.extend(
            Clients(node.port, node.token(TOPIC), count // 2, window=250, mode="hold") for node in nodes
        )
        before = sum(cpu_seconds(node.pid) for node in nodes)
        for half in halves:
            half.tell("join")
        seconds = max(half.process.read_json()["seconds"] for half in halves)
        reports = wait_quiet(halves)
        spent = sum(cpu_seconds(node.pid) for node in nodes) - before
    finally:
        for half in halves:
            half.end()
    return {
        "join_s": seconds,
        "quiet_s": max(report["presence_seconds"] for report in reports),
        "megabytes": sum(report["presence_bytes"] for report in reports) / 1e6,
        "cpu_s": spent,
        "closed": sum(report["closed"] for report in reports),
    }


def wait_quiet(halves: list[Clients]) -> list[dict[str, float]]:
    """Return the reports once no presence has come for a while."""
    until = time.monotonic() + 2 * GIVE_UP
    reports = [half.ask("report") for half in halves]
    while time.monotonic() < until:
        time.sleep(QUIET)
        before, reports = reports, [half.ask("report") for half in halves]
        if [one["presence_bytes"] for one in before] == [one["presence_bytes"] for one in reports]:
            break
    return reports


def commands_at_rest(valkey: Valkey, nodes: list[Server], seconds: float) -> float:
    """Return the commands a second of each node while its members neither come nor go."""
    halves = [Clients(node.port, node.token(TOPIC), RESTING) for node in nodes]
    try:
        wait_quiet(halves)
        return count_commands(valkey.port, seconds) / seconds / len(nodes)
    finally:
        for half in halves:
            half.end()


def count_commands(port: int, seconds: float) -> int:
    """Count the commands of clients, without those inside functions."""
    with socket.create_connection(("127.0.0.1", port)) as monitor:
        monitor.sendall(b"MONITOR\r\n")
        heard = bytearray()
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            monitor.settimeout(left)
            try:
                heard += monitor.recv(1 << 16)
            except TimeoutError:
                break
    lines = bytes(heard).split(b"\r\n")[1:]  # behind the reply to MONITOR itself
    return len([line for line in lines if line and b" lua] " not in line])


def counted_bound(count: int, sample: Sample) -> float:
    """Return the megabytes that numbers may cost: one for each newcomer, and one a second for each member."""
    return count * NUMBER * (2 + sample["quiet_s"]) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few changes, one death, storms of 300 clients")
    parser.add_argument("--clients", type=int, help=f"clients of a storm; {CLIENTS}, quick {QUICK_CLIENTS}")
    options = parser.parse_args()
    quick = options.quick
    count = options.clients or (QUICK_CLIENTS if quick else CLIENTS)
    keep_off()
    print(machine())
    deaths = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with open_nodes(folder / "rest") as (valkey, nodes):
            changes = trio.run(watch_changes, nodes, QUICK_CHANGES if quick else CHANGES)
            commands = commands_at_rest(valkey, nodes, QUICK_REST if quick else REST)
        for number in range(QUICK_DEATHS if quick else DEATHS):
            with open_nodes(folder / f"death-{number}") as (_, nodes):
                deaths.append(trio.run(watch_death, nodes))
        with open_nodes(folder / "full") as (_, nodes):
            full = storm(nodes, count)
        with open_nodes(folder / "count", COUNTED) as (_, nodes):
            counted = storm(nodes, count)
    for name, sample in {"full": full, "count": counted}.items():
        figures = "  ".join(f"{what} {value:.2f}" for what, value in sample.items())
        print(f"storm of {count:,} with {name}: {figures}", flush=True)
    print(f"members of a killed node were gone after {', '.join(f'{one:.1f} s' for one in deaths)}")
    p99 = statistics.quantiles(changes, n=100)[98]
    promises = [
        Target("change seen on the other node, p50", statistics.median(changes), 200, "ms").promise(),
        Target("change seen on the other node, p99", p99, 200, "ms").promise(),
        Target("members of a killed node gone", max(deaths), 8, "s").promise(),
        Target(f"storm of {count:,} with lists, last reply", full["join_s"], 5, "s").promise(),
        Target(f"storm of {count:,} with numbers, last reply", counted["join_s"], 5, "s").promise(),
        Target("presence with numbers", counted["megabytes"], counted_bound(count, counted), "MB").promise(),
        Target("clients closed in storms", full["closed"] + counted["closed"], 0).promise(),
        Target(f"commands a second of a node with {RESTING:,} members", commands, 5).promise(),
    ]
    print(promised(promises))
    conclude(promises)


if __name__ == "__main__":
    main()
