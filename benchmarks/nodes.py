"""Three nodes on one Redis, a plugin that runs on one of them, and faults.

    python benchmarks/nodes.py            # 30 faults and 60 planned moves, ten minutes
    python benchmarks/nodes.py --full     # 200 faults and 300 moves, an hour
    python benchmarks/nodes.py --quick    # 3 faults and 5 moves
    python benchmarks/nodes.py --faults 20 --moves 0 --pieces FILE    # a part; its results are added to FILE

Each node is a process. A witness subscribes to the plugin's channel on Redis, and judges by its messages. The
faults of the holder are, in turn, SIGKILL, SIGSTOP for longer than its lease, and a network to Redis that
passes nothing for as long, and afterwards everything that waited in it.

With ``--pieces`` the figures are those of all runs whose results are in the file: counts are added up, the
longest take-over is that of all of them, and the percentile is taken over all moves.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import httpx
import redis
import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lib.cable import Cable
from benchmarks.lib.processes import keep_off
from benchmarks.lib.report import Promise, Target, conclude
from benchmarks.lib.witness import Witness

from tangram.testing import Home, RunningProcess, open_broker, open_process

LEASE: Final = 6.0
"""Seconds of a lease, the default of ``[cluster] lease_ttl``."""
NAMES: Final = ("a", "b", "c")
AWAY: Final = 10.0
"""Seconds of a SIGSTOP, and of a cut network."""
AFTERWARDS: Final = 2.0
"""Seconds after them in which messages of the old holder would arrive."""
KINDS: Final = ("SIGKILL", "SIGSTOP", "cut")
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


@dataclass
class Piece:
    """The results of one run, or of several."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    """Until another node published, by the kind of the fault."""
    moves: list[float] = field(default_factory=list)
    twice: int = 0
    """Messages of a node that went on after another one had taken over."""
    idle: list[float] = field(default_factory=list)
    """Commands a second of an idle node, by run."""

    @property
    def faults(self) -> int:
        return sum(map(len, self.seconds.values()))

    def add(self, other: Piece) -> None:
        for kind, seconds in other.seconds.items():
            self.seconds[kind] += seconds
        self.moves += other.moves
        self.twice += other.twice
        self.idle += other.idle

    def promises(self) -> list[Promise]:
        moves = sorted(self.moves)
        p99 = moves[min(len(moves) - 1, round(0.99 * len(moves)))] * 1000 if moves else math.nan
        what = f"messages of a holder that had lost its plugin, {self.faults} faults and {len(moves)} moves"
        targets = [Target(what, self.twice, 0)]
        targets += [
            Target(f"take-over after {kind}, longest of {len(seconds)}", max(seconds), LEASE + 1, "s")
            for kind, seconds in self.seconds.items()
            if seconds
        ]
        targets += [
            Target(f"take-over in a planned move, p99 of {len(moves)}", p99, 200, "ms"),
            Target("redis commands a second of an idle node", max(self.idle, default=math.nan), 5),
        ]
        return [target.promise() for target in targets]


def read_pieces(file: Path | None) -> Piece:
    """Return the results of all runs in a file together."""
    every = Piece()
    if file is not None and file.exists():
        for line in file.read_text().splitlines():
            every.add(Piece(**json.loads(line)))
    return every


class Nodes:
    """The nodes by their names."""

    def __init__(self, folder: Path, cables: dict[str, Cable], stack: AsyncExitStack) -> None:
        self.folder = folder
        self.cables = cables
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
            core=f'redis_url = "redis://127.0.0.1:{self.cables[name].port}"\nlog_level = "WARNING"',
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
async def open_nodes() -> AsyncIterator[tuple[Nodes, Witness, int]]:
    """Start the nodes; yield them, the witness, and the port of Redis."""
    with (
        tempfile.TemporaryDirectory() as folder,
        open_broker() as broker,
        Witness(broker.port, "to:ticker:n") as witness,
    ):
        async with trio.open_nursery() as nursery:
            cables = {name: await Cable.lay(broker.port, nursery) for name in NAMES}
            async with AsyncExitStack() as stack:
                nodes = Nodes(Path(folder), cables, stack)
                for name in NAMES:
                    await nodes.start(name)
                yield nodes, witness, broker.port
            nursery.cancel_scope.cancel()


async def take_overs(nodes: Nodes, witness: Witness, faults: int, first: int) -> Piece:
    """Take the holder away, again and again, and return the times after which another node published.

    Args:
        nodes: all of them run, and run again at the end.
        witness: of their messages.
        faults: how many.
        first: the number of faults in earlier pieces; the kinds take turns over all pieces.
    """
    piece = Piece()
    for number in range(faults):
        await witness.wait_more(50, within=30)
        kind = KINDS[(first + number) % len(KINDS)]
        holder = witness.words[-1].node
        piece.seconds[kind].append(await FAULTS[kind](nodes, witness, holder))
        if kind == "SIGKILL":
            await nodes.start(holder, number + 1)
        turns = " ".join(witness.turns()[-3:])
        print(
            f"fault {number + 1} of {faults}: {kind}, {piece.seconds[kind][-1]:.2f} s, {turns}, "
            f"repeats {repeats(witness)}",
            flush=True,
        )
    piece.twice = repeats(witness)
    return piece


async def kill(nodes: Nodes, witness: Witness, holder: str) -> float:
    """Kill the holder; return the seconds until another node publishes."""
    began = time.monotonic()
    nodes.servers[holder].process.kill()
    first = await witness.wait_other(holder, within=60)
    await nodes.servers[holder].wait_end()
    return first.at - began


async def stop(nodes: Nodes, witness: Witness, holder: str) -> float:
    """Stop the holder's process for a while; return the seconds until another node publishes."""
    began = time.monotonic()
    process = nodes.servers[holder].process
    process.send_signal(signal.SIGSTOP)
    try:
        first = await witness.wait_other(holder, within=60)
        await trio.sleep(max(0.0, began + AWAY - time.monotonic()))
    finally:
        process.send_signal(signal.SIGCONT)
    await trio.sleep(AFTERWARDS)
    return first.at - began


