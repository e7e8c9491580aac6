"""ASGI applications for the routes of existing plugins.

With FastAPI installed, a plugin's routers are included in a FastAPI application of this plugin alone, which
runs on the plugin's island. Without FastAPI the routers are tangram's, and their handlers run on the island.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import structlog
import trio

from tangram.asgi import Receive, Scope, Send, send_json
from tangram.compat.island import IslandClosed, Resident
from tangram.compat.state import STATE, BackendState
from tangram.plugins.registry import cause_line
from tangram.routing import APIRouter, Mount, ResponseAborted, RouteTable, StreamingResponse, openapi

if TYPE_CHECKING:
    import asyncio

    from fastapi import FastAPI

    from tangram.plugins.registry import LoadedPlugin
    from tangram.routing.binding import Plan
    from tangram.web.site import AppMount

__all__ = ["app_of"]

log = structlog.get_logger("tangram.compat")

_EXCHANGE = "tangram.exchange"
"""Key in the scope under which the request's `_Exchange` is kept."""

HANDLER_SECONDS = 1.0
"""Seconds for a handler to end after its client has left or the server stops."""

MAX_BACKGROUND_TASKS = 100
"""Handlers of one plugin that may continue after their response, as FastAPI's background tasks do.

Beyond this number the connection waits for the handler, so that clients cannot pile up tasks.
"""


class Hosting(Protocol):
    """The part of a plugin's host that its application uses."""

    loaded: LoadedPlugin

    @property
    def name(self) -> str: ...
    def running_resident(self) -> tuple[Resident, BackendState]: ...


def app_of(host: Hosting, max_body: int) -> AppMount | None:
    """Return the application with the routes of a plugin, or ``None`` where it has no routes.

    Args:
        host: The host of the plugin.
        max_body: The largest request body in bytes, for routes without a limit of their own; 0 sets no
            limit.
    """
    routers: list[Any] = list(host.loaded.plugin.routers)
    if not routers:
        return None
    ours = [router for router in routers if isinstance(router, APIRouter)]
    return TableApp(host, ours, max_body) if len(ours) == len(routers) else FastApp(host, routers, max_body)


# -- FastAPI's -----------------------------------------------------------------------------------------------


class FastApp:
    """An ASGI application with the FastAPI routers of one plugin."""

    def __init__(self, host: Hosting, routers: list[Any], max_body: int) -> None:
        from fastapi import FastAPI, Request
        from fastapi.responses import JSONResponse

        self.owner = host.name
        self.problems: list[str] = []
        self._host = host
        self._max_body = max_body
        self._app: FastAPI = FastAPI(title=host.name, docs_url=None, redoc_url=None, openapi_url=None)
        self._openapi: Mapping[str, Any] | None = None

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
        return self._max_body

    def openapi(self) -> Mapping[str, Any]:
        """Return the OpenAPI document of these routes alone."""
        if self._openapi is None:
            self._openapi = self._app.openapi()
        return self._openapi

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            resident, state = self._host.running_resident()
            exchange = _Exchange(resident, receive, send)
        except IslandClosed as error:
            await _send_restarting(error, scope, send)
            return
        setattr(self._app.state, STATE, state)
        scope = {**scope, _EXCHANGE: exchange}
        failed = partial(self._failed, scope)
        try:
            await exchange.run(self._app, scope, failed)
        except IslandClosed as error:
            if exchange.started:
                raise ResponseAborted(str(error)) from None
            await _send_restarting(error, scope, send)
        # FastAPI answers with a 500 where it still can, and raises the exception again in any case.
        except Exception as error:  # noqa: BLE001 - any exception of a plugin's handler is logged
            failed(error)
            if not exchange.ended and not exchange.gone:
                raise ResponseAborted(f"the response of {scope['path']!r} broke off") from None

    def _failed(self, scope: Mapping[str, Any], error: Exception) -> None:
        # FastAPI's exception handler has logged it already where it answered with a 500.
        if error is not scope[_EXCHANGE].reported:
            self._report(scope, error)

    def _report(self, scope: Mapping[str, Any], error: Exception) -> str:
        number = secrets.token_hex(8)
        scope[_EXCHANGE].reported = error
        if scope[_EXCHANGE].gone:
            return number  # a consequence of the client's leaving is no failure of the plugin
        log.error(
            "handler failed",
            id=number,
            plugin=self.owner,
            route=scope["path"],
            method=scope["method"],
            exc_info=error,
        )
        return number


