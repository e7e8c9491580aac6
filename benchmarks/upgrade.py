"""Upgrade three nodes behind nginx, one after the other, under joined browsers.

    python benchmarks/upgrade.py [--quick] [--clients N] [--pause SECONDS]

Three server processes on one Valkey have nginx before them, with the part for three nodes of docs/nodes.md.
Clients in C have joined a topic with presence in lists, each with an id of its own. A plugin on one node at a
time publishes numbers, which the topic keeps in a history. Then each node is stopped and started again, the
next one as soon as the last one is ready. Clients come back 10 ms after they were closed.

An attempt to come back that led to no join is counted by the place where it ended. It is refused if the
connection, the upgrade or the join had no answer, or another one than it asked for. It is moved if the server
has closed it with the code of a stop before the answer to its join, because phoenix.js then joins elsewhere
10 ms later.

Five more clients, by ``tangram.client``, look at everything: no member may be missing in a list that they
know, and no number may be missing or come twice.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lib.loads import PATH, TOPIC, Clients
from benchmarks.lib.processes import CPUS, GIVE_UP, ROOT, Process, Valkey, free_port, keep_off, wait_for_port
from benchmarks.lib.report import Target, conclude, machine, promised
from benchmarks.lib.servers import PLUGIN, environ_of

from tangram.client import open_socket

CLIENTS = 2000
OBSERVERS = 5
SETTLE = 60.0
SETTINGS = """jwt_secret = "a secret of the benchmark, long enough"
upgrade_burst = 100000
join_burst = 100000
token_burst = 100000
token_rate = 100000.0
[[channel.presence]]
topics = "bench"
limit = 10000
[[channel.history]]
topics = "bench"
size = 5000
"""


def start_node(folder: Path, port: int, valkey: Valkey) -> Process:
    """Start a node, and wait until it is ready."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "tangram.toml"
    config.write_text(
        f'[core]\nplugins = ["counting_bench:plugin"]\nredis_url = "{valkey.url}"\n[server]\nport = {port}\n'
        f"max_connections_per_address = 0\n[channel]\n{SETTINGS}"
    )
    path = os.pathsep.join(map(str, (PLUGIN, ROOT / "src")))
    command = [sys.executable, "-m", "tangram", "serve", "--config", str(config)]
    cpus = ",".join(map(str, CPUS))
    process = Process(command, cpus=cpus, environ=environ_of(folder, PYTHONPATH=path), log=folder / "log")
    wait_for_port(port, process)
    until = time.monotonic() + GIVE_UP
    while time.monotonic() < until:
        connection = HTTPConnection("127.0.0.1", port, timeout=GIVE_UP)
        connection.request("GET", "/-/readyz")
        status = connection.getresponse().status
        connection.close()
        if status == HTTPStatus.OK:
            return process
        time.sleep(0.05)
    sys.exit(f"a node was not ready in time:\n{(folder / 'log').read_text()[-2000:]}")


def end_all(nodes: list[Process]) -> None:
    """End the nodes of now."""
    for node in nodes:
        node.end()


def nginx(folder: Path, ports: list[int]) -> tuple[Process, int]:
    """Start nginx before the nodes."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        sys.exit("nginx was not found: apt-get install nginx-light")
    found = re.search(r"```nginx\n(.*?)```", (ROOT / "docs" / "nodes.md").read_text(), re.DOTALL)
    assert found is not None
    upstream = found[1]
    for number, node in enumerate(ports, 1):
        upstream = upstream.replace(f"10.0.0.{number}:2346", f"127.0.0.1:{node}")
    port = free_port()
    places = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{place}_temp_path {folder};" for place in places)
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error; "
        "worker_rlimit_nofile 20000;\n"
        "events { worker_connections 10000; multi_accept on; }\n"
        f"http {{ access_log off; {temporary}\n{upstream}\n"
        f"server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://tangram; "
        "proxy_http_version 1.1; proxy_set_header Host $http_host; proxy_set_header Upgrade $http_upgrade; "
        'proxy_set_header Connection "upgrade"; proxy_buffering off; proxy_read_timeout 120s; } } }\n'
    )
    process = Process([program, "-p", str(folder), "-c", str(config), "-e", f"{folder}/error"])
    wait_for_port(port, process)
    return process, port


def tokens(port: int, count: int) -> list[str]:
    """Return tokens with ids of their own."""
    connection = HTTPConnection("127.0.0.1", port, timeout=GIVE_UP)
    found = []
    for number in range(count):
        body = json.dumps({"channel": TOPIC})
        connection.request("POST", "/token", body, {"content-type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        if "token" not in answer:
            sys.exit(f"no token {number}: {answer}")
        found.append(answer["token"])
    connection.close()
    return found


class Observer:
    """A client that looks at everything."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.missing = 0
        self.expected: frozenset[str] = frozenset()
        self.present: Mapping[str, Any] = {}

    async def run(self, url: str, token: str) -> None:
        async with open_socket(url) as socket, trio.open_nursery() as nursery:
            channel = await socket.join(TOPIC, token=token, recover=True)

            def look(present: Mapping[str, Any]) -> bool:
                self.present = present
                self.missing += len(self.expected - present.keys())
                return False

            nursery.start_soon(channel.wait_presence, look)
            async for event in channel:
                self.numbers.append(event.payload["n"])

    @property
    def gaps(self) -> int:
        """Return the numbers that are missing or came out of order."""
        return sum(
            later != earlier + 1 for earlier, later in zip(self.numbers, self.numbers[1:], strict=False)
        )


