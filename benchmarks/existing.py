"""Measure an existing plugin under load: here, on the published server, and as FastAPI alone on uvicorn.

    python benchmarks/existing.py [--quick] [--rounds N] [--only WORD ...] [--servers NAME ...]

The plugin is written for tangram-core: one FastAPI router, the same on all servers (``fastapi_app``). CPU is
the operating system's figure for the server's threads and children. Rounds are interleaved, and the table
shows medians, also where this server loses. Results are written to ``benchmarks/results/existing.md`` and
``.svg``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lib.loads import request
from benchmarks.lib.processes import NotInstalled
from benchmarks.lib.program import compare, parse_options
from benchmarks.lib.report import (
    Results,
    Target,
    plot,
    promised,
    results_table,
    show,
    svg,
    table,
)
from benchmarks.lib.servers import Server, start_existing, start_fastapi, start_published_plugin
from benchmarks.requests import BODY, CONNECTIONS, HEADERS, Route, ask

NATIVE, HYPERCORN = "tangram", "tangram on Hypercorn"
PUBLISHED, PUBLISHED_HTTPTOOLS = "tangram-core", "tangram-core + httptools"
ASYNCIO, ASYNCIO_HTTPTOOLS, UVLOOP = (
    "FastAPI, asyncio",
    "FastAPI, asyncio + httptools",
    "FastAPI, uvloop + httptools",
)
SERVERS: dict[str, Callable[[Path], Server]] = {
    NATIVE: start_existing,
    HYPERCORN: partial(start_existing, engine="hypercorn"),
    PUBLISHED: start_published_plugin,
    PUBLISHED_HTTPTOOLS: partial(start_published_plugin, parser="httptools"),
    ASYNCIO: partial(start_fastapi, loop="asyncio", parser="h11"),
    ASYNCIO_HTTPTOOLS: partial(start_fastapi, loop="asyncio", parser="httptools"),
    UVLOOP: partial(start_fastapi, loop="uvloop", parser="httptools"),
}
GOALS = {PUBLISHED: 0.9, ASYNCIO: 1.6}
"""The most CPU that this server may use, as a multiple of the other server's."""

WARM_UP = 2_500
"""Requests to each server before anything is measured."""


def get(path: bytes) -> bytes:
    return b"GET /bench/" + path + b" HTTP/1.1\r\n" + HEADERS + b"\r\n"


ROUTES = (
    Route("path parameter, five fields", get(b"aircraft/31000"), 4_000),
    Route(
        "JSON body, there and back",
        b"POST /bench/aircraft HTTP/1.1\r\n" + HEADERS + b"Content-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
        4_000,
    ),
    Route("handler in a thread", get(b"thread"), 2_000),
    Route("file of 1 MiB", get(b"megabyte"), 400),
    Route("answer of 1 MiB", get(b"answer"), 1_000),
    Route("stream of 50 pieces, 900 bytes each", get(b"stream"), 500),
)


def measure(options: argparse.Namespace) -> Results:
    results = Results()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers: dict[str, Server] = {}
        for name in options.servers:
            try:
                servers[name] = SERVERS[name](Path(folder))
            except NotInstalled as error:
                print(error, flush=True)
                options.missing.append(name)
                continue
            stack.callback(servers[name].end)
            # This server examines its first 2,000 requests for signs of a proxy.
            request(servers[name].port, ROUTES[0].request, WARM_UP, CONNECTIONS)
        for _ in range(options.rounds):
            for route in ROUTES:
                if not options.wanted(route.name):
                    continue
                for name, server in servers.items():
                    count = route.requests // (8 if options.quick else 1) // (4 if name == HYPERCORN else 1)
                    results.add(route.name, name, ask(server, route, count))
    return results


def ratio(results: Results, route: Route, other: str) -> float:
    return results.value(route.name, NATIVE, "cpu_us") / results.value(route.name, other, "cpu_us")


def targets(results: Results) -> list[Target]:
    return [
        Target(f"CPU a request of an existing plugin, {route.name}: ours to {other}", value, goal, "x")
        for route in ROUTES
        for other, goal in GOALS.items()
        for value in [ratio(results, route, other)]
    ]


def ratios(results: Results) -> str:
    """Return the table of our CPU as a multiple of each other server's: above 1, this server loses."""
    others = [name for name in SERVERS if name != NATIVE]
    rows = [[route.name, *(show(ratio(results, route, other)) for other in others)] for route in ROUTES]
    return table(["workload", *others], rows)


HEAD = """# Existing plugins

{machine}

Medians of {rounds} interleaved rounds, {connections} keep-alive connections, one request at a time on
each, one process a server, access logs off. CPU is what the operating system says of the server's threads and
children.

*tangram-core* is the published server as `pip install tangram-core` gives it. It runs on uvicorn, which
parses with h11 unless httptools is installed. *FastAPI, asyncio* is uvicorn as `pip install uvicorn` gives it
(asyncio's own loop, h11); the other two have httptools, and the last one uvloop as well.
"""


def text(results: Results, options: argparse.Namespace, where: str) -> str:
    names = [route.name for route in ROUTES]
    columns = {
        "per_second": "requests/s",
        "cpu_us": "CPU us a request",
        "p50_ms": "p50 ms",
        "p99_ms": "p99 ms",
    }
    return "\n".join(
        [
            HEAD.format(machine=where, rounds=options.rounds, connections=CONNECTIONS),
            *(f"Not measured: {name}, which could not be installed.\n" for name in options.missing),
            "## Promised\n",
            promised([target.promise() for target in targets(results)]),
            "## Our CPU as a multiple of theirs\n",
            ratios(results),
            "## Routes\n",
            results_table(results, columns, names),
            "![plot](existing.svg)\n",
        ]
    )


def picture(results: Results) -> str:
    names = [route.name for route in ROUTES]
    return svg(plot("CPU a request, microseconds", results, "cpu_us", "us", names))


def main() -> None:
    options = parse_options(__doc__, rounds=5, servers=list(SERVERS))
    compare("existing", options, measure=measure, targets=targets, text=text, picture=picture)


if __name__ == "__main__":
    main()
