"""Measure single messages and single pushes: the costs of a wake-up, beside other servers.

    python benchmarks/singles.py [--quick] [--rounds N] [--only WORD ...] [--servers NAME ...] [--pieces FILE]

Each message goes to one client, and each push is a write of its own, so that each costs a wake-up. The others
are the published tangram-core, ``ws`` with ``ioredis`` on Node, and NATS, nchan and Mosquitto with publishers
of their own protocols. CPU is the operating system's figure for the server's threads and children, without a
broker. Rounds are interleaved, and ratios are medians of the rounds' ratios. Results are written to
``benchmarks/results/singles.md`` and ``.svg``: with ``--pieces``, those of all runs whose rounds are in the
file.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.channels import Inbound, inbound
from benchmarks.lib.loads import Clients, wait_delivered
from benchmarks.lib.peers import Peer, send_payloads, start_mosquitto, start_nats, start_nchan, start_ws
from benchmarks.lib.processes import LOAD_CPUS, NotInstalled, build, cpu_seconds, pinned, wait_quiet
from benchmarks.lib.program import compare, parse_options
from benchmarks.lib.report import (
    Results,
    Sample,
    Target,
    plot,
    promised,
    results_table,
    show,
    svg,
    table,
)
from benchmarks.lib.servers import UNLIMITED, Server, start_published, start_tangram

from tangram.channels.simd_json import AVAILABLE

NATIVE, SILENT, PUBLISHED = "tangram", "tangram, push_replies = false", "tangram-core"
BY_TCP = "tangram, Redis by TCP"
WS, NATS, NCHAN, MOSQUITTO = "ws + ioredis", "NATS", "nchan", "Mosquitto"
SERVERS: dict[str, Callable[[Path], Server]] = {
    NATIVE: partial(start_tangram, by_socket=True),
    SILENT: partial(start_tangram, channel=UNLIMITED + "push_replies = false\n", by_socket=True),
    BY_TCP: start_tangram,
    PUBLISHED: start_published,
    WS: start_ws,
    NATS: start_nats,
    NCHAN: start_nchan,
    MOSQUITTO: start_mosquitto,
}
PUSHING: Final = (NATIVE, SILENT, BY_TCP, PUBLISHED, WS)
"""Servers that take pushes to Redis."""


@dataclass(frozen=True)
class Single:
    """Messages to one client each."""

    topics: int
    """Clients, each on a topic of its own."""
    rate: int
    size: int
    goals: tuple[tuple[str, float], ...]
    """The most CPU that this server may use, as a multiple of another server's."""
    aircraft: bool = False
    """Whether the payload is a list of aircraft, and not one long string."""

    @property
    def name(self) -> str:
        what = "aircraft" if self.aircraft else "message"
        return f"{what} of {self.size:,} B to one client, {self.topics:,} topics, {self.rate:,}/s"


SINGLES = (
    Single(1, 100, 500_000, ((PUBLISHED, 1.0),)),
    Single(1, 200, 20_000, ((PUBLISHED, 1.0),)),
    Single(100, 1_000, 200, ((PUBLISHED, 1.2),)),
    Single(5_000, 1_000, 200, ((WS, 1.2), (NATS, 1.2))),
    Single(1, 20, 558_000, ((WS, 1.0),), aircraft=True),
)
PUSHES = (Inbound(1, 1_000, 3.0), Inbound(1, 5_000, 3.0))
PUSH_GOAL = 1.2
MANY: Final = 100
"""Topics above which a quick run measures nothing unless ``--only`` is given, and no run the published
server: with 5,000 clients it had not joined all of them after a minute."""


def aircraft(size: int) -> bytes:
    """Return a JSON object of about ``size`` bytes, as a receiver of aircraft makes it, always the same."""
    rng = random.Random(14)
    found: list[dict[str, object]] = []
    length = 16
    while length < size:
        one: dict[str, object] = {
            "hex": f"{rng.getrandbits(24):06x}",
            "flight": f"AFR{rng.randrange(10_000):<5}",
            "alt_baro": rng.randrange(0, 41_000, 25),
            "gs": round(rng.uniform(80, 520), 1),
            "track": round(rng.uniform(0, 360), 2),
            "lat": round(rng.uniform(41, 51), 6),
            "lon": round(rng.uniform(-5, 9), 6),
            "squawk": f"{rng.getrandbits(12):04o}",
            "category": rng.choice(("A1", "A3", "A5")),
            "nav_modes": ["autopilot", "vnav", "tcas"][: rng.randrange(4)],
            "mlat": [],
            "rssi": round(rng.uniform(-30, -1), 1),
        }
        found.append(one)
        length += len(json.dumps(one, separators=(",", ":"))) + 1
    return json.dumps({"z": found}, separators=(",", ":")).encode()


