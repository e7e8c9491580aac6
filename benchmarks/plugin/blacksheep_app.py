"""The measured routes on blacksheep, the same as in ``tangram_bench``."""

from __future__ import annotations

from dataclasses import dataclass

from blacksheep import Application, Content, Response

app = Application()

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


async def add(aircraft: Aircraft) -> Aircraft:
    return aircraft


async def answer() -> Response:
    return Response(200, content=Content(b"application/octet-stream", megabyte))


app.router.add_get("/bench/aircraft/{altitude}", aircraft)
app.router.add_post("/bench/aircraft", add)
app.router.add_get("/bench/answer", answer)
