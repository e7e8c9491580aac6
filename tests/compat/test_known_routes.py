"""Routes that are found by their expressions are those that FastAPI's own search finds."""

from __future__ import annotations

from typing import Any

import pytest

from tangram.compat.known_routes import KnownRoutes
from tangram.compat.names import has_fastapi

pytestmark = pytest.mark.skipif(
    not has_fastapi(), reason="FastAPI is not installed here: make test-downstream"
)


def application() -> Any:
    """Return an application with nested routers, a mount, and a route with matching of its own."""
    from fastapi import APIRouter, FastAPI
    from fastapi.routing import APIRoute

    class Never(APIRoute):  # type: ignore[misc]  # FastAPI ships no types to this environment
        def matches(self, scope: Any) -> Any:
            match, child = super().matches({**scope, "path": "/nowhere"})
            return match, child

    async def handler() -> None:
        """Answer nothing."""

    inner, outer, odd = APIRouter(prefix="/inner"), APIRouter(prefix="/outer"), APIRouter(route_class=Never)
    inner.add_api_route("/{number:int}", handler, methods=["GET", "DELETE"])
    outer.add_api_route("/items/{name}", handler, methods=["POST"])
    outer.add_api_websocket_route("/socket", handler)
    outer.include_router(inner)
    odd.add_api_route("/odd", handler)
    app = FastAPI(openapi_url=None)
    for router in (outer, odd):
        app.include_router(router)
    app.mount("/mounted", FastAPI())
    return app


def scope(method: str, path: str, kind: str = "http", root: str = "") -> Any:
    return {"type": kind, "method": method, "path": path, "root_path": root, "headers": []}


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/outer/inner/1"), ("DELETE", "/outer/inner/22"), ("POST", "/outer/items/a")]
)
def test_routes_of_nested_routers_are_known(method: str, path: str) -> None:
    """Path and method suffice, prefixes included."""
    assert KnownRoutes(application()).have(scope(method, path))


@pytest.mark.parametrize(
    "asked",
    [
        scope("GET", "/outer/inner/x"),
        scope("PUT", "/outer/inner/1"),
        scope("HEAD", "/outer/inner/1"),
        scope("GET", "/inner/1"),
        scope("GET", "/outer/inner/1/"),
        scope("GET", "/outer/socket"),
        scope("GET", "/outer/inner/1", kind="websocket"),
        scope("GET", "/outer/inner/1", root="/outer"),
        scope("GET", "/odd"),
        scope("GET", "/mounted/x"),
    ],
    ids=str,
)
def test_everything_else_is_left_to_fastapi(asked: Any) -> None:
    """Other methods, sockets, mounts and routes with matching of their own."""
    assert not KnownRoutes(application()).have(asked)
