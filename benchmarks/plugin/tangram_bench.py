"""The measured routes as a plugin, the same as in ``fastapi_app``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import attrs

import tangram

router = tangram.APIRouter(prefix="/bench")

megabyte = Path(tempfile.mkdtemp(prefix="bench-")) / "megabyte.bin"
megabyte.write_bytes(bytes(range(256)) * 4096)


@attrs.frozen
class Aircraft:
    icao24: str
    callsign: str
    altitude: int
    latitude: float
    longitude: float


@router.get("/aircraft/{altitude}")
async def aircraft(altitude: int) -> Aircraft:
    return Aircraft("3944ef", "AFR123", altitude, 43.6, 1.44)


@router.post("/aircraft")
async def add(aircraft: Aircraft) -> Aircraft:
    return aircraft


@router.get("/megabyte")
async def file() -> tangram.FileResponse:
    return tangram.FileResponse(megabyte)


content = megabyte.read_bytes()


@router.get("/answer")
async def answer() -> tangram.Response:
    return tangram.Response(content, media_type="application/octet-stream")


plugin = tangram.Plugin(routers=[router])
