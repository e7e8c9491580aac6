"""HTTP routes: declared like FastAPI's, bound by cattrs, answered at the ASGI level on Trio.

router = APIRouter(prefix="/weather")

@router.get("/wind")
async def wind(level: Annotated[int, Query(ge=0)] = 0) -> Wind: ...
"""

from __future__ import annotations

from .exceptions import HTTPException, InvalidRequest, ResponseAborted
from .files import FileResponse
from .openapi import openapi
from .params import Body, Cookie, Depends, Header, Path, Query
from .request import Request
from .responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from .router import APIRouter, Mount, Resolver
from .schema import json_schema
from .table import RouteTable, check_router

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
    "check_router",
    "json_schema",
    "openapi",
]
