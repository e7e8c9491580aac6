"""Three nodes on one Redis, a plugin that runs on one of them, and faults.

    python benchmarks/nodes.py            # 30 faults and 60 planned moves, about five minutes
    python benchmarks/nodes.py --full     # 200 faults and 300 moves, half an hour
    python benchmarks/nodes.py --quick    # 3 faults and 5 moves

Each node is a process. A witness subscribes to the plugin's channel on Redis, and judges by its messages. The
faults are SIGKILL of the holder, and SIGSTOP of it for longer than its lease.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import redis
import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lib.processes import keep_off
from benchmarks.lib.report import Promise, Target, conclude
from benchmarks.lib.witness import Witness

from tangram.testing import Home, RunningProcess, open_broker, open_process

LEASE: Final = 6.0
"""Seconds of a lease, the default of ``[cluster] lease_ttl``."""
NAMES: Final = ("a", "b", "c")
STOPPED: Final = 10.0
"""Seconds of a SIGSTOP."""
IDLE: Final = 10.0
"""Seconds for which commands of idle nodes are counted."""

PLUGIN: Final = """
import os

import tangram
import trio

plugin = tangram.Plugin(instances="one")


@plugin.register_service()
async def count(state):
    number = 0
    while True:
        number += 1
        await state.publish("to:ticker:n", {"node": os.environ["NODE"], "count": number})
        await trio.sleep(0.005)
"""


class Nodes:
    """The nodes by their names."""

    def __init__(self, folder: Path, port: int, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.port = port
        self.stack = stack
        self.servers: dict[str, RunningProcess] = {}

    async def start(self, name: str, life: int = 0) -> None:
        """Start a node in a folder of its own."""
        home = Home(self.folder / f"{name}{life}")
        home.install("ticker", PLUGIN)
        settings = f'[channel]\njwt_secret = "{"x" * 40}"\n[cluster]\nnode = "{name}"\nlease_ttl = {LEASE}\n'
        home.configure(
            ["ticker"],
            extra=settings,
            core=f'redis_url = "redis://127.0.0.1:{self.port}"\nlog_level = "WARNING"',
        )
        server = await self.stack.enter_async_context(
            open_process(home, environ={"NODE": name}, but={"nothing_left_alive": "nodes are killed"})
        )
        self.servers[name] = server
        await wait_ready(home)

    async def move(self, holder: str) -> None:
        """Ask the holder to give the plugin away."""
        home = self.servers[holder].home
        token = (home.state / "operator-token").read_text().strip()
        headers = {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=home.url, headers=headers, timeout=30) as client:
            (await client.post("/-/plugins/ticker/move")).raise_for_status()


async def wait_ready(home: Home) -> None:
    """Wait for a node whose log has no line about it."""
    with trio.fail_after(60):
        async with httpx.AsyncClient(base_url=home.url) as client:
            while True:
                try:
                    if (await client.get("/-/readyz")).is_success:
                        return
                except httpx.TransportError:
                    pass
                await trio.sleep(0.05)


@asynccontextmanager
async def open_nodes() -> AsyncIterator[tuple[Nodes, Witness]]:
    with (
        tempfile.TemporaryDirectory() as folder,
        open_broker() as broker,
        Witness(broker.port, "to:ticker:n") as witness,
    ):
        async with AsyncExitStack() as stack:
            nodes = Nodes(Path(folder), broker.port, stack)
            for name in NAMES:
                await nodes.start(name)
            yield nodes, witness


async def take_overs(nodes: Nodes, witness: Witness, faults: int) -> list[float]:
    """Kill or stop the holder, and return the seconds until another node publishes after each kill."""
    seconds = []
    for number in range(faults):
        await witness.wait_more(50, within=30)
        holder = witness.words[-1].node
        server = nodes.servers[holder]
        began = time.monotonic()
        if number % 2:
            server.process.send_signal(signal.SIGSTOP)
            await witness.wait_other(holder, within=60)
            await trio.sleep(max(0.0, began + STOPPED - time.monotonic()))
            server.process.send_signal(signal.SIGCONT)
            await trio.sleep(1.0)
        else:
            server.process.kill()
            await server.wait_end()
            seconds.append((await witness.wait_other(holder, within=60)).at - began)
            await nodes.start(holder, number + 1)
        print(f"fault {number + 1} of {faults}: {witness.turns()[-3:]}", flush=True)
    return seconds


async def moves(nodes: Nodes, witness: Witness, count: int) -> list[float]:
    """Move the plugin, and return the seconds from the last message of a node to the first of the next."""
    seconds = []
    for _ in range(count):
        await witness.wait_more(50, within=30)
        holder = witness.words[-1].node
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nodes.move, holder)
            first = await witness.wait_other(holder, within=60)
        last = max(word.at for word in witness.words[-2000:] if word.node == holder and word.at <= first.at)
        seconds.append(first.at - last)
        await trio.sleep(4.0)  # a node leaves a lease that it gave away to the others for three seconds
    return seconds


def count_commands(port: int, seconds: float) -> int:
    """Return how many commands Redis gets, without the plugin's publications."""
    count = 0
    with redis.Redis(port=port) as client, client.monitor() as monitor:
        end = time.monotonic() + seconds
        while time.monotonic() < end:  # the plugin publishes all the time, so that this ends
            said = monitor.next_command()
            # A function's own commands are no commands of a node.
            count += said["client_type"] != "lua" and "tangram_fenced" not in said["command"]
    return count


async def idle_commands(nodes: Nodes) -> float:
    """Return the commands a second and node, without the plugin's publications."""
    count = await trio.to_thread.run_sync(count_commands, nodes.port, IDLE)
    return count / IDLE / len(nodes.servers)


def repeats(witness: Witness) -> int:
    """Return how often a node published again after another one had taken over, without a new start."""
    count = 0
    last: dict[str, int] = {}
    previous = ""
    for word in witness.words:
        # A new start counts from 1; a holder that goes on, although another one published, does not.
        if word.node != previous and word.node in last and word.number > last[word.node]:
            count += 1
        last[word.node] = word.number
        previous = word.node
    return count


async def measure(options: argparse.Namespace) -> list[Promise]:
    async with open_nodes() as (nodes, witness):
        idle = await idle_commands(nodes)
        planned = await moves(nodes, witness, options.moves)
        unplanned = await take_overs(nodes, witness, options.faults)
        twice = repeats(witness)
    planned.sort()
    at = min(len(planned) - 1, round(0.99 * len(planned)))
    return [
        target.promise()
        for target in (
            Target(f"messages of a holder that had lost its plugin, {options.faults} faults", twice, 0),
            Target("take-over after SIGKILL, longest", max(unplanned), LEASE + 1, "s"),
            Target(f"take-over in a planned move, p99 of {len(planned)}", planned[at] * 1000, 200, "ms"),
            Target("redis commands a second of an idle node", idle, 5),
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="3 faults and 5 moves")
    size.add_argument("--full", action="store_true", help="200 faults and 300 moves")
    options = parser.parse_args()
    options.faults, options.moves = (3, 5) if options.quick else (200, 300) if options.full else (30, 60)
    keep_off()
    promises = trio.run(measure, options)
    for one in promises:
        print(f"{one.what}: {one.measured} ({one.target})")
    conclude(promises)


if __name__ == "__main__":
    main()
