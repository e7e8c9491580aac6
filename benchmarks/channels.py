"""Channels under load: tangram beside a C loop of ``send``, Hypercorn with the same application, and the
published tangram-core.

    python benchmarks/channels.py [--quick] [--rounds N] [--only WORD ...] [--servers NAME ...]

Each server has a broker and a processor of its own; publisher, clients and brokers share the others. CPU is
what the operating system says of the server's threads and children, the broker left out; latency is from
before the publisher's write to after the client's read, by one clock. Rounds are interleaved, and medians
shown. Results go to ``benchmarks/results/channels.md`` and ``.svg``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lib.loads import PATIENCE, TOPIC, Clients, Listening, publish, wait_delivered
from benchmarks.lib.processes import Process, build, cpu_seconds, memory_bytes, running, wait_quiet
from benchmarks.lib.report import Results, Sample, Target, machine, plot, results_table, svg, table, write
from benchmarks.lib.servers import Server, start_published, start_tangram

NATIVE, C_LOOP, HYPERCORN, PUBLISHED = "tangram", "C loop", "tangram on Hypercorn", "tangram-core"
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
QUICK = FAN_OUTS[:2]
BURST, INBOUND, CONNECTING, MEMORY = (
    "one client, bursts of 1,000",
    "inbound, 50 clients, writes of 50",
    "connect and join, 32 at a time",
    "joined and idle",
)


@contextmanager
def joined(server: Server, count: int) -> Iterator[Clients]:
    """Clients on the topic, and a server that has dealt with their arrival."""
    clients = Clients(server.port, server.token(TOPIC), count)
    try:
        wait_quiet(server.pid)
        clients.ask("reset")
        yield clients
    finally:
        clients.end()
        wait_quiet(server.pid)


def fan_out(server: Server, load: FanOut, seconds: float) -> Sample:
    messages = int(load.rate * seconds)
    with joined(server, load.clients) as clients:
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


def c_loop(load: FanOut, seconds: float) -> Sample:
    """The same frames on as many sockets, by ``send`` and nothing else."""
    messages = int(load.rate * seconds)
    command = [str(build("fanout")), *map(str, (load.clients, messages, load.rate, load.size))]
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


def inbound(server: Server, messages: int) -> Sample:
    """Pushes of 200 bytes in writes of 50, as fast as the server takes them, until all are out of Redis."""
    listening = Listening(server.redis_port)
    try:
        with joined(server, 50) as clients:
            cpu = cpu_seconds(server.pid)
            clients.tell(f"push {messages} 40000 50")
            listening.wait(messages)
            wait_quiet(server.pid)
            cpu = cpu_seconds(server.pid) - cpu
            report = clients.ask("report")
    finally:
        listening.end()
    return {
        "cpu_us": cpu / max(listening.count, 1) * 1e6,
        "lost": messages - listening.count,
        "closed": report["closed"],
        "refused": report["refused"],
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
    """A fresh server: what a client costs, once the first ones have had everything imported."""
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
                servers[name] = SERVERS[name](Path(folder))
                stack.callback(servers[name].end)
        for _ in range(options.rounds):
            measure_fan_outs(options, results, servers)
            measure_others(options, results, servers)
    for _ in range(options.rounds if options.wanted(MEMORY) else 0):
        for name in servers:
            if name == NATIVE or not options.quick:
                results.add(MEMORY, name, memory(SERVERS[name], 200 if options.quick else 1000))
    return results


def measure_fan_outs(options: argparse.Namespace, results: Results, servers: Mapping[str, Server]) -> None:
    seconds = 1.0 if options.quick else 3.0
    for load in QUICK if options.quick else FAN_OUTS:
        for name in options.servers if options.wanted(load.name) else ():
            if name == C_LOOP:
                results.add(load.name, name, c_loop(load, seconds))
            elif not options.quick or name != HYPERCORN or load == QUICK[0]:  # it does not notice soon
                results.add(load.name, name, fan_out(servers[name], load, seconds))


def measure_others(options: argparse.Namespace, results: Results, servers: Mapping[str, Server]) -> None:
    quick = options.quick
    for name, server in servers.items():
        if options.wanted(BURST) and (name == NATIVE or not quick):
            results.add(BURST, name, burst(server, 5 if quick else 20))
        if options.wanted(INBOUND):
            results.add(INBOUND, name, inbound(server, 10_000 if quick else 40_000))
        if options.wanted(CONNECTING):
            results.add(CONNECTING, name, connecting(server, 100 if quick else 500))


def targets(results: Results) -> list[Target]:
    def against_c(load: FanOut) -> float:
        return results.value(load.name, NATIVE, "cpu_us") / results.value(load.name, C_LOOP, "cpu_us")

    slow, fast, *_ = FAN_OUTS
    wrong = sum(
        results.value(workload, NATIVE, name)
        for workload, contenders in results.samples.items()
        for name in ("lost", "closed")
        if NATIVE in contenders and name in contenders[NATIVE][0]
    )
    return [
        Target(f"CPU a delivery, {slow.name}", against_c(slow), 1.3, "x the C loop"),
        Target(f"CPU a delivery, {fast.name}", against_c(fast), 0.4, "x the C loop"),
        Target(f"p99, {slow.name}", results.value(slow.name, NATIVE, "p99_ms"), 10, "ms"),
        Target(f"p99, {fast.name}", results.value(fast.name, NATIVE, "p99_ms"), 10, "ms"),
        Target("CPU an inbound message", results.value(INBOUND, NATIVE, "cpu_us"), 12, "us"),
        Target("memory of a joined idle client", results.value(MEMORY, NATIVE, "kib_a_client"), 32, "KiB"),
        Target("lost or closed in any run", wrong, 0),
    ]


HEAD = """# Channels

