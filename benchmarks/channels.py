"""Measure channels under load, beside other servers.

    python benchmarks/channels.py [--quick] [--rounds N] [--only WORD ...] [--servers NAME ...]
    python benchmarks/channels.py --only WORD --pieces FILE    # a part; its samples are added to FILE

The others are a C loop of ``send`` (one for each message, and one that gathers the messages of 4 ms into one
write as this server does at high rates), Hypercorn with the same application, and the published tangram-core.
Each server has a broker and a processor of its own; publisher, clients and brokers share the other
processors. CPU is the operating system's figure for the server's threads and children, without the broker.
Latency is measured by one clock from before the publisher's write to after the client's read. Rounds are
interleaved, and the table shows medians. Results are written to ``benchmarks/results/channels.md`` and
``.svg``.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lib.loads import PATIENCE, TOPIC, Clients, Listening, publish, wait_delivered
from benchmarks.lib.processes import (
    NotInstalled,
    Process,
    build,
    cpu_seconds,
    memory_bytes,
    running,
    wait_quiet,
)
from benchmarks.lib.program import compare, parse_options
from benchmarks.lib.report import (
    Results,
    Sample,
    Target,
    plot,
    promised,
    results_table,
    svg,
)
from benchmarks.lib.servers import Server, start_published, start_tangram

NATIVE, C_LOOP, HYPERCORN, PUBLISHED = "tangram", "C loop", "tangram on Hypercorn", "tangram-core"
GATHERED = "C loop, gathered"
GATHER_MICROSECONDS = 4000
SERVERS: dict[str, Callable[[Path], Server]] = {
    NATIVE: start_tangram,
    HYPERCORN: partial(start_tangram, engine="hypercorn"),
    PUBLISHED: start_published,
}


@dataclass(frozen=True)
class FanOut:
    clients: int
    rate: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.clients:,} x {self.rate:,}/s, {self.size:,} B"


FAN_OUTS = (
    FanOut(100, 500, 200),
    FanOut(100, 2000, 200),
    FanOut(500, 200, 200),
    FanOut(1000, 100, 200),
    FanOut(100, 500, 2048),
)
ALONE = (FanOut(1000, 20, 200), FanOut(5000, 4, 200), FanOut(9900, 2, 200))
"""Fan-outs to many clients, at rates at which no messages gather."""
GATHERING = (FAN_OUTS[1],)
"""Fan-outs at rates at which messages gather."""
QUICK = FAN_OUTS[:2]


@dataclass(frozen=True)
class Inbound:
    batch: int
    """Messages in one write of a client."""
    rate: int
    """Pushes a second of all clients together; 0 is as fast as the server reads."""
    seconds: float = 1.5
    """Seconds of a full round. Processor time is counted in ticks of 10 ms, so a round needs many."""
    per_second: int = 40_000
    """Pushes for each second of a round that is as fast as the server reads."""

    @property
    def name(self) -> str:
        rate = f"{self.rate:,}/s" if self.rate else "unbounded"
        return f"{'writes' if self.batch > 1 else 'write'} of {self.batch}, {rate}"

    def messages(self, seconds: float) -> int:
        return int((self.rate or self.per_second) * seconds)


PUSHERS = 50
INBOUNDS = (
    Inbound(50, 40_000),
    Inbound(20, 40_000),
    Inbound(50, 10_000, 4.0),
    Inbound(20, 10_000, 4.0),
    Inbound(1, 1_000, 4.0),
    Inbound(50, 0),
)
PROMISED_INBOUND = INBOUNDS[:3]
BURST, CONNECTING, MEMORY = (
    "one client, bursts of 1,000",
    "connect and join, 32 at a time",
    "joined and idle",
)


@contextmanager
def joined(server: Server, count: int) -> Iterator[Clients]:
    """Open clients that have joined the topic, once the server has finished their joins.

    Lists of presence go out for seconds after the last join: 3 GB for 9,900 clients.
    """
    clients = Clients(server.port, server.token(TOPIC), count)
    try:
        wait_quiet(server.pid, at_most=4 + count / 400)
        clients.ask("reset")
        yield clients
    finally:
        clients.end()
        wait_quiet(server.pid)


def fan_out(server: Server, load: FanOut, seconds: float) -> Sample:
    messages = int(load.rate * seconds)
    with joined(server, load.clients) as clients:
        if load in ALONE:  # a full pass of the garbage collector is due after so many joins
            publish(server.redis_port, messages, load.rate, load.size)
            wait_delivered(clients, server.pid, messages * load.clients)
            clients.ask("reset")
        cpu = cpu_seconds(server.pid)
        publish(server.redis_port, messages, load.rate, load.size)
        report = wait_delivered(clients, server.pid, messages * load.clients)
        cpu = cpu_seconds(server.pid) - cpu
    return delivered(report, cpu, messages * load.clients)


def delivered(report: dict[str, float], cpu: float, wanted: int) -> Sample:
    return {
        "cpu_us": cpu / max(report["messages"], 1) * 1e6,
        "p50_ms": report["p50_ms"],
        "p99_ms": report["p99_ms"],
        "lost": wanted - report["messages"],
        "closed": report["closed"],
    }


def c_loop(load: FanOut, seconds: float, pause: int = 0) -> Sample:
    """Send the same frames to as many sockets with ``send`` alone.

    Args:
        load: the messages.
        seconds: for how long.
        pause: microseconds after each round in which messages gather; 0 for one write a message.
    """
    messages = int(load.rate * seconds)
    numbers = (load.clients, messages, load.rate, load.size, *([pause] if pause else []))
    command = [str(build("fanout")), *map(str, numbers)]
    with running(Process(command, pipes=True)) as loop:
        clients = Clients(int(loop.read_line()), "-", load.clients, path="-")
        time.sleep(0.2)
        clients.ask("reset")
        loop.write_line("go")
        took = loop.read_json()
        report = wait_delivered(clients, loop.pid, messages * load.clients)
        clients.end()
    return delivered(report, took["cpu_seconds"], messages * load.clients)


def burst(server: Server, bursts: int) -> Sample:
    messages = 1000 * bursts
    with joined(server, 1) as clients:
        cpu = cpu_seconds(server.pid)
        publish(server.redis_port, messages, 10, 200, burst=1000)
        report = wait_delivered(clients, server.pid, messages)
        cpu = cpu_seconds(server.pid) - cpu
    return delivered(report, cpu, messages)


def inbound(server: Server, load: Inbound, seconds: float) -> Sample:
    """Push 200 bytes many times, until a Redis subscriber has all that were accepted."""
    messages = load.messages(seconds)
    listening = Listening(server.redis_port)
    try:
        with joined(server, PUSHERS) as clients:
            cpu = cpu_seconds(server.pid)
            began = time.monotonic()
            clients.tell(f"push {messages} {load.rate or 10_000_000} {load.batch}")
            listening.wait(messages)
            took = time.monotonic() - began
            wait_quiet(server.pid)
            cpu = cpu_seconds(server.pid) - cpu
            report = clients.ask("report")
    finally:
        listening.end()
    return {
        "cpu_us": cpu / max(listening.count, 1) * 1e6,
        "per_second": listening.count / took,
        "lost": messages - report["refused"] - listening.count,
        "disordered": listening.disordered(),
        "unanswered": messages - report["replies"],
        "refused": report["refused"],
        "closed": report["closed"],
    }


def connecting(server: Server, count: int) -> Sample:
    cpu = cpu_seconds(server.pid)
    clients = Clients(server.port, server.token(TOPIC), count)
    try:
        cpu = cpu_seconds(server.pid) - cpu
    finally:
        clients.end()
        wait_quiet(server.pid)
    seconds = clients.joined["seconds"]
    return {
        "per_second": count / seconds,
        "cpu_us": cpu / count * 1e6,
        "p50_ms": clients.joined["p50_ms"],
        "p99_ms": clients.joined["p99_ms"],
    }


def memory(start: Callable[[Path], Server], count: int) -> Sample:
    """Measure the memory of a client in a fresh server, after the first clients."""
    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder))
        try:
            with joined(server, 50):
                pass
            before = memory_bytes(server.pid)
            with joined(server, count):
                time.sleep(1)
                kib = (memory_bytes(server.pid) - before) / 1024 / count
        finally:
            server.end()
    return {"kib_a_client": kib}


def measure(options: argparse.Namespace) -> Results:
    results = Results()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers: dict[str, Server] = {}
        for name in options.servers:
            if name in SERVERS:
                try:
                    servers[name] = SERVERS[name](Path(folder))
                except NotInstalled as error:
                    print(error, flush=True)
                    options.missing.append(name)
                    continue
                stack.callback(servers[name].end)
        for number in range(options.rounds):
            # Hypercorn loses many messages and takes long, so one round is enough.
            of_round = {name: one for name, one in servers.items() if number == 0 or name != HYPERCORN}
            measure_fan_outs(options, results, of_round)
            measure_others(options, results, of_round)
    for _ in range(options.rounds if options.wanted(MEMORY) else 0):
        for name in servers:
            if name == NATIVE or not options.quick:
                results.add(MEMORY, name, memory(SERVERS[name], 200 if options.quick else 1000))
    return results


def measure_fan_outs(options: argparse.Namespace, results: Results, servers: Mapping[str, Server]) -> None:
    seconds = options.seconds
    for load in QUICK if options.quick else (*FAN_OUTS, *ALONE):
        for name in options.servers if options.wanted(load.name) else ():
            if name == C_LOOP:
                results.add(load.name, name, c_loop(load, seconds))
            elif name == GATHERED:
                if load in GATHERING:
                    results.add(load.name, name, c_loop(load, seconds, GATHER_MICROSECONDS))
            elif load in ALONE and name in (HYPERCORN, PUBLISHED):
                pass  # they take minutes to connect so many, or refuse some
            elif name in servers and (
                not options.quick or name != HYPERCORN or load == QUICK[0]
            ):  # it notices disconnects late
                results.add(load.name, name, fan_out(servers[name], load, seconds))


def measure_others(options: argparse.Namespace, results: Results, servers: Mapping[str, Server]) -> None:
    quick = options.quick
    for name, server in servers.items():
        if options.wanted(BURST) and (name == NATIVE or not quick):
            results.add(BURST, name, burst(server, 5 if quick else 20))
        for load in PROMISED_INBOUND if quick else INBOUNDS:
            # Hypercorn accepts a tenth, so the first round is enough.
            if options.wanted(load.name) and (name != HYPERCORN or load == INBOUNDS[0]):
                seconds = 0.25 if name == HYPERCORN else load.seconds / 3 if quick else load.seconds
                results.add(load.name, name, inbound(server, load, seconds))
        if options.wanted(CONNECTING):
            results.add(CONNECTING, name, connecting(server, 100 if quick else 500))


def targets(results: Results) -> list[Target]:
    def against_c(load: FanOut, loop: str = C_LOOP) -> float:
        return results.ratio(load.name, NATIVE, loop, "cpu_us")

    slow, fast, *_ = FAN_OUTS
    inbounds = {load.name for load in INBOUNDS}

    def wrong(names: Sequence[str], workloads: Callable[[str], bool]) -> float:
        counts = [
            results.value(workload, NATIVE, name)
            for workload, contenders in results.samples.items()
            for name in names
            if workloads(workload) and NATIVE in contenders and name in contenders[NATIVE][0]
        ]
        return sum(counts) if counts else math.nan

    return [
        Target(f"CPU a delivery, {slow.name}", against_c(slow), 1.1, "x the C loop"),
        Target(f"CPU a delivery, {fast.name}", against_c(fast), 0.4, "x the C loop"),
        Target(f"CPU a delivery, {fast.name}", against_c(fast, GATHERED), 2.0, "x the C loop, gathered"),
        *(Target(f"CPU a delivery, {it.name}", against_c(it), 1.2, "x the C loop") for it in ALONE),
        Target(f"p50, {slow.name}", results.value(slow.name, NATIVE, "p50_ms"), 1.2, "ms"),
        Target(f"p99, {slow.name}", results.value(slow.name, NATIVE, "p99_ms"), 6, "ms"),
        Target(f"p99, {fast.name}", results.value(fast.name, NATIVE, "p99_ms"), 10, "ms"),
        *(
            Target(f"CPU an inbound message, {it.name}", results.value(it.name, NATIVE, "cpu_us"), 12, "us")
            for it in PROMISED_INBOUND
        ),
        Target(
            "inbound: not refused, and not heard by a subscriber, or twice, or out of order",
            wrong(("lost", "disordered"), lambda name: name in inbounds),
            0,
        ),
        Target(
            "inbound: refused, not answered, or closed",
            wrong(("refused", "unanswered", "closed"), lambda name: name in inbounds),
            0,
        ),
        Target("memory of a joined idle client", results.value(MEMORY, NATIVE, "kib_a_client"), 32, "KiB"),
        Target("fan-out: lost or closed", wrong(("lost", "closed"), lambda name: name not in inbounds), 0),
    ]


HEAD = """# Channels

