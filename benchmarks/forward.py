"""Measure requests that another node answers, beside requests that are answered directly.

    python benchmarks/forward.py [--quick] [--rounds N] [--only WORD ...]

Two servers share one Redis and hold a placed plugin: one node runs it, the other one forwards. The same
requests are sent to both, in turns: with one connection for the time that forwarding adds, with 32 for the
CPU time of both nodes together. CPU is the operating system's figure. Then the plugin is moved between the
nodes under a load of requests to both, each of which must be answered with 200.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lib.loads import request
from benchmarks.lib.processes import Valkey, cpu_seconds, keep_off
from benchmarks.lib.report import Target, conclude, machine
from benchmarks.lib.servers import Server, start_node

HEADERS = b"Host: 127.0.0.1\r\nUser-Agent: benchmark\r\nAccept: */*\r\n"
BODY = b'{"icao24":"3944ef","callsign":"AFR123","altitude":31000,"latitude":43.6,"longitude":1.44}'
ROUTES = {
    "GET, five fields": (b"GET /bench/aircraft/31000 HTTP/1.1\r\n" + HEADERS + b"\r\n", 4_000),
    "POST, JSON there and back": (
        b"POST /bench/aircraft HTTP/1.1\r\n" + HEADERS + b"Content-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
        4_000,
    ),
    "answer of 1 MiB": (b"GET /bench/answer HTTP/1.1\r\n" + HEADERS + b"\r\n", 200),
}
ADDED_MS = 1.0
CONNECTIONS = 32
MOVED_REQUESTS = 10_000
MOVES = 20
THREADS = 8


def holder_of(nodes: list[Server]) -> tuple[Server, Server]:
    """Return the node that runs the plugin, and the other one."""
    until = time.monotonic() + 20
    named: list[str] = []
    while time.monotonic() < until:
        named = [ask(node, "/bench/aircraft/1")[1] for node in nodes]
        # A node that answers itself names none.
        if named.count("") == 1:
            index = named.index("")
            return nodes[index], nodes[1 - index]
        time.sleep(0.1)
    sys.exit(f"the plugin does not run on one of two nodes: they name {named}")


def ask(node: Server, path: str, *, method: str = "GET", token: str = "") -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=10)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers.get("server-timing", ""), body


def compare(nodes: list[Server], options: argparse.Namespace) -> list[Target]:
    """Send the same requests to the holder and to the other node, in turns."""
    holder, other = holder_of(nodes)
    targets = []
    for name, (data, full) in ROUTES.items():
        if not options.wanted(name):
            continue
        count = full // 8 if options.quick else full
        added: list[float] = []
        cpu: dict[str, list[float]] = {"direct": [], "forwarded": []}
        for _ in range(options.rounds):
            p50 = {}
            for way, node in (("direct", holder), ("forwarded", other)):
                request(node.port, data, max(count // 20, CONNECTIONS), CONNECTIONS)
                p50[way] = request(node.port, data, count // 4, 1)["p50_ms"]
                before = sum(cpu_seconds(one.pid) for one in nodes)
                request(node.port, data, count, CONNECTIONS)
                cpu[way].append((sum(cpu_seconds(one.pid) for one in nodes) - before) / count * 1e6)
            added.append(p50["forwarded"] - p50["direct"])
        direct, forwarded = (statistics.median(cpu[way]) for way in ("direct", "forwarded"))
        ratio = statistics.median(
            [two / one for one, two in zip(cpu["direct"], cpu["forwarded"], strict=True)]
        )
        print(
            f"{name:26} added p50 {statistics.median(added):6.3f} ms, CPU of both nodes "
            f"{direct:7.0f} us direct, {forwarded:7.0f} us forwarded ({ratio:.2f} x)"
        )
        if name != "answer of 1 MiB":
            targets.append(Target(f"forwarding adds, p50: {name}", statistics.median(added), ADDED_MS, "ms"))
    return targets


class Load(threading.Thread):
    """Requests one after the other to both nodes in turns, until all are sent."""

    def __init__(self, nodes: list[Server], count: int, number: int) -> None:
        super().__init__(daemon=True)
        self.nodes, self.count, self.number = nodes, count, number
        self.wrong: list[str] = []
        self.longest = 0.0

    def run(self) -> None:
        connections = [http.client.HTTPConnection("127.0.0.1", node.port, timeout=10) for node in self.nodes]
        for index in range(self.count):
            connection = connections[(index + self.number) % len(connections)]
            began = time.monotonic()
            try:
                if index % 2:
                    connection.request("POST", "/bench/aircraft", BODY, {"content-type": "application/json"})
                else:
                    connection.request("GET", "/bench/aircraft/31000")
                answer = connection.getresponse()
                body = answer.read()
                if answer.status != http.HTTPStatus.OK:
                    self.wrong.append(f"{answer.status} {body[:80]!r}")
            except (OSError, http.client.HTTPException) as error:
                self.wrong.append(repr(error))
                connection.close()
            self.longest = max(self.longest, time.monotonic() - began)


def moves(nodes: list[Server], tokens: dict[int, str], *, quick: bool) -> list[Target]:
    """Move the plugin again and again while requests are sent to both nodes."""
    count, rounds = (MOVED_REQUESTS // 10, 4) if quick else (MOVED_REQUESTS, MOVES)
    loads = [Load(nodes, count // THREADS, number) for number in range(THREADS)]
    for load in loads:
        load.start()
    moved = 0
    while any(load.is_alive() for load in loads):
        if moved < rounds:
            status, _, body = ask(
                nodes[0], "/-/plugins/tangram_bench/move", method="POST", token=tokens[nodes[0].port]
            )
            if status != http.HTTPStatus.OK:
                sys.exit(f"the plugin cannot be moved: {status} {body!r}")
            moved += 1
        time.sleep(0.2)
    wrong = [what for load in loads for what in load.wrong]
    for what in sorted(set(wrong)):
        print(f"  {wrong.count(what)} x {what}")
    sent = sum(load.count for load in loads)
    longest = max(one.longest for one in loads)
    print(f"{sent} requests in {moved} planned moves, the longest took {longest:.3f} s")
    return [Target(f"requests refused or failed in {moved} planned moves, of {sent}", len(wrong), 0, "")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, help="default: 5; quick: 1")
    parser.add_argument("--only", nargs="*", default=[], help="workloads whose name contains one of these")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.wanted = lambda name: not options.only or any(word in name for word in options.only)
    keep_off()
    print(machine())
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        valkey = Valkey(Path(folder))
        stack.callback(valkey.end)
        nodes, tokens = [], {}
        for name in ("a", "b"):
            node = start_node(Path(folder) / name, valkey, name)
            stack.callback(node.process.end)
            nodes.append(node)
            tokens[node.port] = next((Path(folder) / name).rglob("operator-token")).read_text().strip()
        targets = compare(nodes, options)
        if options.wanted("moves"):
            targets += moves(nodes, tokens, quick=options.quick)
    conclude([target.promise() for target in targets])


if __name__ == "__main__":
    main()
