"""Measure the time from a crash to the last missed message, with clients that recover.

Messages go on while the server is away. The clients come back at the times of phoenix.js, and each ends its
wait at the position behind the messages that it has missed.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from benchmarks.figures.common import Figure, none_of, quantile, tell
from benchmarks.lib.loads import TOPIC, Clients
from benchmarks.lib.processes import LOAD_CPUS, Process, running
from benchmarks.lib.recorded import SIZE
from benchmarks.lib.servers import UNLIMITED, Server, start_tangram

RATE = 100
"""Messages a second, before the crash, during it and after it."""
SECRET = "jwt_secret = 'the same before the crash and after it'\n"
HERE = f"{UNLIMITED}{SECRET}history = [{{topics = 'bench*', size = {SIZE}}}]\n"
WARM = 1.0
"""Seconds of messages before the crash."""


def crash_plugin(server: Server) -> None:
    """Let the plugin crash: the supervisor restarts the plugins and the channels."""
    redis.Redis(port=server.redis_port).publish("from:bench:crash", "{}")


def kill_server(server: Server) -> None:
    """Kill the server with SIGKILL, and start it again at once."""
    server.process.restart(signal.SIGKILL)


FAULTS: dict[str, Callable[[Server], None]] = {
    "plugin crashed": crash_plugin,
    "server killed and started": kill_server,
}


def measure(rounds: int, count: int) -> list[Figure]:
    """Strike each fault in some rounds, each with a new server."""
    return [figure for name in FAULTS for figure in _measure_fault(name, rounds, count)]


def _measure_fault(name: str, rounds: int, count: int) -> list[Figure]:
    rows = [_strike(FAULTS[name], count) for _ in range(rounds)]
    p99 = [row["p99_ms"] for row in rows]
    tell(f"  {name}: p50 {[row['p50_ms'] for row in rows]} ms, p99 {p99} ms")
    median = quantile(p99, 0.5)
    return [
        none_of(f"{name}: messages missing of {count:,} clients", sum(row["skipped"] for row in rows)),
        none_of("  joins that were told of missed messages", sum(row["told_missed"] for row in rows)),
        Figure(
            "  from the crash to the last missed message, p99",
            f"{median / 1000:.2f} s",
            "<= 1.5 s",
            median <= 1500,
        ),
    ]


def _strike(fault: Callable[[Server], None], count: int) -> dict[str, Any]:
    """Let clients come back from one fault; return the percentiles, and the messages that were missed."""
    with tempfile.TemporaryDirectory() as folder:
        server = start_tangram(Path(folder), plugin="crashing_bench", channel=HERE)
        command = [sys.executable, "-m", "benchmarks.lib.recorded", str(server.redis_port), str(RATE)]
        clients = Clients(server.port, server.token(TOPIC), count, mode="recover")
        try:
            with running(Process(command, cpus=LOAD_CPUS)):
                time.sleep(WARM)
                clients.tell("return")
                fault(server)
                back = clients.process.read_json()
                time.sleep(WARM)
                return {**clients.ask("report"), **back}
        finally:
            clients.end()
            server.end()