{machine}

Medians of {rounds} interleaved rounds, {seconds:g} s of load each. CPU is what the operating system says that
the server's threads and children used, the broker left out. Latency is from before the publisher's write to
after the client's read. *C loop* is one thread that does nothing but `send` the same frames on as many
sockets: the cost of the kernel, and its p99 is what the machine itself is late by. *C loop, gathered* waits
4 ms after each round and then sends all messages that are due in one write for each client, as our server
does at rates where that saves writes: like is compared with like where both gather, or neither does.
Fan-outs to 1,000 clients at 20/s and to more begin after as much load that is not measured: the garbage
collector makes one full pass over what so many joins made, which takes 0.3 s with 9,900 clients. Lost,
closed and the like are sums over all rounds, counted when a server has stopped working, or {patience:g} s
after the last message was published. *Joined and idle* is proportional set size. Hypercorn, if it is in a
table, is measured in one round under load.
"""

INBOUND_HEAD = """## Inbound: {pushers} clients push 200 bytes each

*Lost*: not refused, and not heard by a subscriber of the Redis channel; *disordered*: heard twice, or after
one that the same client pushed later. *Unbounded* is as fast as the server reads: clients wait in `send`.
"""

SMALL_WRITES = """A write costs our server {write:.0f} us and each message in it {message:.1f} us more, by the
rows of 10,000/s: two wake-ups and four system calls, for the client's bytes and for Redis' answer, whatever
they hold. Below saturation each write finds the process asleep and pays for them alone; under load what came
meanwhile shares them.
"""


def small_writes(results: Results) -> str:
    large, small = (results.value(load.name, NATIVE, "cpu_us") * load.batch for load in INBOUNDS[2:4])
    message = (large - small) / (INBOUNDS[2].batch - INBOUNDS[3].batch)
    write = small - INBOUNDS[3].batch * message
    return SMALL_WRITES.format(write=write, message=message) if write > 0 and message > 0 else ""


def text(results: Results, options: argparse.Namespace, where: str) -> str:
    fan_outs = [load.name for load in (*FAN_OUTS, *ALONE)]
    columns = {
        "cpu_us": "CPU us a delivery",
        "p50_ms": "p50 ms",
        "p99_ms": "p99 ms",
        "lost": "lost",
        "closed": "closed",
    }
    inbound_columns = {
        "cpu_us": "CPU us a message",
        "per_second": "a second",
        **{name: name for name in ("lost", "disordered", "unanswered", "refused", "closed")},
    }
    connecting = {"per_second": "a second", "cpu_us": "CPU us each", "p50_ms": "p50 ms", "p99_ms": "p99 ms"}
    return "\n".join(
        [
            HEAD.format(machine=where, rounds=options.rounds, seconds=options.seconds, patience=PATIENCE),
            *(f"Not measured: {name}, which could not be installed.\n" for name in options.missing),
            "## Promised\n",
            promised([target.promise() for target in targets(results)]),
            "## Fan-out: clients x messages a second, bytes a message\n",
            results_table(results, columns, [*fan_outs, BURST]),
            INBOUND_HEAD.format(pushers=PUSHERS),
            results_table(results, inbound_columns, [load.name for load in INBOUNDS]),
            small_writes(results),
            "## Connections\n",
            results_table(results, connecting, [CONNECTING]),
            results_table(results, {"kib_a_client": "KiB a client"}, [MEMORY]),
            "![plot](channels.svg)\n",
        ]
    )


def picture(results: Results) -> str:
    fan_outs = [load.name for load in (*FAN_OUTS, *ALONE)]
    inbounds = [load.name for load in INBOUNDS]
    return svg(
        plot("CPU a delivery, microseconds", results, "cpu_us", "us", [*fan_outs, BURST]),
        plot("publish to client, p99, milliseconds", results, "p99_ms", "ms", [*fan_outs, BURST]),
        plot("CPU an inbound message, microseconds", results, "cpu_us", "us", inbounds),
        plot("memory a joined idle client, KiB", results, "kib_a_client", "KiB", [MEMORY]),
    )


def main() -> None:
    options = parse_options(__doc__, rounds=3, servers=[NATIVE, C_LOOP, GATHERED, HYPERCORN, PUBLISHED])
    options.seconds = 1.0 if options.quick else 3.0
    compare("channels", options, measure=measure, targets=targets, text=text, picture=picture)


if __name__ == "__main__":
    main()