{machine}. Medians of {rounds} interleaved rounds, {seconds:g} s of load each.

CPU is what the operating system says that the server's threads and children used, the broker left out.
Latency is from before the publisher's write to after the client's read. *C loop* is one thread that does
nothing but `send` the same frames on as many sockets: the cost of the kernel. Lost and closed are sums over
all rounds, counted when a server has stopped working, or {patience:g} s after the last message was published.
*Joined and idle* is proportional set size.

"""


def text(results: Results, options: argparse.Namespace) -> str:
    fan_outs = [load.name for load in FAN_OUTS]
    columns = {
        "cpu_us": "CPU us a delivery",
        "p50_ms": "p50 ms",
        "p99_ms": "p99 ms",
        "lost": "lost",
        "closed": "closed",
    }
    seconds = 1.0 if options.quick else 3.0
    return "\n".join(
        [
            HEAD.format(machine=machine(), rounds=options.rounds, seconds=seconds, patience=PATIENCE).rstrip()
            + "\n",
            "## Promised\n",
            table(["what", "measured", "target", ""], [target.row() for target in targets(results)]),
            "## Fan-out: clients x messages a second, bytes a message\n",
            results_table(results, columns, [*fan_outs, BURST]),
            "## Inbound\n",
            results_table(
                results,
                {
                    "cpu_us": "CPU us a message",
                    "lost": "lost",
                    "closed": "closed",
                    "refused": "answered error",
                },
                [INBOUND],
            ),
            "## Connections\n",
            results_table(
                results,
                {"per_second": "a second", "cpu_us": "CPU us each", "p50_ms": "p50 ms", "p99_ms": "p99 ms"},
                [CONNECTING],
            ),
            results_table(results, {"kib_a_client": "KiB a client"}, [MEMORY]),
            "![plot](channels.svg)\n",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one short round, under a minute")
    parser.add_argument("--rounds", type=int, help="default: 3; quick: 1")
    parser.add_argument("--only", nargs="*", default=[], help="workloads whose name contains one of these")
    names = [NATIVE, C_LOOP, HYPERCORN, PUBLISHED]
    parser.add_argument("--servers", nargs="*", default=names, choices=names)
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.wanted = lambda name: not options.only or any(word in name for word in options.only)
    try:
        results = measure(options)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error}\n{error.stderr!r}")
    told = text(results, options)
    if options.no_write:
        print("\n" + told)
        return
    fan_outs = [load.name for load in FAN_OUTS]
    picture = svg(
        plot("CPU a delivery, microseconds", results, "cpu_us", "us", [*fan_outs, BURST]),
        plot("publish to client, p99, milliseconds", results, "p99_ms", "ms", [*fan_outs, BURST]),
        plot("CPU an inbound message, microseconds", results, "cpu_us", "us", [INBOUND]),
        plot("memory a joined idle client, KiB", results, "kib_a_client", "KiB", [MEMORY]),
    )
    write("channels", told, picture, quick=options.quick)
    missed = [target.what for target in targets(results) if not target.met]
    if missed:
        print("missed:", "; ".join(missed))


if __name__ == "__main__":
    main()
