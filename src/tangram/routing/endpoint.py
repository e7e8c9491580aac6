"""``Endpoint``: a compiled route, which runs its handler and sends the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

from tangram.asgi import Receive, Scope, Send, send_json
from tangram.routing.binding import Plan, compile_plan
from tangram.routing.calls import Call, Threads, bind
from tangram.routing.exceptions import InvalidRequest, Problem
from tangram.routing.params import MISSING
from tangram.routing.request import Request
from tangram.routing.responses import JSONResponse, Response, encode_json
from tangram.routing.router import Mount, Route

__all__ = ["Endpoint", "MountedApp", "Overrides"]

_BODILESS: Final = frozenset(("GET", "HEAD", "DELETE", "OPTIONS"))

Overrides = Mapping[Callable[..., Any], Callable[..., Any]]


class Endpoint:
    """A route of one owner, compiled.

    Raises:
        RouteError: its handler's signature cannot be bound.
    """

    __slots__ = ("_fast", "_raw_body", "_reads_body", "mount", "names", "plan", "route")

    def __init__(
        self, mount: Mount, route: Route, injectable: frozenset[type], overrides: Overrides | None = None
    ) -> None:
        self.mount = mount
        self.route = route
        self.names = route.template.names
        self.plan: Plan = compile_plan(
            route.endpoint,
            names=self.names,
            bodiless=route.methods <= _BODILESS,
            injectable=injectable,
            overrides=overrides,
            dependencies=route.dependencies,
        )
        body = [param for part in self.plan.everything() for param in part.body]
        self._reads_body = bool(body)
        self._raw_body = len(body) == 1 and body[0].kind is bytes
        # An async function with path parameters only needs no Request and no clean-up stack.
        self._fast = (
            self.plan.how == "async"
            and not (self.plan.body or self.plan.special or self.plan.dependencies)
            and all(param.source == "path" for param in self.plan.params)
        )

    @property
    def owner(self) -> str:
        """The name of the plugin, or of the server's part, that declared the route."""
        return self.mount.owner

    def body_limit(self, default: int) -> int:
        """Return the route's ``max_body`` in bytes, or ``default`` if it declares none."""
        own = self.route.max_body
        return default if own is None else own

    def __repr__(self) -> str:
        return f"<Endpoint {sorted(self.route.methods)} {self.route.template.path!r} of {self.owner!r}>"

    async def respond(  # noqa: PLR0917 - the three of ASGI and the request's data
        self,
        values: tuple[str, ...],
        scope: Scope,
        receive: Receive,
        send: Send,
        max_body: int,
        threads: Threads,
    ) -> None:
        """Run the handler and send its answer; exceptions of the handler are raised.

        Args:
            values: the path parameters, in the order of ``names``.
            scope: ASGI's scope of the request.
            receive: ASGI's ``receive`` of the request.
            send: ASGI's ``send`` of the request.
            max_body: the largest body in bytes, unless the route has a limit of its own.
            threads: runs sync functions.
        """
        if self._fast:
            result = await self.plan.call(**self._path_arguments(values))
            await self._send(result, None, scope, receive, send)
            return
        path = dict(zip(self.names, values, strict=True))
        request = Request(scope, receive, max_body=self.body_limit(max_body), path_params=path)
        async with AsyncExitStack() as stack:
            call = Call(request, stack, self.mount.resolve, threads)
            if self._reads_body:
                await call.read_body(raw=self._raw_body)
            result = await call.run(self.plan)
            await self._send(result, call.response, scope, receive, send)

    def _path_arguments(self, values: tuple[str, ...]) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        if values:
            path = dict(zip(self.names, values, strict=True))
            problems: list[Problem] = []
            bind(self.plan.params, lambda param: path.get(param.key, MISSING), arguments, problems)
            if problems:
                raise InvalidRequest(problems)
        return arguments

    async def _send(
        self, result: object, extra: Response | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        route = self.route
        if extra is None and route.response_class is JSONResponse and not isinstance(result, Response):
            await send_json(scope, send, route.status_code, encode_json(result))
            return
        if isinstance(result, Response):
            response = result.fresh() if extra is not None and extra is not result else result
        else:
            bodiless = route.status_code in (204, 304)
            kind = Response if bodiless else route.response_class
            response = kind(None if bodiless else result, status_code=route.status_code)
            if extra is not None and extra.status_code:
                response.status_code = extra.status_code
        if extra is not None and extra is not result:
            response.headers.raw.extend(extra.headers.raw)
        if not response.status_code:
            response.status_code = route.status_code  # the injected response itself was returned
        await response(scope, receive, send)


class MountedApp:
    """An ASGI application of one owner, which answers all requests below a path."""

    __slots__ = ("mount", "route")

    def __init__(self, mount: Mount, route: Route) -> None:
        self.mount = mount
        self.route = route

    @property
    def owner(self) -> str:
        """The name of the plugin that declared the mount."""
        return self.mount.owner

    def body_limit(self, default: int) -> int:
        """Return the mount's ``max_body`` in bytes, or ``default`` if it declares none."""
        own = self.route.max_body
        return default if own is None else own

    async def respond(
        self,
        values: tuple[str, ...],
        scope: Scope,
        receive: Receive,
        send: Send,
        _max_body: int,
        _threads: Threads,
    ) -> None:
        """Call the application with the path of the mount in ``root_path``."""
        path = scope["path"]
        root = path[: len(path) - len(values[-1])].removesuffix("/")
        await self.route.endpoint({**scope, "root_path": root}, receive, send)
