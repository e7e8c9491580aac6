"""The measured routes on FastAPI: those of ``tangram_bench`` and more; ``existing_bench`` has them, too."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel

router = APIRouter(prefix="/bench")

megabyte = Path(tempfile.mkdtemp(prefix="bench-")) / "megabyte.bin"
content = bytes(range(256)) * 4096
megabyte.write_bytes(content)


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


def thread() -> Aircraft:
    return Aircraft(icao24="3944ef", callsign="AFR123", altitude=0, latitude=43.6, longitude=1.44)


async def file() -> FileResponse:
    return FileResponse(megabyte)


async def answer() -> Response:
    return Response(content, media_type="application/octet-stream")


async def pieces() -> AsyncIterator[bytes]:
    for number in range(50):
        yield b"%8d " % number * 100 + b"\n"


async def stream() -> StreamingResponse:
    return StreamingResponse(pieces(), media_type="text/plain")


router.add_api_route("/aircraft/{altitude}", aircraft)
router.add_api_route("/aircraft", add, methods=["POST"])
router.add_api_route("/thread", thread)
router.add_api_route("/megabyte", file)
router.add_api_route("/answer", answer)
router.add_api_route("/stream", stream)

app = FastAPI()
app.include_router(router)
