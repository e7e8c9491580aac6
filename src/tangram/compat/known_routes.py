"""The routes of a FastAPI application that a look at method and path finds.

The site asks the application of each plugin whether a request is its own, before FastAPI searches its routers
for the same request. FastAPI's search takes about 8 us, of which most is bookkeeping in the scope. A route's
expression alone takes less than one.

Only positive results count here: a route that was added later, that has matching of its own, or that has the
path for other methods is left to FastAPI's search.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tangram.asgi import Scope

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["KnownRoutes"]


class KnownRoutes:
    """The HTTP routes of an application whose expressions decide alone.

    Args:
        app: The application, with all routers included.
    """

    def __init__(self, app: FastAPI) -> None:
        self._by_method: dict[str, list[re.Pattern[str]]] = {}
        for route in _routes(app):
            if _decides_alone(route):
                for method in route.methods:
                    self._by_method.setdefault(method, []).append(route.path_regex)

    def have(self, scope: Scope) -> bool:
        """Return whether one of these routes answers a request; False says nothing."""
        if scope["type"] != "http" or scope.get("root_path"):
            return False
        path: str = scope["path"]
        return any(pattern.match(path) for pattern in self._by_method.get(scope["method"], ()))


def _routes(app: FastAPI) -> Iterable[Any]:
    """Return the routes of an application and its routers, each with its whole path."""
    from fastapi import routing

    # Earlier versions copy the routes of a router when it is included.
    contexts = getattr(routing, "iter_route_contexts", iter)
    found: Iterable[Any] = contexts(app.router.routes)
    return found


def _decides_alone(route: Any) -> bool:
    """Return whether a route matches by its expression and its methods, and by nothing else."""
    from fastapi.routing import APIRoute
    from starlette.routing import Route

    kind = type(getattr(route, "original_route", route))
    if getattr(kind, "matches", None) not in {APIRoute.matches, Route.matches}:
        return False
    return isinstance(getattr(route, "path_regex", None), re.Pattern) and bool(route.methods)
