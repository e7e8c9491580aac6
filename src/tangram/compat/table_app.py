"""An ASGI application with tangram's own routers, where FastAPI is not installed.

Its table of routes is that of native plugins, with every async function of a handler moved to the island.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from tangram.asgi import Receive, Scope, Send
from tangram.compat.exchange import HANDLER_SECONDS
from tangram.compat.hosting import Hosting, send_restarting
from tangram.compat.island import IslandClosed
from tangram.compat.state import BackendState
from tangram.routing import APIRouter, Mount, RouteTable, StreamingResponse, openapi

if TYPE_CHECKING:
    from tangram.routing.binding import Plan

__all__ = ["TableApp"]


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
        if scope["type"] == "websocket":
            return None  # see bare.routing.APIRouter.websocket
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
            await send_restarting(error, scope, send)

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


_END: Final[Any] = object()


async def _next(iterator: Any) -> Any:
    try:
        return await anext(iterator)
    except StopAsyncIteration:
        # StopAsyncIteration cannot leave a coroutine.
        return _END
