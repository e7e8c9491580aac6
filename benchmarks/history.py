"""Measure histories and recovery beside their targets; exit with 1 if one is missed.

    python benchmarks/history.py [--quick] [FIGURE ...]

The figures: ``live`` is the cost of a delivery with a history, without one beside topics with one, and
without any; ``storm`` has 1,000 clients recover 100 messages each at once beside others; ``crash`` has 1,000
clients miss messages of a crash; ``recoveries`` strikes ten kinds of fault while pages of unmodified
phoenix.js count. CPU is the operating system's figure for the server.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import missed, recoveries
from benchmarks.figures.common import Figure, none_of, tell
from benchmarks.lib.loads import CHANNEL, TOPIC, Clients, publish, wait_delivered
from benchmarks.lib.processes import GIVE_UP, LOAD_CPUS, build, cpu_seconds, keep_off, pinned, wait_quiet
from benchmarks.lib.report import Promise, conclude
from benchmarks.lib.servers import UNLIMITED, Server, start_tangram

HERE = "history = [{topics = 'bench*', size = 200}]\n"
ELSEWHERE = "history = [{topics = 'other*'}]\n"
CASES = {"none": UNLIMITED, "off": UNLIMITED + ELSEWHERE, "on": UNLIMITED + HERE, "again": UNLIMITED}
MEMBERS = 100
"""Clients of each server of ``live``."""
RATE = 200
"""Messages a second for each of them."""
WARM_UP = 1.0
"""Seconds before CPU is measured."""
MISSED = 100
"""Messages that each client of the storm has missed."""


def live(starts: int, seconds: float) -> list[Figure]:
    """Compare servers that get messages at the same time, over several starts of each.

    The speed of a machine differs by a third from second to second, and a delivery by several percent from
    one start of a server to the next. So the servers share each second, and no start stands alone.
    """
    found: dict[str, list[float]] = {name: [] for name in CASES}
    for number in range(starts):
        costs = live_once(list(CASES)[:: 1 if number % 2 else -1], seconds)
        tell(f"  us a delivery: { {name: round(cost, 2) for name, cost in costs.items()} }")
        for name, cost in costs.items():
            found[name].append(cost / costs["none"])
    # 100 clients, and messages of plain PUBLISH, so that the recorder's work is in it.
    return [
        ratio("a delivery with a history", found["on"], 1.10),
        ratio("a delivery without one, beside topics with one", found["off"], 1.02),
        ratio("a delivery on a second server without any, to compare with", found["again"], None),
    ]


def live_once(names: Sequence[str], seconds: float) -> dict[str, float]:
    """Start servers, and return the microseconds of CPU for each delivery, the brokers left out."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers, loads = {}, {}
        for name in names:
            (Path(folder) / name).mkdir()
            servers[name] = one = start_tangram(Path(folder) / name, channel=CASES[name])
            stack.callback(one.end)
        for name, one in servers.items():
            loads[name] = clients = Clients(one.port, one.token(TOPIC), MEMBERS)
            stack.callback(clients.end)
        messages = round(RATE * (WARM_UP + seconds + 1))
        publishers = [start_publisher(one, messages) for one in servers.values()]
        time.sleep(WARM_UP)
        before = {name: cpu_seconds(one.pid) for name, one in servers.items()}
        time.sleep(seconds)
        spent = {name: cpu_seconds(one.pid) - before[name] for name, one in servers.items()}
        for publisher in publishers:
            publisher.wait(GIVE_UP)
        for name, one in servers.items():
            report = wait_delivered(loads[name], one.pid, messages * MEMBERS)
            if report["messages"] != messages * MEMBERS or report["disordered"]:
                sys.exit(f"a live message was lost or came in disorder: {report}")
    return {name: cpu / (RATE * seconds * MEMBERS) * 1e6 for name, cpu in spent.items()}


def start_publisher(server: Server, messages: int) -> subprocess.Popen[bytes]:
    command = [str(build("publish")), str(server.redis_port), CHANNEL, str(messages), str(RATE), "200", "1"]
    return subprocess.Popen(pinned(command, LOAD_CPUS), stdout=subprocess.DEVNULL)


