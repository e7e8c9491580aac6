"""The FastAPI application of an existing plugin's routers, on the plugin's island.

Each plugin has an application of its own. Where FastAPI is not installed, ``table_app`` takes its place.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog

from tangram.asgi import Receive, Scope, Send
from tangram.channels.disconnects import CRASH, RESTART
from tangram.compat.exchange import IslandExchange
from tangram.compat.file_body import PATHSEND
from tangram.compat.hosting import Hosting, send_restarting
from tangram.compat.island import IslandClosed
from tangram.compat.known_routes import KnownRoutes
from tangram.compat.state import STATE, BackendState
from tangram.plugins.registry import cause_line
from tangram.routing import ResponseAborted

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["FastApp"]

log = structlog.get_logger("tangram.compat")

_EXCHANGE: Final = "tangram.exchange"
"""Key in the scope under which the request's `IslandExchange` is kept."""

_ASGI: Final = {
    "http": {"version": "3.0", "spec_version": "2.3"},
    "websocket": {"version": "3.0", "spec_version": "2.4"},
}
"""The versions that the published server announces.

With 2.3, Starlette waits for the client's leaving while it streams, and cancels the generator then. With 2.4
it notices at its next ``send`` alone, and leaves the generator to the garbage collector.
"""


class FastApp:
    """An ASGI application with the FastAPI routers of one plugin.

    Args:
        host: The host of the plugin.
        routers: Its routers.
        max_body: Returns the largest request body in bytes; 0 sets no limit.
    """

    def __init__(self, host: Hosting, routers: list[Any], max_body: Callable[[], int]) -> None:
        from fastapi import FastAPI, Request
        from fastapi.responses import JSONResponse

        self.owner = host.name
        self.problems: list[str] = []
        self._host = host
        self._max_body = max_body
        # With a lifespan of its own the application enters those of its routers, and runs no handler twice.
        self._app: FastAPI = FastAPI(
            title=host.name, docs_url=None, redoc_url=None, openapi_url=None, lifespan=_no_lifespan
        )
        self._known: KnownRoutes | None = None
        self._openapi: Mapping[str, Any] | None = None
        self._lifespan_state: dict[str, Any] = {}

        async def failed(request: Request, error: Exception) -> JSONResponse:
            number = self._report(request.scope, error)
            return JSONResponse({"detail": "internal error", "id": number}, 500)

        self._app.add_exception_handler(Exception, failed)
        for router in routers:
            try:
                self._app.include_router(router)
            except Exception as error:
                cause = cause_line(error, host.loaded.source)
                self.problems.append(cause)
                log.exception("router left out", plugin=self.owner, cause=cause)

    def match(self, scope: Scope) -> bool | None:
        """Return True for a matching route, False for another method of a known path, else None."""
        if self._known is None:
            self._known = KnownRoutes(self._app)
        if self._known.have(scope):
            return True
        known: bool | None = None
        probe = dict(scope)
        for route in self._app.router.routes:
            match, _ = route.matches(probe)
            if match.name == "FULL":
                return True
            if match.name == "PARTIAL":
                known = False
        return known

    def body_limit(self, scope: Scope) -> int:  # noqa: ARG002 - the same for all of FastAPI's routes
        """Return the largest request body in bytes; 0 is no limit."""
        return self._max_body()

    def openapi(self) -> Mapping[str, Any]:
        """Return the OpenAPI document of these routes alone."""
        if self._openapi is None:
            self._openapi = self._app.openapi()
        return self._openapi

    @asynccontextmanager
    async def lifespan(self, state: BackendState) -> AsyncIterator[None]:
        """Enter the lifespans and start-up handlers of the routers; runs on the island."""
        setattr(self._app.state, STATE, state)
        async with self._app.router.lifespan_context(self._app) as entered:
            self._lifespan_state = dict(entered or {})
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            resident, state = self._host.running_resident()
        except IslandClosed as error:
            await send_restarting(error, scope, send)
            return
        setattr(self._app.state, STATE, state)
        exchange = IslandExchange(resident, scope, receive, send)
        inner = {
            **scope,
            "asgi": _ASGI[scope["type"]],
            "state": self._lifespan_state.copy(),
            _EXCHANGE: exchange,
        }
        if scope["type"] == "http":
            inner["extensions"] = {**(scope.get("extensions") or {}), PATHSEND: {}}
        try:
            await self._run(exchange, inner)
        except IslandClosed as error:
            if not exchange.started:
                await send_restarting(error, scope, send)
            elif scope["type"] == "http":
                raise ResponseAborted(str(error)) from None
            elif not exchange.ended:
                await send({"type": "websocket.close", "code": RESTART.code, "reason": RESTART.reason})

    async def _run(self, exchange: IslandExchange, scope: Scope) -> None:
        failed = partial(self._failed, scope)
        code = 1000
        try:
            await exchange.run(self._app, scope, failed)
        except IslandClosed:
            raise
        # FastAPI answers with a 500 where it still can, and raises the exception again in any case.
        except Exception as error:  # noqa: BLE001 - any exception of a plugin's handler is logged
            failed(error)
            code = CRASH.code
            if scope["type"] == "http" and not exchange.ended and not exchange.gone:
                raise ResponseAborted(f"the response of {scope['path']!r} broke off") from None
        if scope["type"] == "websocket":
            await exchange.close_websocket(code)

    def _failed(self, scope: Scope, error: Exception) -> None:
        # FastAPI's exception handler has logged it already where it answered with a 500.
        if error is not scope[_EXCHANGE].reported:
            self._report(scope, error)

    def _report(self, scope: Scope, error: Exception) -> str:
        number = secrets.token_hex(8)
        exchange: IslandExchange = scope[_EXCHANGE]
        exchange.reported = error
        if exchange.gone:
            return number  # a consequence of the client's leaving is no failure of the plugin
        log.error(
            "handler failed",
            id=number,
            plugin=self.owner,
            route=scope["path"],
            method=scope.get("method", "WEBSOCKET"),
            exc_info=error,
        )
        return number


@asynccontextmanager
async def _no_lifespan(_app: FastAPI) -> AsyncIterator[None]:
    yield
