"""HTTP routes, declared as in FastAPI and answered as an ASGI application on Trio.

Example::

    router = APIRouter(prefix="/weather")

    @router.get("/wind")
    async def wind(level: Annotated[int, Query(ge=0)] = 0) -> Wind: ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tangram.routing.exceptions import HTTPException, InvalidRequest, ResponseAborted, WebSocketDisconnect
from tangram.routing.params import Body, Cookie, Depends, Header, Path, Query
from tangram.routing.request import Request
from tangram.routing.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from tangram.routing.router import APIRouter, Mount, Resolver
from tangram.routing.table import RouteTable, check_router

if TYPE_CHECKING:
    from tangram.routing.document import openapi
    from tangram.routing.files import FileResponse
    from tangram.routing.schema import json_schema
    from tangram.routing.websocket import WebSocket

__all__ = [
    "APIRouter",
    "Body",
    "Cookie",
    "Depends",
    "FileResponse",
    "HTMLResponse",
    "HTTPException",
    "Header",
    "InvalidRequest",
    "JSONResponse",
    "Mount",
    "Path",
    "PlainTextResponse",
    "Query",
    "RedirectResponse",
    "Request",
    "Resolver",
    "Response",
    "ResponseAborted",
    "RouteTable",
    "StreamingResponse",
    "WebSocket",
    "WebSocketDisconnect",
    "check_router",
    "json_schema",
    "openapi",
]


def __getattr__(name: str) -> Any:
    """Import the parts that few servers need on first use."""
    from importlib import import_module

    homes = {
        "FileResponse": "files",
        "WebSocket": "websocket",
        "json_schema": "schema",
        "openapi": "document",
    }
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{homes[name]}"), name)
    return value