class _Exchange:
    """Connects one request of an engine on Trio to an ASGI application on an island.

    The application's ``receive`` and ``send`` are orders to the request's own Trio task, which carries them
    out and answers with a future: the two sides share no state, and cancelling either side ends the other.
    Once the response is complete, the connection reads its next request while the application goes on in the
    background, for example with FastAPI's background tasks.
    """

    def __init__(self, resident: Resident, receive: Receive, send: Send) -> None:
        self._resident = resident
        self._receive = receive
        self._send = send
        self.started = False
        """Whether the application has begun its response."""
        self.gone = False
        """Whether the client has left."""
        self.ended = False
        """Whether the response is complete."""
        self.reported: Exception | None = None
        """The exception of the application that has been logged."""
        self._orders, self._todo = trio.open_memory_channel[tuple[str, Any, Any]](16)

    async def run(self, app: Callable[..., Any], scope: Scope, failed: Callable[[Exception], None]) -> None:
        """Run the application until its response is complete, or until it ends without one.

        Args:
            app: The ASGI application.
            scope: The scope of the request.
            failed: Called with an exception that the application raises after its response.
        """
        task = self._resident.spawn(
            app, scope, self._aio_receive, self._aio_send, name=f"request {scope['path']}"
        )
        task.add_done_callback(lambda _task: self._orders.close())
        try:
            async with trio.open_nursery() as nursery:
                async for what, message, answer in self._todo:
                    if what == "send":
                        await self._carry_out(answer, self._send, message)
                        self.ended = not self.gone and _is_last(message)
                        if self.ended:
                            break
                    else:
                        nursery.start_soon(self._carry_out, answer, self._receive)
                nursery.cancel_scope.cancel()
        finally:
            self._orders.close()
            if self.ended:
                self._settle_rest()
            self._todo.close()
            if self.ended and len(self._resident.detached) < MAX_BACKGROUND_TASKS:
                self._resident.detach(task, failed)
            else:
                await self._resident.wait(task, stop_timeout=HANDLER_SECONDS)

    async def _carry_out(self, answer: asyncio.Future[Any], function: Callable[..., Any], *args: Any) -> None:
        try:
            result = await function(*args)
        except Exception as error:  # noqa: BLE001 - the application is notified that its client has left
            self.gone = True
            if not answer.done():
                answer.set_exception(OSError(f"the client has left: {error}"))
            return
        except trio.Cancelled:
            if self.ended and not answer.done():
                answer.set_result(_DISCONNECT)
            raise
        if not answer.done():
            answer.set_result(result)

    def _settle_rest(self) -> None:
        """Answer the orders that are left after the last part of the response."""
        while True:
            try:
                what, _, answer = self._todo.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                return
            if answer.done():
                continue
            if what == "receive":
                answer.set_result(_DISCONNECT)
            else:
                answer.set_exception(OSError(_COMPLETE))

    async def _aio_receive(self) -> Any:
        return _DISCONNECT if self.ended else await self._order("receive", None)

    async def _aio_send(self, message: Any) -> None:
        self.started = True
        await self._order("send", message)

    async def _order(self, what: str, message: Any) -> Any:
        answer = self._resident.island.loop.create_future()
        try:
            self._orders.send_nowait((what, message, answer))
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            raise OSError(_COMPLETE if self.ended else "the client has left") from None
        return await answer


_DISCONNECT: Any = {"type": "http.disconnect"}
_COMPLETE = "the response is complete"


def _is_last(message: Any) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body", False)


async def _send_restarting(error: IslandClosed, scope: Scope, send: Send) -> None:
    await send_json(scope, send, 503, {"detail": str(error)}, headers=[(b"retry-after", b"1")])


