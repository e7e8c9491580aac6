"""A plugin that answers ``GET /my-plugin/``."""

from __future__ import annotations

import tangram

router = tangram.APIRouter(prefix="/my-plugin")


@router.get("/")
async def my_endpoint() -> dict[str, str]:
    return {"message": "Hello from my custom plugin!"}


plugin = tangram.Plugin(routers=[router])