async def cut(nodes: Nodes, witness: Witness, holder: str) -> float:
    """Cut the holder off from Redis for a while; return the seconds until another node publishes."""
    began = time.monotonic()
    nodes.cables[holder].cut()
    first = await witness.wait_other(holder, within=60)
    await trio.sleep(max(0.0, began + AWAY - time.monotonic()))
    nodes.cables[holder].mend()
    await trio.sleep(AFTERWARDS)
    return first.at - began


FAULTS: Final = {"SIGKILL": kill, "SIGSTOP": stop, "cut": cut}


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


async def idle_commands(port: int) -> float:
    """Return the commands a second and node, without the plugin's publications."""
    count = await trio.to_thread.run_sync(count_commands, port, IDLE)
    return count / IDLE / len(NAMES)


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


async def measure(faults: int, planned: int, first: int) -> Piece:
    """Measure, and return the results; ``first`` is the number of faults in earlier pieces."""
    async with open_nodes() as (nodes, witness, port):
        idle = await idle_commands(port)
        seconds = await moves(nodes, witness, planned)
        piece = await take_overs(nodes, witness, faults, first)
    piece.moves, piece.idle = seconds, [idle]
    return piece


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="3 faults and 5 moves")
    size.add_argument("--full", action="store_true", help="200 faults and 300 moves")
    parser.add_argument("--faults", type=int, metavar="N", help="N faults in place of these")
    parser.add_argument("--moves", type=int, metavar="N", help="N planned moves in place of these")
    parser.add_argument(
        "--pieces", type=Path, metavar="FILE", help="add to the results in FILE, and tell all"
    )
    options = parser.parse_args()
    faults, planned = (3, 5) if options.quick else (200, 300) if options.full else (30, 60)
    faults = faults if options.faults is None else options.faults
    planned = planned if options.moves is None else options.moves
    keep_off()
    piece = trio.run(measure, faults, planned, read_pieces(options.pieces).faults)
    if options.pieces is not None:
        with options.pieces.open("a") as file:
            file.write(json.dumps(asdict(piece)) + "\n")
        piece = read_pieces(options.pieces)
    promises = piece.promises()
    for one in promises:
        print(f"{one.what}: {one.measured} ({one.target})")
    conclude(promises)


if __name__ == "__main__":
    main()
