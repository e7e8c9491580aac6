"""``APIRouter``: declare routes with decorators. A wrong declaration raises at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypedDict, TypeVar, Unpack

import attrs

from tangram.asgi import ASGIApp
from tangram.errors import RouteError
from tangram.routing.params import DependsMarker
from tangram.routing.paths import PathTemplate, parse_path
from tangram.routing.responses import JSONResponse, Response

__all__ = ["APIRouter", "Mount", "Resolver", "Route"]

F = TypeVar("F", bound=Callable[..., Any])
Resolver = Callable[[type], object]
"""Returns the value of an injected type, for example of ``BackendState``."""

_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"))


@attrs.frozen(kw_only=True)
class Route:
    """A declared route; ``template`` includes the prefixes."""

    template: PathTemplate
    methods: frozenset[str]
    endpoint: Callable[..., Any]
    name: str
    tags: tuple[str, ...] = ()
    summary: str | None = None
    description: str | None = None
    status_code: int = 200
    response_class: type[Response] = JSONResponse
    response_model: Any = None
    response_description: str = "Successful Response"
    responses: Mapping[int | str, Mapping[str, Any]] = attrs.field(factory=dict)
    dependencies: tuple[DependsMarker, ...] = ()
    include_in_schema: bool = True
    deprecated: bool = False
    operation_id: str | None = None
    openapi_extra: Mapping[str, Any] = attrs.field(factory=dict)
    websocket: bool = False
    """It answers WebSockets, and no method."""
    mounted: bool = False
    """``endpoint`` is an ASGI application that answers all requests below the path."""
    max_body: int | None = None
    """The largest request body in bytes; None is the server's ``max_body``, 0 is no limit."""

    def below(self, prefix: str, tags: Sequence[str], dependencies: Sequence[DependsMarker]) -> Route:
        """Return this route with a prefix, tags and dependencies of its router."""
        merged = tuple(dict.fromkeys((*tags, *self.tags)))
        template = parse_path(prefix + self.template.path) if prefix else self.template
        return attrs.evolve(
            self, template=template, tags=merged, dependencies=(*dependencies, *self.dependencies)
        )


class RouteSettings(TypedDict, total=False):
    """The keyword arguments of a route; all are optional."""

    tags: Sequence[str]
    """Groups on the documentation page."""
    dependencies: Sequence[Any]
    """``[Depends(...)]``: called before the handler for their exceptions."""
    status_code: int
    """The status, if the handler returns no ``Response``."""
    response_class: type[Response] | None
    """The class that a plain return value is converted to."""
    response_model: Any
    """The type of the answer in the documentation, in place of the return annotation."""
    responses: Mapping[int | str, Mapping[str, Any]] | None
    """Further answers for the documentation: ``{404: {"description": ..., "model": ...}}``."""
    response_description: str
    """The description of the usual answer."""
    name: str | None
    """The name in the log and the documentation; the handler's by default."""
    summary: str | None
    """The title on the documentation page; made from the name by default."""
    description: str | None
    """The text on the documentation page; the handler's docstring by default."""
    operation_id: str | None
    """OpenAPI's ``operationId``; made from name, path and method by default."""
    include_in_schema: bool
    """The route is part of the documentation."""
    deprecated: bool
    """The documentation marks the route as deprecated."""
    openapi_extra: Mapping[str, Any] | None
    """Further keys of the operation in the documentation, for example ``requestBody`` of a handler that reads
    the body itself.
    """
    max_body: int | None
    """The largest request body in bytes, in place of ``[server] max_body``; 0 is no limit."""


