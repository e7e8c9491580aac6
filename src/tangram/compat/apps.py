"""The routes of an existing plugin, as the site mounts them.

With FastAPI: its own routers, in an application of this plugin alone, carried out on the plugin's island.
Without: our routers, whose handlers are carried out there.
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
"""Where the scope keeps the request's exchange."""

HANDLER_SECONDS = 1.0
"""What a handler gets to end when its client has gone or the server stops."""

MAX_TAILS = 100
"""Handlers of a plugin that may go on behind their answers, as background tasks do; with more, the connection
waits, so that nobody can pile them up."""


class Hosting(Protocol):
    """What an application needs of its plugin's host."""

    loaded: LoadedPlugin

    @property
    def name(self) -> str: ...
    def running_resident(self) -> tuple[Resident, BackendState]: ...


def app_of(host: Hosting, max_body: int) -> AppMount | None:
    """Its routes; ``None`` where it has none. ``max_body`` bounds a request's body in bytes, 0 does not; to
    FastAPI's routes the engine's own bound is all that applies.
    """
    routers: list[Any] = list(host.loaded.plugin.routers)
    if not routers:
        return None
    ours = [router for router in routers if isinstance(router, APIRouter)]
    return TableApp(host, ours, max_body) if len(ours) == len(routers) else FastApp(host, routers)


# -- FastAPI's -----------------------------------------------------------------------------------------------


class FastApp:
    """FastAPI routers of one plugin."""

    def __init__(self, host: Hosting, routers: list[Any]) -> None:
        from fastapi import FastAPI, Request
        from fastapi.responses import JSONResponse

        self.owner = host.name
        self.problems: list[str] = []
        self._host = host
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
                log.exception("a plugin's router cannot be served", plugin=self.owner, cause=cause)

    def match(self, scope: Scope) -> bool | None:
        """True: it answers this; False: it has the path, for other methods; None: it has no such path."""
        known: bool | None = None
        probe = dict(scope)
        for route in self._app.router.routes:
            match, _ = route.matches(probe)
            if match.name == "FULL":
                return True
            if match.name == "PARTIAL":
                known = False
        return known

    def openapi(self) -> Mapping[str, Any]:
        """The document of its routes alone."""
        if self._openapi is None:
            self._openapi = self._app.openapi()
        return self._openapi

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            resident, state = self._host.running_resident()
            exchange = _Exchange(resident, receive, send)
        except IslandClosed as error:
            await _come_back(error, scope, send)
            return
        setattr(self._app.state, STATE, state)
        scope = {**scope, _EXCHANGE: exchange}
        failed = partial(self._failed, scope)
        try:
            await exchange.run(self._app, scope, failed)
        except IslandClosed as error:
            if exchange.started:
                raise ResponseAborted(str(error)) from None
            await _come_back(error, scope, send)
        # FastAPI answers what it can, and raises it again in any case.
        except Exception as error:  # noqa: BLE001
            failed(error)
            if not exchange.ended and not exchange.gone:
                raise ResponseAborted(f"the response of {scope['path']!r} broke off") from None

    def _failed(self, scope: Mapping[str, Any], error: Exception) -> None:
        # What FastAPI has answered was told then.
        if error is not scope[_EXCHANGE].reported:
            self._report(scope, error)

    def _report(self, scope: Mapping[str, Any], error: Exception) -> str:
        number = secrets.token_hex(8)
        scope[_EXCHANGE].reported = error
        if scope[_EXCHANGE].gone:
            return number  # what follows from that is nobody's failure
        log.error(
            "a handler failed",
            id=number,
            plugin=self.owner,
            route=scope["path"],
            method=scope["method"],
            exc_info=error,
        )
        return number


