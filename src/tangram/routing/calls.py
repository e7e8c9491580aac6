"""Run a compiled plan for one request: bind, call dependencies and the handler, clean up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final

import trio

from tangram.routing.binding import Param, Plan
from tangram.routing.connection import HTTPConnection, parse_query
from tangram.routing.convert import problems_of
from tangram.routing.exceptions import HTTPException, InvalidRequest, Problem
from tangram.routing.params import MISSING
from tangram.routing.request import READ_AT_ONCE, Request, decode_any, is_plain_json
from tangram.routing.responses import Response
from tangram.routing.router import Resolver

__all__ = ["Call", "Threads", "bind"]

READERS: Final = 2
"""Large bodies that are converted at the same time: more would keep the event loop from its turn."""
CLEAN_UP_SECONDS: Final = 5.0
"""Seconds for the clean-up of a sync dependency after a failure or a cancellation."""


class Threads:
    """Threads for sync handlers: at most ``bound`` at once.

    ``abandoned`` counts the threads whose request was cancelled.
    """

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.abandoned = 0
        self._limiter: trio.CapacityLimiter | None = None
        self._readers: trio.CapacityLimiter | None = None

    async def read(self, call: Callable[..., Any], *args: Any) -> Any:
        """Convert a large body in a thread; if this is cancelled, the thread is abandoned."""
        if self._readers is None:
            self._readers = trio.CapacityLimiter(READERS)
        return await trio.to_thread.run_sync(call, *args, abandon_on_cancel=True, limiter=self._readers)

    async def run(self, call: Callable[..., Any], *args: Any) -> Any:
        """Run ``call`` in a thread; if this is cancelled, the thread is abandoned and counted."""
        if self._limiter is None:
            self._limiter = trio.CapacityLimiter(self.bound)
        running = False

        def work() -> Any:
            nonlocal running
            running = True
            try:
                return call(*args)
            finally:
                running = False

        try:
            return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)
        except trio.Cancelled:
            self.abandoned += running
            raise


class Call:
    """The state of one request while its plan runs."""

    __slots__ = (
        "_json",
        "_pairs",
        "body",
        "cache",
        "large",
        "path",
        "problems",
        "request",
        "resolve",
        "response",
        "stack",
        "threads",
    )

    def __init__(
        self,
        request: HTTPConnection,
        stack: AsyncExitStack | None,
        resolve: Resolver | None,
        threads: Threads,
    ) -> None:
        self.request = request
        self.path = request.path_params
        self.stack = stack
        self.resolve = resolve
        self.threads = threads
        self.problems: list[Problem] = []
        self.cache: dict[object, Any] = {}
        self.response: Response | None = None
        self.body: Any = MISSING
        self.large = False
        """Whether the JSON of the body is too large to be decoded and converted at once."""
        self._json = b""
        self._pairs: dict[str, list[str]] | None = None

    async def take_body(self, *, raw: bool) -> None:
        """Read the body for body parameters."""
        assert isinstance(self.request, Request)
        data = await self.request.body()
        if raw:
            self.body = data
        elif data:
            _expect_json(self.request)
            self._json = data
            self.large = len(data) > READ_AT_ONCE

    async def decode_body(self) -> None:
        """Decode the JSON of the body, if it has any; its faults are collected with the others."""
        if self._json:
            try:
                self.body = await decode_any(self._json)
            except InvalidRequest as exc:
                self.problems.extend(exc.problems)
                self.body = _UNREADABLE
            self._json = b""

    async def run(self, plan: Plan) -> Any:
        """Bind the parameters and call the handler.

        Raises:
            InvalidRequest: lists every fault, those of dependencies included.
        """
        arguments = await self._arguments(plan)
        if arguments is None:
            raise InvalidRequest(dict.fromkeys(self.problems))
        return await self._invoke(plan, arguments)

    async def _arguments(self, plan: Plan) -> dict[str, Any] | None:
        """Return the arguments of a plan, or None if one of them, or of a dependency, is faulty.

        The request is refused then, with every fault. The other dependencies are called nevertheless: one of
        them may raise a better answer, such as 401.
        """
        arguments: dict[str, Any] = {}
        before, whole = len(self.problems), True
        for dependency in plan.dependencies:
            value = await self._depend(dependency.plan, use_cache=dependency.use_cache)
            whole = whole and value is not _UNREADABLE
            if dependency.name is not None:
                arguments[dependency.name] = value
        for name, what, kind in plan.special:
            arguments[name] = self._special(what, kind)
        bind(plan.params, self.lookup, arguments, self.problems)
        if plan.body and self.body is _UNREADABLE:
            whole = False
        elif plan.body:
            read = (plan.body, self._member, arguments, self.problems)
            if self.large:
                await self.threads.read(bind, *read)
            else:
                bind(*read)
        return arguments if whole and len(self.problems) == before else None

    async def _depend(self, plan: Plan, *, use_cache: bool) -> Any:
        if use_cache and plan.call in self.cache:
            return self.cache[plan.call]
        arguments = await self._arguments(plan)
        if arguments is None:
            return _UNREADABLE
        value = await self._invoke(plan, arguments)
        if use_cache:
            self.cache[plan.call] = value
        return value

    async def _invoke(self, plan: Plan, arguments: dict[str, Any]) -> Any:
        match plan.how:
            case "async":
                return await plan.call(**arguments)
            case "class":
                return plan.call(**arguments)
            case "thread":
                return await self.threads.run(partial(plan.call, **arguments))
            case "async_generator":
                assert self.stack is not None  # given where a plan has a generator
                return await self.stack.enter_async_context(asynccontextmanager(plan.call)(**arguments))
            case "thread_generator":
                assert self.stack is not None
                manager = contextmanager(plan.call)(**arguments)
                return await self.stack.enter_async_context(_in_threads(manager, self.threads))

    def _special(self, what: str, kind: Any) -> Any:
        if what == "request":
            return self.request
        if what == "response":
            if self.response is None:
                self.response = Response()
                self.response.status_code = 0  # the route's own status, unless the handler sets one
            return self.response
        if self.resolve is None:
            raise LookupError(f"no value is known for {kind.__name__}")
        return self.resolve(kind)

    def lookup(self, param: Param) -> Any:
        """Return the raw value of a parameter, or MISSING if the request has none."""
        if param.source == "path":
            return self.path.get(param.key, MISSING)
        if param.source == "query":
            if self._pairs is None:
                self._pairs = {}
                for key, value in parse_query(self.request.scope.get("query_string", b"")):
                    self._pairs.setdefault(key, []).append(value)
            values = self._pairs.get(param.key)
        elif param.source == "header":
            values = self.request.headers.getlist(param.key)
        else:
            return self.request.cookies.get(param.key, MISSING)
        if not values:
            return MISSING
        return values if param.many else values[-1]

    def _member(self, param: Param) -> Any:
        if param.source == "body":
            return self.body
        if self.body is MISSING:
            return MISSING
        if not isinstance(self.body, dict):
            raise InvalidRequest([Problem(("body",), "expected an object", "model_type")])
        return self.body.get(param.key, MISSING)


_UNREADABLE: Final[Any] = type("_Unreadable", (), {})()
"""Stands for a body, or for the value of a dependency, that could not be read."""


def bind(
    params: tuple[Param, ...],
    lookup: Callable[[Param], Any],
    arguments: dict[str, Any],
    problems: list[Problem],
) -> None:
    """Convert each parameter into ``arguments``, and add faults to ``problems``."""
    for param in params:
        try:
            raw = lookup(param)
            if raw is not MISSING:
                arguments[param.name] = param.convert(raw)
                continue
        except InvalidRequest as exc:
            problems.extend(exc.problems)
            continue
        except Exception as exc:  # noqa: BLE001 - converters of classes may raise anything
            problems.extend(problems_of(exc, param.loc))
            continue
        if param.default_factory is not None:
            arguments[param.name] = param.default_factory()
        elif param.default is not MISSING:
            arguments[param.name] = param.default
        else:
            problems.append(Problem(param.loc, "a value is required", "missing"))


def _expect_json(request: Request) -> None:
    if not is_plain_json(request.scope):
        headers = request.headers
        _check_media_type(headers.get("content-type", ""), headers.get("content-encoding", ""))


def _check_media_type(content_type: str, content_encoding: str) -> None:
    coding = content_encoding.strip().lower()
    if coding not in {"", "identity"}:
        raise HTTPException(
            415, f"expected a body without content coding, not {coding!r}", {"accept-encoding": "identity"}
        )
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise HTTPException(415, "expected a body of type application/json")


@asynccontextmanager
async def _in_threads(manager: Any, threads: Threads) -> AsyncIterator[Any]:
    """Run the enter and the exit of a sync context manager in threads."""
    value = await threads.run(manager.__enter__)
    try:
        yield value
    except BaseException as exc:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLEAN_UP_SECONDS):
            if await threads.run(manager.__exit__, type(exc), exc, exc.__traceback__):
                return
        raise
    await threads.run(manager.__exit__, None, None, None)
