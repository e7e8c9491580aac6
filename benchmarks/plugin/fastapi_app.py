"""The measured routes on FastAPI, the same as in ``tangram_bench``."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel

app = FastAPI()

megabyte = Path(tempfile.mkdtemp(prefix="bench-")) / "megabyte.bin"
megabyte.write_bytes(bytes(range(256)) * 4096)


class Aircraft(BaseModel):
    icao24: str
    callsign: str
    altitude: int
    latitude: float
    longitude: float


async def aircraft(altitude: int) -> Aircraft:
    return Aircraft(icao24="3944ef", callsign="AFR123", altitude=altitude, latitude=43.6, longitude=1.44)


async def add(aircraft: Aircraft) -> Aircraft:
    return aircraft


async def file() -> FileResponse:
    return FileResponse(megabyte)


content = megabyte.read_bytes()


async def answer() -> Response:
    return Response(content, media_type="application/octet-stream")


app.add_api_route("/bench/aircraft/{altitude}", aircraft)
app.add_api_route("/bench/aircraft", add, methods=["POST"])
app.add_api_route("/bench/megabyte", file)
app.add_api_route("/bench/answer", answer)
