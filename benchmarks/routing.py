"""Measure the CPU time of a request inside ``RouteTable``, without a server.

python benchmarks/routing.py [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Annotated, Any

import attrs
import trio

from tangram.routing import APIRouter, Depends, Mount, Query, RouteTable

router = APIRouter()


@attrs.frozen
class Aircraft:
    icao24: str
    callsign: str
    altitude: int
    latitude: float
    longitude: float


class Registry:
    def __init__(self) -> None:
        self.number = 7


def page(limit: Annotated[int, Query(ge=1, le=100)] = 20, offset: int = 0) -> tuple[int, int]:
    return limit, offset


async def page_async(limit: Annotated[int, Query(ge=1, le=100)] = 20, offset: int = 0) -> tuple[int, int]:
    return limit, offset


@router.get("/aircraft/{number}")
async def one(number: int) -> Aircraft:
    return Aircraft("3944ef", "AFR123", number, 43.6, 1.44)


@router.get("/dict/{number}")
async def one_dict(number: int) -> dict[str, Any]:
    return {"icao24": "3944ef", "callsign": "AFR123", "altitude": number, "latitude": 43.6, "longitude": 1.44}


@router.get("/list")
async def several(
    page: Annotated[tuple[int, int], Depends(page_async)], registry: Registry
) -> dict[str, int]:
    return {"limit": page[0], "offset": page[1], "number": registry.number}


@router.post("/aircraft")
async def add(aircraft: Aircraft) -> Aircraft:
    return aircraft


BODY = b'{"icao24":"3944ef","callsign":"AFR123","altitude":31000,"latitude":43.6,"longitude":1.44}'
JSON = [
    (b"host", b"localhost"),
    (b"content-type", b"application/json"),
    (b"content-length", b"%d" % len(BODY)),
]
HEADERS = [(b"host", b"localhost"), (b"user-agent", b"bench"), (b"accept", b"*/*")]
CASES = [
    ("one typed path parameter, attrs answer of five fields", "GET", "/aircraft/31000", b"", b"", HEADERS),
    ("the same, a dict", "GET", "/dict/31000", b"", b"", HEADERS),
    (
        "dependency with two query parameters, injected state",
        "GET",
        "/list",
        b"limit=5&offset=9",
        b"",
        HEADERS,
    ),
    ("JSON body of five fields, there and back", "POST", "/aircraft", b"", BODY, JSON),
    ("422, one fault", "GET", "/aircraft/many", b"", b"", HEADERS),
    ("404", "GET", "/nowhere/at/all", b"", b"", HEADERS),
]


async def measure(table: RouteTable, case: tuple[Any, ...], number: int) -> float:
    _, method, path, query, body, headers = case
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "headers": headers,
    }
    start = time.process_time()
    for _ in range(number):
        await table(dict(scope), receive, send)
    return (time.process_time() - start) / number * 1e6


async def main(*, quick: bool) -> None:
    registry = Registry()
    table = RouteTable([Mount(router, "bench", lambda _: registry)], injectable=[Registry])
    number, rounds = (500, 3) if quick else (10_000, 7)
    for case in CASES:
        await measure(table, case, number // 5)
        times = [await measure(table, case, number) for _ in range(rounds)]
        print(f"{statistics.median(times):8.1f} us  (least {min(times):.1f})  {case[0]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a look in a second")
    trio.run(lambda: main(quick=parser.parse_args().quick))
