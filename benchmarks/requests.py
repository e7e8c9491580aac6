"""Measure HTTP requests under load: both engines beside other frameworks.

    python benchmarks/requests.py [--quick] [--rounds N] [--only WORD ...] [--servers NAME ...]

All servers have the same routes (granian: the answer of 1 MiB) and no access log. A C program on another
processor uses 32 keep-alive connections with one request at a time. CPU is the operating system's figure for
the server's threads and children. Rounds are interleaved, and the table shows medians. Results are written to
``benchmarks/results/requests.md`` and ``.svg``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lib.loads import request
from benchmarks.lib.processes import NotInstalled, cpu_seconds
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
from benchmarks.lib.servers import (
    Server,
    start_fastapi,
    start_granian,
    start_on_uvicorn,
    start_robyn,
    start_tangram,
)

NATIVE, HYPERCORN = "tangram", "tangram on Hypercorn"
ASYNCIO, ASYNCIO_HTTPTOOLS, UVLOOP = (
    "FastAPI, asyncio",
    "FastAPI, asyncio + httptools",
    "FastAPI, uvloop + httptools",
)
BLACKSHEEP, LITESTAR, ROBYN, GRANIAN = (
    "blacksheep, uvloop + httptools",
    "Litestar, uvloop + httptools",
    "Robyn",
    "granian, bare ASGI",
)
SERVERS: dict[str, Callable[[Path], Server]] = {
    NATIVE: partial(start_tangram, routes=True),
    HYPERCORN: partial(start_tangram, engine="hypercorn", routes=True),
    ASYNCIO: partial(start_fastapi, loop="asyncio", parser="h11"),
    ASYNCIO_HTTPTOOLS: partial(start_fastapi, loop="asyncio", parser="httptools"),
    UVLOOP: partial(start_fastapi, loop="uvloop", parser="httptools"),
    BLACKSHEEP: partial(start_on_uvicorn, app="blacksheep_app"),
    LITESTAR: partial(start_on_uvicorn, app="litestar_app"),
    ROBYN: start_robyn,
    GRANIAN: start_granian,
}
CONNECTIONS = 32
HEADERS = b"Host: 127.0.0.1\r\nUser-Agent: benchmark\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\n"
BODY = b'{"icao24":"3944ef","callsign":"AFR123","altitude":31000,"latitude":43.6,"longitude":1.44}'


@dataclass(frozen=True)
class Route:
    name: str
    request: bytes
    requests: int
    """Requests of a full round; Hypercorn gets a quarter of them."""
    without: tuple[str, ...] = ()
    """Servers that do not have the route."""


ROUTES = (
    Route(
        "path parameter, five fields",
        b"GET /bench/aircraft/31000 HTTP/1.1\r\n" + HEADERS + b"\r\n",
        20_000,
        (GRANIAN,),
    ),
    Route(
        "JSON body, there and back",
        b"POST /bench/aircraft HTTP/1.1\r\n" + HEADERS + b"Content-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY),
        20_000,
        (GRANIAN,),
    ),
    Route(
        "file of 1 MiB",
        b"GET /bench/megabyte HTTP/1.1\r\n" + HEADERS + b"\r\n",
        1_000,
        (BLACKSHEEP, LITESTAR, ROBYN, GRANIAN),
    ),
    Route("answer of 1 MiB", b"GET /bench/answer HTTP/1.1\r\n" + HEADERS + b"\r\n", 2_000),
)


def ask(server: Server, route: Route, count: int) -> Sample:
    request(server.port, route.request, max(count // 20, CONNECTIONS), CONNECTIONS)
    cpu = cpu_seconds(server.pid)
    took = request(server.port, route.request, count, CONNECTIONS)
    cpu = cpu_seconds(server.pid) - cpu
    return {
        "per_second": count / took["seconds"],
        "cpu_us": cpu / count * 1e6,
        "p50_ms": took["p50_ms"],
        "p99_ms": took["p99_ms"],
    }


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
        for _ in range(options.rounds):
            for route in ROUTES:
                if not options.wanted(route.name):
                    continue
                for name, server in servers.items():
                    if name in route.without:
                        continue
                    count = route.requests // (8 if options.quick else 1) // (4 if name == HYPERCORN else 1)
                    results.add(route.name, name, ask(server, route, count))
    return results


def targets(results: Results) -> list[Target]:
    first, body, _, answer = (route.name for route in ROUTES)

    def against(name: str, figure: str) -> float:
        ours, theirs = results.value(first, NATIVE, figure), results.value(first, name, figure)
        return ours / theirs if figure == "per_second" else theirs / ours

    speed, cpu = f"requests/s, {first}", f"CPU a request, {first}"
    return [
        Target(f"{speed}: ours to {ASYNCIO}", against(ASYNCIO, "per_second"), 3, "x", at_least=True),
        Target(f"{speed}: ours to {UVLOOP}", against(UVLOOP, "per_second"), 1, "x", at_least=True),
        Target(f"{cpu}: {ASYNCIO} to ours", against(ASYNCIO, "cpu_us"), 3, "x", at_least=True),
        Target(f"{cpu}: {UVLOOP} to ours", against(UVLOOP, "cpu_us"), 1, "x", at_least=True),
        *(
            Target(
                f"CPU a request, {route}: ours to {name}",
                results.ratio(route, NATIVE, name, "cpu_us"),
                1,
                "x",
            )
            for route, names in (
                (first, (BLACKSHEEP, LITESTAR, ROBYN)),
                (body, (BLACKSHEEP, LITESTAR, ROBYN)),
                (answer, (GRANIAN,)),
            )
            for name in names
        ),
    ]


HEAD = """# Requests

{machine}

Medians of {rounds} interleaved rounds, {connections} keep-alive connections, one request at a time on
each, one process a server, access logs off. CPU is what the operating system says of the server's threads and
children.

*FastAPI, asyncio* is uvicorn as `pip install uvicorn` gives it (asyncio's own loop, h11); the other two have
httptools, and the last one uvloop as well. blacksheep and Litestar run on uvicorn with both. Robyn and
granian are written in Rust; Robyn's handlers check no fields, granian's application is bare ASGI. Ratios
among the targets are medians of the rounds' ratios.
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
            "## Routes\n",
            results_table(results, columns, names),
            "![plot](requests.svg)\n",
        ]
    )


def picture(results: Results) -> str:
    names = [route.name for route in ROUTES]
    return svg(
        plot("requests a second", results, "per_second", "/s", names),
        plot("CPU a request, microseconds", results, "cpu_us", "us", names),
    )


def main() -> None:
    options = parse_options(__doc__, rounds=5, servers=list(SERVERS))
    compare("requests", options, measure=measure, targets=targets, text=text, picture=picture)


if __name__ == "__main__":
    main()