class APIRouter:
    """A set of routes under one prefix.

    Args:
        prefix: begins with a slash and does not end with one.
        tags: groups of the routes on the documentation page.
        dependencies: ``[Depends(...)]``, called before each handler for their exceptions.
        include_in_schema: the routes are part of the documentation.

    Raises:
        RouteError: the prefix or a dependency is malformed.
    """

    def __init__(
        self,
        prefix: str = "",
        *,
        tags: Sequence[str] = (),
        dependencies: Sequence[Any] = (),
        include_in_schema: bool = True,
    ) -> None:
        if prefix and (not prefix.startswith("/") or prefix.endswith("/")):
            raise RouteError(
                f"expected a prefix such as '/weather', with a slash in front only, not {prefix!r}"
            )
        self.prefix = prefix
        self.tags = tuple(tags)
        self.dependencies = _depends(dependencies)
        self.include_in_schema = include_in_schema
        self._routes: list[Route | _Included] = []

    @property
    def routes(self) -> tuple[Route, ...]:
        """All HTTP routes with their whole paths, those of included routers among them."""
        return tuple(route for route in self._all_routes() if not route.websocket)

    @property
    def websocket_routes(self) -> tuple[Route, ...]:
        """All WebSocket routes with their whole paths, those of included routers among them."""
        return tuple(route for route in self._all_routes() if route.websocket)

    def _all_routes(self) -> list[Route]:
        found: list[Route] = []
        for entry in self._routes:
            if isinstance(entry, Route):
                found.append(entry.below(self.prefix, self.tags, self.dependencies))
            else:
                tags = (*self.tags, *entry.tags)
                depends = (*self.dependencies, *entry.dependencies)
                prefix = self.prefix + entry.prefix
                found.extend(route.below(prefix, tags, depends) for route in entry.router._all_routes())  # noqa: SLF001 - of the same class
        if not self.include_in_schema:
            return [attrs.evolve(route, include_in_schema=False) for route in found]
        return found

    def mount(self, path: str, app: ASGIApp, *, name: str | None = None, max_body: int | None = None) -> None:
        """Answer all requests and WebSockets below ``path`` with an ASGI application on Trio.

        The application gets the path of the mount in ``root_path``. Its lifespan is not run: use the lifespan
        of the plugin.

        Example::

            router.mount("/tiles", StaticFiles(directory="tiles"))  # of Starlette

        Args:
            path: begins with a slash and does not end with one.
            app: the application.
            name: the name in the log; that of the application's class by default.
            max_body: the largest request body in bytes; by default the server's.

        Raises:
            RouteError: the path is malformed.
        """
        _check_max_body(max_body, path)
        if not path.startswith("/") or path.endswith("/"):
            raise RouteError(f"expected a path such as '/tiles', with a slash in front only, not {path!r}")
        route = Route(
            template=_checked_path(self.prefix, path + "/{rest:path}", app),
            methods=_METHODS,
            endpoint=app,
            name=name or type(app).__name__,
            include_in_schema=False,
            mounted=True,
            max_body=max_body,
        )
        self._routes.append(route)

    def include_router(
        self,
        router: APIRouter,
        *,
        prefix: str = "",
        tags: Sequence[str] = (),
        dependencies: Sequence[Any] = (),
    ) -> None:
        """Add the routes of ``router`` below ``prefix``, also those that it declares later."""
        if router is self:
            raise RouteError("expected another router, not the router itself")
        if prefix and (not prefix.startswith("/") or prefix.endswith("/")):
            raise RouteError(
                f"expected a prefix such as '/weather', with a slash in front only, not {prefix!r}"
            )
        self._routes.append(_Included(router, prefix, tuple(tags), _depends(dependencies)))

    def add_api_route(
        self,
        path: str,
        endpoint: Callable[..., Any],
        *,
        methods: Sequence[str] = ("GET",),
        **settings: Unpack[RouteSettings],
    ) -> None:
        """Declare that ``endpoint`` answers the ``methods`` of ``path``.

        Raises:
            RouteError: path, methods, endpoint or a setting is malformed.
        """
        given: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
        _check_max_body(given.get("max_body"), path)
        given["tags"] = tuple(given.get("tags", ()))
        given["dependencies"] = _depends(given.get("dependencies", ()))
        given.setdefault("name", str(getattr(endpoint, "__name__", type(endpoint).__name__)))
        given.setdefault("description", inspect.getdoc(endpoint))
        template, verbs = _checked_path(self.prefix, path, endpoint), _checked_methods(methods, path)
        self._routes.append(Route(template=template, methods=verbs, endpoint=endpoint, **given))

    def api_route(
        self, path: str, *, methods: Sequence[str] = ("GET",), **settings: Unpack[RouteSettings]
    ) -> Callable[[F], F]:
        """Decorate a function to answer the ``methods`` of ``path``; return it unchanged."""

        def declare(endpoint: F) -> F:
            self.add_api_route(path, endpoint, methods=methods, **settings)
            return endpoint

        return declare

    def websocket(
        self, path: str, *, name: str | None = None, dependencies: Sequence[Any] = ()
    ) -> Callable[[F], F]:
        """Decorate an async function to serve the WebSockets of ``path``; return it unchanged.

        Example::

            @router.websocket("/echo")
            async def echo(websocket: WebSocket) -> None:
                await websocket.accept()
                async for message in websocket:
                    await websocket.send(message)

        Args:
            path: the path below the prefix.
            name: the name in the log; the handler's by default.
            dependencies: ``[Depends(...)]``, called before the handler for their exceptions.
        """

        def declare(endpoint: F) -> F:
            route = Route(
                template=_checked_path(self.prefix, path, endpoint),
                methods=frozenset(),
                endpoint=endpoint,
                name=name or str(getattr(endpoint, "__name__", type(endpoint).__name__)),
                dependencies=_depends(dependencies),
                websocket=True,
            )
            self._routes.append(route)
            return endpoint

        return declare

    def get(self, path: str, **settings: Unpack[RouteSettings]) -> Callable[[F], F]:
        """Decorate a function to answer GET, and HEAD without the body."""
        return self.api_route(path, methods=("GET",), **settings)

    def post(self, path: str, **settings: Unpack[RouteSettings]) -> Callable[[F], F]:
        """Decorate a function to answer POST."""
        return self.api_route(path, methods=("POST",), **settings)

    def put(self, path: str, **settings: Unpack[RouteSettings]) -> Callable[[F], F]:
        """Decorate a function to answer PUT."""
        return self.api_route(path, methods=("PUT",), **settings)

    def patch(self, path: str, **settings: Unpack[RouteSettings]) -> Callable[[F], F]:
        """Decorate a function to answer PATCH."""
        return self.api_route(path, methods=("PATCH",), **settings)

    def delete(self, path: str, **settings: Unpack[RouteSettings]) -> Callable[[F], F]:
        """Decorate a function to answer DELETE."""
        return self.api_route(path, methods=("DELETE",), **settings)

    def head(self, path: str, **settings: Unpack[RouteSettings]) -> Callable[[F], F]:
        """Decorate a function to answer HEAD, in place of the handler for GET."""
        return self.api_route(path, methods=("HEAD",), **settings)

    def options(self, path: str, **settings: Unpack[RouteSettings]) -> Callable[[F], F]:
        """Decorate a function to answer OPTIONS, in place of the list of methods."""
        return self.api_route(path, methods=("OPTIONS",), **settings)