def ratio(what: str, ratios: list[float], limit: float | None) -> Figure:
    """Compare the median of the ratios of several starts with its limit."""
    got = statistics.median(ratios)
    shown = f"{percent(got)} ({percent(min(ratios))} to {percent(max(ratios))} in {len(ratios)} starts)"
    if limit is None:
        return Figure(f"{what}, CPU", shown, "", None)
    return Figure(f"{what}, CPU", shown, f"<= {percent(limit, 0)}", got <= limit)


def percent(ratio: float, digits: int = 1) -> str:
    return f"{(ratio - 1) * 100:+.{digits}f} %"


def storm(count: int) -> list[Figure]:
    """Let clients recover at once, beside 50 others that get live messages on another topic."""
    with tempfile.TemporaryDirectory() as folder:
        server = start_tangram(Path(folder), channel=UNLIMITED + HERE)
        others = Clients(server.port, server.token("else"), 50, topic="else")
        try:
            position = first_position(server)
            publish(server.redis_port, MISSED, 500, 200)
            wait_quiet(server.pid)
            quiet = beside(server, others, lambda: None)
            # The token stands last in the join's payload, so that the position can follow it there.
            token = f'{server.token(TOPIC)}","recover":"{position}'
            clients = Clients(server.port, token, count, window=count, mode="hold")
            took: list[float] = []
            busy = beside(server, others, lambda: took.append(recover_all(clients)))
            report = clients.ask("report")
            clients.end()
        finally:
            others.end()
            server.end()
    later = busy - quiet
    missing = count * MISSED - report["messages"]
    return [
        none_of(f"messages missing of {count:,} clients that recover {MISSED} each at once", missing),
        none_of("  in disorder", report["disordered"]),
        Figure("  until the last of them", f"{took[0]:.2f} s", "<= 2 s", took[0] <= 2),
        Figure("  p99 of other clients beside it", f"{later:+.1f} ms", "<= +20 ms", later <= 20),
    ]


def first_position(server: Server) -> str:
    """Return the position of a first join."""

    async def ask() -> str:
        from tangram.client import open_socket

        async with open_socket(f"http://127.0.0.1:{server.port}") as client:
            channel = await client.join(TOPIC, token=server.token(TOPIC), recover=True)
            return str(channel.position)

    return trio.run(ask)


def recover_all(clients: Clients) -> float:
    """Join all clients at once, and return the seconds until the last missed message."""
    began = time.monotonic()
    clients.join()
    while clients.ask("report")["messages"] < clients.count * MISSED and time.monotonic() < began + 20:
        time.sleep(0.01)
    return time.monotonic() - began


def beside(server: Server, others: Clients, work: Callable[[], None]) -> float:
    """Return the p99 latency in ms of the other clients while the work is done, and for two seconds."""
    others.ask("reset")
    command = [str(build("publish")), str(server.redis_port), "to:else:tick", "400", "100", "200", "1"]
    with subprocess.Popen(pinned(command, LOAD_CPUS), stdout=subprocess.DEVNULL):
        work()
    time.sleep(0.3)
    p99: float = others.ask("report")["p99_ms"]
    return p99


FULL: dict[str, Callable[[], list[Figure]]] = {
    "live": lambda: live(8, 8.0),
    "storm": lambda: storm(1000),
    "crash": lambda: missed.measure(5, 1000),
    "recoveries": lambda: trio.run(recoveries.measure, 3, 30, 1000),
}
QUICK: dict[str, Callable[[], list[Figure]]] = {
    "live": lambda: live(2, 3.0),
    "storm": lambda: storm(200),
    "crash": lambda: missed.measure(1, 200),
    "recoveries": lambda: trio.run(recoveries.measure, 1, 4, 32),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="under a minute and a half in all")
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=" ".join(FULL))
    options = parser.parse_args()
    unknown = sorted(set(options.figures) - set(FULL))
    if unknown:
        parser.error(f"unknown: {' '.join(unknown)}; expected some of {' '.join(FULL)}")
    keep_off()
    wanted = QUICK if options.quick else FULL
    promises: list[Promise] = []
    for name in options.figures or wanted:
        began = time.monotonic()
        for figure in wanted[name]():
            print(figure, flush=True)
            if figure.ok is not None:
                promises.append(Promise(figure.what.strip(), figure.measured, figure.target, figure.ok))
        tell(f"  {name}: {time.monotonic() - began:.0f} s")
    tell(json.dumps({"promises": len(promises)}))
    conclude(promises)


if __name__ == "__main__":
    main()
