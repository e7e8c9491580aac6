"""Measure two workers beside one process, and rolling restarts under load.

    python benchmarks/workers.py [--quick] [--restarts N]
    python benchmarks/workers.py --restarts N --pieces FILE    # restarts alone; their results are added to it

Capacity is the work for each second of processor time of the busiest process. With one process that is its
own time; with two workers it is that of the one with more to do, so that an uneven balance of connections
counts as well as the cost of a second process. The load and the broker are other processes, whose time is not
counted: on a machine with two processors they would take a part of them from the workers.

Rolling restarts: SIGHUP replaces both workers, again and again, while clients open a connection for each
request and others keep theirs. A connection that is refused, or ends without an answer, is counted. With
``--pieces`` the counts are those of all runs whose results are in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lib.loads import TOPIC, Clients, publish, request, wait_delivered
from benchmarks.lib.processes import GIVE_UP, below, cpu_seconds, keep_off, memory_bytes, wait_quiet
from benchmarks.lib.report import Promise, Target, conclude, machine, promised
from benchmarks.lib.servers import Server, start_tangram

REQUEST = b"GET /bench/aircraft/31000 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
CONNECTIONS = 64
CLIENTS = 1000
SIZE = 200
RATE = 20
"""Messages a second: so few that none gather, which would depend on the load of the machine."""
ASK_EVERY = 0.004
RESTARTS = 300
"""Workers that are replaced in the full run."""


def workers_of(server: Server) -> list[int]:
    """Return the processes that serve: the workers, or the only process."""
    found = [pid for pid in below(server.pid)[1:] if "cli.worker" in command_of(pid)]
    return found or [server.pid]


def command_of(pid: int) -> str:
    """Return the command line of a process, unless it is a guard."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
    return "" if command.startswith("/bin/sh") else command


def busiest(server: Server, load: Callable[[], float]) -> float:
    """Return the work of a load for each processor second of the process that had most to do."""
    wait_quiet(server.pid)
    workers = workers_of(server)
    before = [cpu_seconds(pid) for pid in workers]
    work = load()
    return work / max(cpu_seconds(pid) - then for pid, then in zip(workers, before, strict=True))


def serve_requests(server: Server, count: int) -> float:
    """Return the requests that were answered."""
    answered = request(server.port, REQUEST, count, CONNECTIONS)
    assert not answered.get("errors"), answered
    return count


