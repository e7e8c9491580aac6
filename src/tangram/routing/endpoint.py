"""``Endpoint``: a compiled route, which runs its handler and sends the answer."""

from __future__ import annotations

from contextlib import AsyncExitStack, nullcontext
from typing import Any, Final

from tangram.asgi import ROOT, Receive, Scope, Send, full_scope, send_json
from tangram.routing.binding import Overrides, Plan, compile_route
from tangram.routing.calls import Call, Threads
from tangram.routing.collector_hold import hold
from tangram.routing.request import Request
from tangram.routing.responses import JSONResponse, Response, encode_json
from tangram.routing.router import Mount, Route
from tangram.routing.short_way import NOT_SHORT, NotShort, ShortWay, compile_short

__all__ = ["Endpoint", "MountedApp"]


class Endpoint:
    """A route of one owner, compiled.

    Raises:
        RouteError: its handler's signature cannot be bound.
    """

    __slots__ = ("_cleans_up", "_raw_body", "_reads_body", "mount", "names", "plan", "route", "short")

    def __init__(
        self, mount: Mount, route: Route, injectable: frozenset[type], overrides: Overrides | None = None
    ) -> None:
        self.mount = mount
        self.route = route
        self.names = route.template.names
        self.plan: Plan = compile_route(route, injectable, overrides)
        body = [param for part in self.plan.everything() for param in part.body]
        self._reads_body = bool(body)
        self._raw_body = len(body) == 1 and body[0].kind is bytes
        self._cleans_up = any("generator" in part.how for part in self.plan.everything())
        self.short: ShortWay | None = self._first
        """Answers requests without a fault, if the endpoint has such a way; see ``short_way``."""

    async def _first(self, values: tuple[str, ...], scope: Scope, receive: Receive, max_body: int) -> Any:
        """Generate the short way, at the first request, and take it."""
        self.short = compile_short(self.plan, self.mount, self.route)
        return NOT_SHORT if self.short is None else await self.short(values, scope, receive, max_body)

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
        before: Response | NotShort,
    ) -> None:
        """Run the handler and send its answer; exceptions of the handler are raised.

        Args:
            values: the path parameters, in the order of ``names``.
            scope: ASGI's scope of the request.
            receive: ASGI's ``receive`` of the request.
            send: ASGI's ``send`` of the request.
            max_body: the largest body in bytes, unless the route has a limit of its own.
            threads: runs sync functions.
            before: the result of the short way: an answer to be sent, or the reason to begin anew.
        """
        if not isinstance(before, NotShort):
            await self._send(before, None, scope, receive, send)
            return
        path = dict(zip(self.names, values, strict=True))
        request = Request(scope, receive, max_body=self.body_limit(max_body), path_params=path)
        if before.body is not None:
            request.set_body(before.body)
        if not self._cleans_up:
            await self._respond(request, None, receive, send, threads)
            return
        async with AsyncExitStack() as stack:
            await self._respond(request, stack, receive, send, threads)

    async def _respond(
        self, request: Request, stack: AsyncExitStack | None, receive: Receive, send: Send, threads: Threads
    ) -> None:
        call = Call(request, stack, self.mount.resolve, threads)
        if self._reads_body:
            await call.take_body(raw=self._raw_body)
        with hold if call.large else nullcontext():
            await call.decode_body()
            result = await call.run(self.plan)
        await self._send(result, call.response, request.scope, receive, send)

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

    short: Final = None

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
        _before: object,
    ) -> None:
        """Call the application with the path of the mount in ``root_path``."""
        path = scope["path"]
        root = path[: len(path) - len(values[-1])].removesuffix("/")
        outer: str = scope.get(ROOT, "")
        whole = full_scope(scope)
        await self.route.endpoint({**whole, "root_path": outer + root}, receive, send)