class _Included(NamedTuple):
    router: APIRouter
    prefix: str
    tags: tuple[str, ...]
    dependencies: tuple[DependsMarker, ...]


@attrs.frozen
class Mount:
    """A router with its owner, as a part of the server."""

    router: APIRouter
    owner: str
    """The name of the plugin, or of the server's part, that declared the routes."""
    resolve: Resolver | None = None
    """Returns the values of injected types."""


def _depends(dependencies: Sequence[Any]) -> tuple[DependsMarker, ...]:
    for item in dependencies:
        if not isinstance(item, DependsMarker) or item.dependency is None:
            raise RouteError(f"expected dependencies=[Depends(function)], not {item!r}")
    return tuple(dependencies)


def _checked_methods(methods: Sequence[str], path: str) -> frozenset[str]:
    if isinstance(methods, str):
        raise RouteError(f"expected a list of methods for {path!r}, not the string {methods!r}")
    found = frozenset(method.upper() for method in methods)
    if not found or not found <= _METHODS:
        raise RouteError(f"expected HTTP methods for {path!r}, not {sorted(found - _METHODS)!r}")
    return found


def _check_max_body(max_body: object, path: str) -> None:
    if max_body is not None and (type(max_body) is not int or max_body < 0):
        raise RouteError(f"expected max_body of {path!r} in bytes, 0 or more, not {max_body!r}")


def _checked_path(prefix: str, path: str, endpoint: object) -> PathTemplate:
    if not callable(endpoint):
        raise RouteError(f"expected a function for {path!r}, not {endpoint!r}")
    if inspect.isgeneratorfunction(endpoint) or inspect.isasyncgenfunction(endpoint):
        raise RouteError(
            f"the handler of {path!r} is a generator; return StreamingResponse(generator()) instead"
        )
    if path == "" and prefix:
        return PathTemplate("", (), ())  # the prefix itself is the path
    return parse_path(path)