@asynccontextmanager
async def observing(port: int, shown: list[str]) -> AsyncIterator[list[Observer]]:
    observers = [Observer() for _ in shown]
    async with trio.open_nursery() as nursery:
        for observer, token in zip(observers, shown, strict=True):
            nursery.start_soon(observer.run, f"http://127.0.0.1:{port}", token)
        yield observers
        nursery.cancel_scope.cancel()


async def measure(count: int, folder: Path, pause: float) -> dict[str, float]:
    """Upgrade three nodes under ``count`` clients, ``pause`` seconds apart."""
    with ExitStack() as stack:
        valkey = Valkey(folder)
        stack.callback(valkey.end)
        ports = [free_port() for _ in range(3)]
        nodes = [start_node(folder / f"node{port}", port, valkey) for port in ports]
        stack.callback(end_all, nodes)
        balancer, front = nginx(folder, ports)
        stack.callback(balancer.end)
        made = tokens(ports[0], count + OBSERVERS)
        lines = folder / "tokens"
        lines.write_text("".join(f"{TOPIC} {token}\n" for token in made[OBSERVERS:]))
        clients = Clients(front, "-", count, window=100, path=PATH, topic=f"@{lines}")
        stack.callback(clients.end)
        async with observing(front, made[:OBSERVERS]) as observers:
            await all_see(observers, count + OBSERVERS)
            for observer in observers:
                observer.expected = frozenset(observer.present)
            clients.tell("return")
            began = time.monotonic()
            for number, port in enumerate(ports):
                await trio.to_thread.run_sync(nodes[number].end)
                nodes[number] = await trio.to_thread.run_sync(
                    start_node, folder / f"node{port}", port, valkey
                )
                await trio.sleep(pause)
            with trio.fail_after(SETTLE):
                back = await trio.to_thread.run_sync(clients.process.read_json, abandon_on_cancel=True)
            seconds = time.monotonic() - began
            await all_see(observers, count + OBSERVERS)
            last = max(observer.numbers[-1] for observer in observers)
            with trio.fail_after(SETTLE):
                while any(observer.numbers[-1] <= last + 5 for observer in observers):  # noqa: ASYNC110 - several clients
                    await trio.sleep(0.1)
        return {
            **back,
            "seconds": seconds,
            "flickers": sum(observer.missing for observer in observers),
            "gaps": sum(observer.gaps for observer in observers),
            "numbers": sum(len(observer.numbers) for observer in observers),
        }


async def all_see(observers: list[Observer], count: int) -> None:
    """Wait until each knows all members."""
    with trio.fail_after(SETTLE):
        while any(len(one.present) < count or not one.numbers for one in observers):  # noqa: ASYNC110 - several clients
            await trio.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="100 clients")
    parser.add_argument("--clients", type=int, help=f"default: {CLIENTS:,}")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two nodes")
    options = parser.parse_args()
    keep_off()
    print(machine())
    count = options.clients or (100 if options.quick else CLIENTS)
    with tempfile.TemporaryDirectory() as folder:
        found = trio.run(measure, count, Path(folder), options.pause)
    print(found)
    what = f"an upgrade of three nodes, {count:,} clients"
    promises = [
        Target(f"refused in {what}", found["refused"], 0).promise(),
        Target(f"members missing in lists in {what}", found["flickers"], 0).promise(),
        Target(f"numbers missing or twice in {what}", found["gaps"], 0).promise(),
    ]
    print(promised(promises))
    conclude(promises)


if __name__ == "__main__":
    main()
