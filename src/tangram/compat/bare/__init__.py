"""What ``import fastapi`` gives to plugins where FastAPI is not installed: our router, under its names.

Enough for the plugin guide and for what published plugins declare; whoever needs more installs FastAPI
itself, and its own routers are taken then.
"""

from __future__ import annotations

from typing import Any

from tangram.compat.bare import exceptions, params, requests, responses, routing, status
from tangram.compat.bare.exceptions import HTTPException
from tangram.compat.bare.routing import APIRouter
from tangram.routing import Body, Cookie, Depends, Header, Path, Query, Request, Response

__all__ = [
    "APIRouter",
    "Body",
    "Cookie",
    "Depends",
    "HTTPException",
    "Header",
    "Path",
    "Query",
    "Request",
    "Response",
    "exceptions",
    "params",
    "requests",
    "responses",
    "routing",
    "status",
]


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(
        f"fastapi.{name} is not among what tangram answers where FastAPI is not installed: "
        "pip install fastapi"
    )