def lines(server: Server, count: int) -> str:
    """Return topics and tokens of ``count`` clients, one in each line."""
    if isinstance(server, Peer):
        return server.lines(count)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    found = []
    for number in range(count):
        body = json.dumps({"channel": f"t{number}"})
        connection.request("POST", "/token", body, {"content-type": "application/json"})
        found.append(f"t{number} {json.loads(connection.getresponse().read())['token']}\n")
    connection.close()
    return "".join(found)


def open_clients(server: Server, count: int, folder: Path) -> Clients:
    """Return clients that have joined a topic each."""
    file = folder / f"{server.port}-{count}-topics"
    if not file.exists():
        file.write_text(lines(server, count))
    if isinstance(server, Peer):
        return Clients(server.port, server.greeting, count, path=server.path, topic=f"@{file}")
    return Clients(server.port, "-", count, topic=f"@{file}")


def publish(server: Server, load: Single, messages: int, file: Path) -> None:
    """Publish all messages: over Redis, or by the protocol of a peer."""
    if isinstance(server, Peer) and server.valkey is None:
        rest = file.read_bytes()[1:] if load.aircraft else b'"z":"%b"}' % (b"z" * (load.size - 40))
        send_payloads(server, "t{}", load.rate, payloads(messages, rest), topics=load.topics)
        return
    numbers = map(
        str, (messages, load.rate, file.stat().st_size + 64 if load.aircraft else load.size, 1, load.topics)
    )
    command = [str(build("publish")), str(server.redis_port), "to:t%d:tick", *numbers]
    subprocess.run(
        pinned(command + [str(file)] * load.aircraft, LOAD_CPUS), check=True, stdout=subprocess.DEVNULL
    )


def payloads(messages: int, rest: bytes) -> Iterator[Callable[[], bytes]]:
    for number in range(messages):
        yield lambda number=number: b'{"n":%d,"t":%d,%b' % (number, time.monotonic_ns(), rest)  # type: ignore[misc]


def single(server: Server, load: Single, seconds: float, folder: Path) -> Sample:
    messages = int(load.rate * seconds)
    clients = open_clients(server, load.topics, folder)
    try:
        wait_quiet(server.pid)
        clients.ask("reset")
        cpu = cpu_seconds(server.pid)
        publish(server, load, messages, folder / "aircraft.json")
        report = wait_delivered(clients, server.pid, messages)
        cpu = cpu_seconds(server.pid) - cpu
    finally:
        clients.end()
        wait_quiet(server.pid)
    return {
        "cpu_us": cpu / max(report["messages"], 1) * 1e6,
        "p50_ms": report["p50_ms"],
        "p99_ms": report["p99_ms"],
        "lost": messages - report["messages"],
        "closed": report["closed"],
    }


def measure(options: argparse.Namespace) -> Results:
    results = Results()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "aircraft.json").write_bytes(aircraft(SINGLES[-1].size))
        servers: dict[str, Server] = {}
        for contender in options.servers:
            try:
                servers[contender] = SERVERS[contender](folder / contender)
            except NotInstalled as error:
                print(error, flush=True)
                options.missing.append(contender)
                continue
            stack.callback(servers[contender].end)
        for _ in range(options.rounds):
            for load in SINGLES:
                for contender, server in servers.items() if options.wanted(load.name) else ():
                    if contender != SILENT and serves(contender, load, options):
                        results.add(load.name, contender, single(server, load, options.seconds, folder))
            for push in PUSHES:
                for contender, server in servers.items() if options.wanted(push.name) else ():
                    if contender in PUSHING:
                        results.add(push.name, contender, inbound(server, push, options.seconds))
    return results