class _Exchange:
    """One request between an engine on Trio and an ASGI application on an island.

    The application's ``receive`` and ``send`` are orders to the request's own Trio task, which carries them
    out and answers with a future: nothing is shared, and cancelling either side ends the other. Once the
    answer is whole, the application goes on alone, as the plugin's own, and the connection has its next
    request: background tasks are what is left of it then.
    """

    def __init__(self, resident: Resident, receive: Receive, send: Send) -> None:
        self._resident = resident
        self._receive = receive
        self._send = send
        self.started = False
        """The application has begun to answer."""
        self.gone = False
        """Its client has gone."""
        self.ended = False
        """Its answer is whole."""
        self.reported: Exception | None = None
        """What was logged of it."""
        self._orders, self._todo = trio.open_memory_channel[tuple[str, Any, Any]](16)

    async def run(self, app: Callable[..., Any], scope: Scope, failed: Callable[[Exception], None]) -> None:
        """Until the answer is whole, or the application has ended without one. ``failed`` is told what it
        raises afterwards.
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
            if self.ended and len(self._resident.tails) < MAX_TAILS:
                self._resident.let_go(task, failed)
            else:
                await self._resident.wait(task, stop_timeout=HANDLER_SECONDS)

    async def _carry_out(self, answer: asyncio.Future[Any], function: Callable[..., Any], *args: Any) -> None:
        try:
            result = await function(*args)
        except Exception as error:  # noqa: BLE001 - the application learns that its client has gone
            self.gone = True
            if not answer.done():
                answer.set_exception(OSError(f"the client has gone: {error}"))
            return
        except trio.Cancelled:
            if self.ended and not answer.done():
                answer.set_result(_DISCONNECT)
            raise
        if not answer.done():
            answer.set_result(result)

    def _settle_rest(self) -> None:
        """Answer what was ordered beside the last piece: nobody carries it out any more."""
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
            raise OSError(_COMPLETE if self.ended else "the client has gone") from None
        return await answer


_DISCONNECT: Any = {"type": "http.disconnect"}
_COMPLETE = "the response is complete"


def _is_last(message: Any) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body", False)


async def _come_back(error: IslandClosed, scope: Scope, send: Send) -> None:
    await send_json(scope, send, 503, {"detail": str(error)}, headers=[(b"retry-after", b"1")])


# -- ours ----------------------------------------------------------------------------------------------------


class TableApp:
    """Routers of ours, declared by a plugin that asked for FastAPI's."""

    def __init__(self, host: Hosting, routers: list[APIRouter], max_body: int) -> None:
        self.owner = host.name
        self._host = host
        mounts = [Mount(router, host.name, self._resolve) for router in routers]
        self._table = RouteTable(mounts, injectable=[BackendState], max_body=max_body)
        self.problems = [str(problem) for problem in self._table.problems]
        done: dict[int, Plan] = {}
        for endpoint in self._table.endpoints:
            endpoint.plan = self._moved(endpoint.plan, done)

    def match(self, scope: Scope) -> bool | None:
        """True: it answers this; False: it has the path, for other methods; None: it has no such path."""
        found = self._table.match(scope["method"], scope["path"], scope.get("raw_path"))
        return None if found is None else found.value is not None

    def openapi(self) -> Mapping[str, Any]:
        """The document of its routes alone."""
        return openapi(self._table)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._table(scope, receive, send)
        except IslandClosed as error:
            await _come_back(error, scope, send)

    def _resolve(self, kind: type) -> object:
        if kind is not BackendState:
            raise LookupError(f"{kind.__name__} cannot be injected; BackendState can")
        return self._host.running_resident()[1]

    def _moved(self, plan: Plan, done: dict[int, Plan]) -> Plan:
        """The plan with every async part of it carried out on the island."""
        if id(plan) not in done:
            below = tuple(attrs.evolve(one, plan=self._moved(one.plan, done)) for one in plan.dependencies)
            call = plan.call
            if plan.how == "async":
                call = self._on_island(call)
            elif plan.how == "async_generator":
                call = self._generator_on_island(call)
            elif plan.how == "thread":
                call = self._in_thread(call)
            done[id(plan)] = attrs.evolve(plan, call=call, dependencies=below)
        return done[id(plan)]

    def _on_island(self, function: Callable[..., Any]) -> Callable[..., Any]:
        name = str(getattr(function, "__name__", "handler"))

        async def moved(**arguments: Any) -> Any:
            resident, _ = self._host.running_resident()
            result = await resident.call(
                lambda: function(**arguments), name=name, stop_timeout=HANDLER_SECONDS
            )
            return self._streamed(result)

        return moved

    def _in_thread(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def moved(**arguments: Any) -> Any:
            return self._streamed(function(**arguments))

        return moved

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
        async def moved(**arguments: Any) -> AsyncIterator[Any]:
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

        return moved


_END: Any = object()


async def _next(iterator: Any) -> Any:
    try:
        return await anext(iterator)
    except StopAsyncIteration:
        # An exception of this kind cannot leave a coroutine.
        return _END
