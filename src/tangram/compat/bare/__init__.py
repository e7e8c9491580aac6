"""The module ``fastapi`` where FastAPI is not installed: tangram's router under its names.

It covers the plugin guide and the declarations of published plugins. Plugins that need more need FastAPI
itself to be installed; their own routers are used then.
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