def serves(contender: str, load: Single, options: argparse.Namespace) -> bool:
    """Return whether a server is measured with a load."""
    return load.topics <= MANY or (contender != PUBLISHED and (not options.quick or bool(options.only)))


def targets(results: Results) -> list[Target]:
    found = [
        Target(
            f"CPU, {load.name}: ours to {other}", results.ratio(load.name, NATIVE, other, "cpu_us"), goal, "x"
        )
        for load in SINGLES
        for other, goal in load.goals
    ]
    for push in PUSHES:
        for ours in (NATIVE, SILENT):
            what = "" if ours == NATIVE else ", without replies"
            ratio = results.ratio(push.name, ours, PUBLISHED, "cpu_us")
            found.append(Target(f"CPU, {push.name}{what}: ours to {PUBLISHED}", ratio, PUSH_GOAL, "x"))
    lost = [
        results.value(load.name, NATIVE, figure)
        for load in SINGLES
        for figure in ("lost", "closed")
        if NATIVE in results.samples.get(load.name, {})
    ]
    found.append(Target("single messages: lost or closed", sum(lost) if lost else float("nan"), 0))
    return found


HEAD = """# Single messages

{machine}

Medians of {rounds} interleaved rounds, {seconds:g} s of load each. CPU is what the operating system says that
the server's threads and children used, a broker left out. NATS, nchan and Mosquitto need no broker, check no
token and no JSON, and have publishers of their own protocols; their clients use WebSockets, too.
*ws + ioredis* checks no token and no JSON, either. The published server answers no push: the row without
replies compares like with like. With 5,000 topics it is left out, because it does not join so many clients
within a minute: there *ws + ioredis* and NATS are the measure. This server checks large JSON {check}, and
reaches Redis by a Unix socket, as it reaches its embedded broker; the others use TCP, as they are run, and so
does this server in the rows with *Redis by TCP*.

At such rates a server sleeps between two messages, and most of the cost is waking up: `docs/figures.md` has
the least that Python and Trio take for it.
"""


def ratios(results: Results) -> str:
    """Return our CPU as a multiple of each other server's: above 1, this server loses."""
    others = [name for name in SERVERS if name not in (NATIVE, SILENT, BY_TCP)]
    rows = [
        [name + way, *(show(results.ratio(name, ours, other, "cpu_us")) for other in others)]
        for name in [*(load.name for load in SINGLES), *(push.name for push in PUSHES)]
        for ours, way in ((NATIVE, ""), (BY_TCP, ", Redis by TCP"))
    ]
    return table(["workload", *others], rows)


def text(results: Results, options: argparse.Namespace, where: str) -> str:
    columns = {
        "cpu_us": "CPU us a message",
        "p50_ms": "p50 ms",
        "p99_ms": "p99 ms",
        "lost": "lost",
        "closed": "closed",
    }
    pushing = {
        "cpu_us": "CPU us a push",
        **{name: name for name in ("lost", "unanswered", "refused", "closed")},
    }
    return "\n".join(
        [
            HEAD.format(
                machine=where,
                rounds=max(len(one) for found in results.samples.values() for one in found.values()),
                seconds=options.seconds,
                check="by simdjson" if AVAILABLE else "by itself, without simdjson",
            ),
            *(f"Not measured: {name}, which could not be installed.\n" for name in options.missing),
            "## Promised\n",
            promised([target.promise() for target in targets(results)]),
            "## Our CPU as a multiple of theirs\n",
            ratios(results),
            "## Messages to one client each\n",
            results_table(results, columns, [load.name for load in SINGLES]),
            "## One push in each write, 50 clients\n",
            results_table(results, pushing, [push.name for push in PUSHES]),
            "![plot](singles.svg)\n",
        ]
    )


def picture(results: Results) -> str:
    names = [*(load.name for load in SINGLES), *(push.name for push in PUSHES)]
    return svg(plot("CPU a message, microseconds", results, "cpu_us", "us", names))


def main() -> None:
    options = parse_options(__doc__, rounds=5, servers=list(SERVERS))
    options.seconds = 1.0 if options.quick else 2.0
    compare("singles", options, measure=measure, targets=targets, text=text, picture=picture)


if __name__ == "__main__":
    main()
