"""The measured routes on Litestar, the same as in ``tangram_bench``."""

from __future__ import annotations

from dataclasses import dataclass

from litestar import Litestar, Response, get, post

megabyte = bytes(range(256)) * 4096


@dataclass
class Aircraft:
    icao24: str
    callsign: str
    altitude: int
    latitude: float
    longitude: float


async def aircraft(altitude: int) -> Aircraft:
    return Aircraft("3944ef", "AFR123", altitude, 43.6, 1.44)


async def add(data: Aircraft) -> Aircraft:
    return data


async def answer() -> Response[bytes]:
    return Response(megabyte, media_type="application/octet-stream")


routes = [
    get("/bench/aircraft/{altitude:int}")(aircraft),
    post("/bench/aircraft", status_code=200)(add),
    get("/bench/answer")(answer),
]
app = Litestar(routes, openapi_config=None, logging_config=None)