# -- ours ----------------------------------------------------------------------------------------------------


class TableApp:
    """An ASGI application with tangram's own routers, for plugins that run without FastAPI."""

    def __init__(self, host: Hosting, routers: list[APIRouter], max_body: int) -> None:
        self.owner = host.name
        self._host = host
        mounts = [Mount(router, host.name, self._resolve) for router in routers]
        self._table = RouteTable(mounts, injectable=[BackendState], max_body=max_body)
        self.problems = [str(problem) for problem in self._table.problems]
        done: dict[int, Plan] = {}
        for endpoint in self._table.endpoints:
            endpoint.plan = self._plan_on_island(endpoint.plan, done)

    def match(self, scope: Scope) -> bool | None:
        """Return True for a matching route, False for another method of a known path, else None."""
        found = self._table.locate(scope)
        return None if found is None else found.value is not None

    def body_limit(self, scope: Scope) -> int:
        """Return the largest request body in bytes; 0 is no limit."""
        return self._table.body_limit(scope)

    def openapi(self) -> Mapping[str, Any]:
        """Return the OpenAPI document of these routes alone."""
        return openapi(self._table)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._table(scope, receive, send)
        except IslandClosed as error:
            await _send_restarting(error, scope, send)

    def _resolve(self, kind: type) -> object:
        if kind is not BackendState:
            raise LookupError(f"{kind.__name__} cannot be injected; BackendState can")
        return self._host.running_resident()[1]

    def _plan_on_island(self, plan: Plan, done: dict[int, Plan]) -> Plan:
        """Return a plan whose async functions run on the island."""
        if id(plan) not in done:
            below = tuple(
                attrs.evolve(one, plan=self._plan_on_island(one.plan, done)) for one in plan.dependencies
            )
            call = plan.call
            if plan.how == "async":
                call = self._function_on_island(call)
            elif plan.how == "async_generator":
                call = self._generator_on_island(call)
            elif plan.how == "thread":
                call = self._in_thread(call)
            done[id(plan)] = attrs.evolve(plan, call=call, dependencies=below)
        return done[id(plan)]

    def _function_on_island(self, function: Callable[..., Any]) -> Callable[..., Any]:
        name = str(getattr(function, "__name__", "handler"))

        async def called(**arguments: Any) -> Any:
            resident, _ = self._host.running_resident()
            result = await resident.call(
                lambda: function(**arguments), name=name, stop_timeout=HANDLER_SECONDS
            )
            return self._streamed(result)

        return called

    def _in_thread(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(**arguments: Any) -> Any:
            return self._streamed(function(**arguments))

        return called

    def _streamed(self, result: Any) -> Any:
        if isinstance(result, StreamingResponse) and hasattr(result.chunks, "__aiter__"):
            result.chunks = self._iterated(result.chunks)
        return result

    async def _iterated(self, chunks: Any) -> AsyncIterator[Any]:
        resident, _ = self._host.running_resident()
        iterator = aiter(chunks)
        try:
            while (item := await resident.call(_next, iterator, name="stream")) is not _END:
                yield item
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:
                with trio.move_on_after(HANDLER_SECONDS, shield=True):
                    await resident.call(close, name="stream")

    def _generator_on_island(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def called(**arguments: Any) -> AsyncIterator[Any]:
            resident, _ = self._host.running_resident()
            generator = function(**arguments)
            value = await resident.call(_next, generator, name=function.__name__)
            try:
                yield value
            except Exception as error:
                await resident.call(generator.athrow, error, name=function.__name__)
                raise
            else:
                await resident.call(_next, generator, name=function.__name__)
            finally:
                with trio.move_on_after(HANDLER_SECONDS, shield=True):
                    await resident.call(generator.aclose, name=function.__name__)

        return called


_END: Any = object()


async def _next(iterator: Any) -> Any:
    try:
        return await anext(iterator)
    except StopAsyncIteration:
        # StopAsyncIteration cannot leave a coroutine.
        return _END