def capacity_of_requests(server: Server, count: int) -> float:
    request(server.port, REQUEST, count // 20, CONNECTIONS)
    return busiest(server, lambda: serve_requests(server, count))


def capacity_of_fan_out(server: Server, messages: int) -> float:
    clients = Clients(server.port, server.token(TOPIC), CLIENTS)
    try:
        wait_quiet(server.pid)
        clients.ask("reset")

        def load() -> float:
            publish(server.redis_port, messages, RATE, SIZE)
            return float(wait_delivered(clients, server.pid, messages * CLIENTS)["messages"])

        return busiest(server, load)
    finally:
        clients.end()


def compare(rounds: int, *, quick: bool) -> tuple[float, float, float]:
    """Return the ratios of capacity of two workers to one, and the bytes of a further worker."""
    requests, messages = (4_000, 40) if quick else (20_000, 100)
    with tempfile.TemporaryDirectory() as folder:
        servers = [start(Path(folder), count) for count in (1, 2, 3)]
        try:
            further = memory_bytes(servers[2].pid) - memory_bytes(servers[1].pid)
            servers.pop().end()
            http, fan_out = list[float](), list[float]()
            for _ in range(rounds):
                one, two = (capacity_of_requests(server, requests) for server in servers[:2])
                http.append(two / one)
                one, two = (capacity_of_fan_out(server, messages) for server in servers[:2])
                fan_out.append(two / one)
            return statistics.median(http), statistics.median(fan_out), float(further)
        finally:
            for server in servers:
                server.end()


class Askers:
    """Clients that ask all the time, each request on a new connection or on a kept one."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.results: Counter[str] = Counter()
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=run) for run in (self._open, self._open, self._keep, self._keep)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(GIVE_UP)

    def _open(self) -> None:
        while not self._over.wait(ASK_EVERY):
            connection = HTTPConnection("127.0.0.1", self.port, timeout=GIVE_UP)
            self._ask(connection)
            connection.close()

    def _keep(self) -> None:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=GIVE_UP)
        while not self._over.wait(ASK_EVERY):
            self._ask(connection)  # it connects anew after an answer with ``connection: close``
        connection.close()

    def _ask(self, connection: HTTPConnection) -> None:
        try:
            connection.request("GET", "/bench/aircraft/31000")
            answer = connection.getresponse()
            answer.read()
            self.results[str(answer.status)] += 1
        except ConnectionRefusedError:
            self.results["refused"] += 1
        except (OSError, HTTPException):
            self.results["lost"] += 1
            connection.close()


def replace_workers(restarts: int) -> Counter[str]:
    """Return the results of the clients while workers were replaced."""
    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder), 2)
        assert server.process.log is not None
        askers = Askers(server.port)
        try:
            for number in range(1, (restarts + 1) // 2 + 1):
                os.kill(server.pid, signal.SIGHUP)
                wait_for_events(server.process.log, "rolling restart over", number)
        finally:
            askers.end()
            server.end()
        return askers.results


def start(folder: Path, workers: int) -> Server:
    """Start a server, and wait for all of its workers."""
    server = start_tangram(folder, routes=True, workers=workers)
    if workers > 1:
        assert server.process.log is not None
        wait_for_events(server.process.log, "all workers ready", 1)
    return server


def wait_for_events(log: Path, event: str, times: int) -> None:
    until = time.monotonic() + GIVE_UP
    while log.read_text().count(event) < times:
        if time.monotonic() > until:
            sys.exit(f"the log has no {times} records {event!r}:\n{log.read_text()[-2000:]}")
        time.sleep(0.05)


def add_piece(file: Path, restarts: int, results: Counter[str]) -> tuple[int, Counter[str]]:
    """Add the results of a run to a file; return the restarts and results of all runs in it."""
    with file.open("a") as lines:
        lines.write(json.dumps({"restarts": restarts, "results": results}) + "\n")
    pieces = [json.loads(line) for line in file.read_text().splitlines()]
    every = Counter[str]()
    for piece in pieces:
        every.update(piece["results"])
    return sum(piece["restarts"] for piece in pieces), every


def promises_of_restarts(restarts: int, results: Counter[str]) -> list[Promise]:
    """Print the answers, and return what is promised of them."""
    print(f"answers during {restarts} restarts: {dict(results)}")
    wrong = sum(count for what, count in results.items() if what not in {"200", "refused"})
    return [
        Target(f"refused connections in {restarts} rolling restarts", results["refused"], 0).promise(),
        Target("connections without an answer in them", wrong, 0).promise(),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one short round, and ten replaced workers")
    parser.add_argument("--restarts", type=int, help=f"workers to replace; {RESTARTS}, quick 10")
    parser.add_argument(
        "--pieces", type=Path, metavar="FILE", help="restarts alone; add to the results in FILE"
    )
    options = parser.parse_args()
    keep_off()
    print(machine())
    restarts = options.restarts or (10 if options.quick else RESTARTS)
    promises = []
    if options.pieces is None:
        http, fan_out, further = compare(1 if options.quick else 5, quick=options.quick)
        print(f"memory of a further worker: {further / 1e6:.1f} MB")
        promises += [
            Target("capacity for requests of two workers to one", http, 1.7, at_least=True).promise(),
            Target("capacity for fan-out of two workers to one", fan_out, 1.7, at_least=True).promise(),
        ]
    results = replace_workers(restarts)
    if options.pieces is not None:
        restarts, results = add_piece(options.pieces, restarts, results)
    promises += promises_of_restarts(restarts, results)
    print(promised(promises))
    conclude(promises)


if __name__ == "__main__":
    main()
