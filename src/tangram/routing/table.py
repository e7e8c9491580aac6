"""The routes of a server: found by method and path, carried out, and answered whatever happens."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

import trio

from tangram.errors import BadRequest, RouteError

from .binding import Plan, compile_plan
from .calls import Call, Threads, bind
from .exceptions import HTTPException, InvalidRequest, Problem, ResponseAborted, detail_of
from .params import MISSING
from .paths import Found, PathTree, decode_path
from .request import ClientDisconnected, Receive, Request, Scope, Send
from .responses import JSONResponse, RedirectResponse, Response, encode_json
from .router import APIRouter, Mount, Route

__all__ = ["Endpoint", "RouteTable", "check_router"]

# The default of ``[server] max_body``, in bytes.
MAX_BODY: Final = 2 * 1024 * 1024
# Sync handlers at once, as many as FastAPI's users are used to.
THREADS: Final = 40

_JSON_TYPE: Final = (b"content-type", b"application/json")
_BODILESS: Final = frozenset(("GET", "HEAD", "DELETE", "OPTIONS"))

Overrides = Mapping[Callable[..., Any], Callable[..., Any]]


class Endpoint:
    """A route of one owner, compiled."""

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
        # Nothing but path parameters and an async function: no request object, no clean-up stack.
        self._fast = (
            self.plan.how == "async"
            and not (self.plan.body or self.plan.special or self.plan.dependencies)
            and all(param.source == "path" for param in self.plan.params)
        )

    @property
    def owner(self) -> str:
        return self.mount.owner

    def __repr__(self) -> str:
        return f"<Endpoint {sorted(self.route.methods)} {self.route.template.path!r} of {self.owner!r}>"

    async def respond(
        self, values: tuple[str, ...], scope: Scope, receive: Receive, send: Send, table: RouteTable
    ) -> None:
        """Carry the route out and send its answer; raises what the handler raises."""
        if self._fast:
            arguments: dict[str, Any] = {}
            if values:
                path = dict(zip(self.names, values, strict=True))
                problems: list[Problem] = []
                bind(self.plan.params, lambda param: path.get(param.key, MISSING), arguments, problems)
                if problems:
                    raise InvalidRequest(problems)
            result = await self.plan.call(**arguments)
            await self._send(result, None, scope, receive, send)
            return
        path = dict(zip(self.names, values, strict=True))
        request = Request(scope, receive, max_body=table.max_body, path_params=path)
        async with AsyncExitStack() as stack:
            call = Call(request, stack, self.mount.resolve, table.threads)
            if self._reads_body:
                await call.read_body(raw=self._raw_body)
            result = await call.run(self.plan)
            await self._send(result, call.response, scope, receive, send)

    async def _send(
        self, result: object, extra: Response | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        route = self.route
        if extra is None and route.response_class is JSONResponse and not isinstance(result, Response):
            await _send_json(send, route.status_code, result, [], empty=scope["method"] == "HEAD")
            return
        if isinstance(result, Response):
            response = result
        else:
            response = route.response_class(result, status_code=route.status_code)
            if extra is not None and extra.status_code:
                response.status_code = extra.status_code
        if extra is not None and extra is not response:
            response.headers.raw.extend(extra.headers.raw)
        if not response.status_code:
            response.status_code = route.status_code  # the injected response itself was returned
        await response(scope, receive, send)


async def _send_json(
    send: Send, status: int, content: object, headers: Iterable[tuple[bytes, bytes]], *, empty: bool = False
) -> None:
    if status in (204, 304):
        await send({"type": "http.response.start", "status": status, "headers": [*headers]})
        await send({"type": "http.response.body", "body": b""})
        return
    body = encode_json(content)
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [_JSON_TYPE, length, *headers]})
    await send({"type": "http.response.body", "body": b"" if empty else body})


class _Sender:
    """Knows whether the answer has begun, which is all that may be sent of it if something breaks."""

    __slots__ = ("_send", "started")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def __call__(self, message: Any) -> None:
        self.started = True
        await self._send(message)


class RouteTable:
    """All routes of several owners, as one ASGI application.

    ``injectable`` types are resolved by their mount's ``resolve`` where a parameter is annotated with one. ``overrides``
    replace dependencies (for tests). A route that cannot be compiled, or that another owner has already, is left out and told
    in ``problems``, each with its owner as ``plugin``: the others are served.
    """

    def __init__(
        self,
        mounts: Iterable[Mount],
        *,
        injectable: Iterable[type] = (),
        overrides: Overrides | None = None,
        max_body: int = MAX_BODY,
        threads: int = THREADS,
    ) -> None:
        self.max_body = max_body
        self.threads = Threads(threads)
        self.endpoints: list[Endpoint] = []
        self.problems: list[RouteError] = []
        self._tree: PathTree[Endpoint] = PathTree()
        kinds = frozenset(injectable)
        for mount in mounts:
            for route in mount.router.routes:
                try:
                    self._add(Endpoint(mount, route, kinds, overrides))
                except RouteError as exc:
                    self.problems.append(_owned(exc, mount, route))
        for problem in self.problems:
            _log().warning("a route is left out", plugin=problem.plugin, cause=str(problem))

    def _add(self, endpoint: Endpoint) -> None:
        leaf = self._tree.leaf(endpoint.route.template)
        taken = {
            method: leaf[method] for method in endpoint.route.methods if method in leaf and method != "HEAD"
        }
        for method, other in taken.items():
            problem = f"{method} {endpoint.route.template.path!r} is {other.owner!r}'s already"
            self.problems.append(RouteError(problem, plugin=endpoint.owner))
        free = endpoint.route.methods - taken.keys()
        if not free:
            return
        for method in free:
            leaf[method] = endpoint
        if "GET" in free and "HEAD" not in leaf:
            leaf["HEAD"] = endpoint
        self.endpoints.append(endpoint)

    def match(self, method: str, path: str, raw_path: bytes | None = None) -> Found[Endpoint] | None:
        """What answers: ``value`` None with the ``allowed`` methods if only the method is wrong, None if nothing is there."""
        segments = None
        if raw_path and b"%" in raw_path:
            segments = decode_path(raw_path)
            if segments is None:
                return None
        return self._tree.find(method, path, segments)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer, and say True; or False if no route has this path."""
        path = scope["path"]
        root = scope.get("root_path", "")
        raw = scope.get("raw_path")
        if root and path.startswith(root):
            path = path[len(root) :] or "/"
            raw = None
        found = self.match(scope["method"], path, raw)
        if found is None:
            return await self._redirect(scope, path, root, receive, send)
        if found.value is None:
            await _answer_method(scope["method"], found.allowed, send)
        else:
            await self._run(found.value, found.values, scope, receive, send)
        return True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application: :meth:`handle`, and 404 for what is not there."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            raise NotImplementedError(f"expected scope type 'http', not {scope['type']!r}")
        if not await self.handle(scope, receive, send):
            await _send_json(send, 404, {"detail": "Not Found"}, [], empty=scope["method"] == "HEAD")

    async def _redirect(self, scope: Scope, path: str, root: str, receive: Receive, send: Send) -> bool:
        other = path[:-1] if path.endswith("/") else path + "/"
        if not other or self._tree.find(scope["method"], other) is None:
            return False
        # One slash in front, always: "//host/" would be another server's address.
        target = root + "/" + other.lstrip("/\\")
        query = scope.get("query_string", b"").decode("latin-1")
        response = RedirectResponse("")
        from urllib.parse import quote

        location = quote(target, safe="/:@!$&'()*+,;=~") + (
            "?" + quote(query, safe="%/?:@!$&'()*+,;=~") if query else ""
        )
        response.headers["location"] = location
        await response(scope, receive, send)
        return True

    async def _run(
        self, endpoint: Endpoint, values: tuple[str, ...], scope: Scope, receive: Receive, send: Send
    ) -> None:
        sender = _Sender(send)
        try:
            await endpoint.respond(values, scope, receive, sender, self)
        except Exception as exc:  # noqa: BLE001  # a handler's failure ends its request and nothing else
            await self._fail(exc, endpoint, scope, sender)
        except BaseExceptionGroup as group:
            failures, rest = group.split(Exception)
            if failures is not None:
                _report(failures, endpoint, scope, "a handler failed while it was cancelled")
            if rest is not None:
                raise rest from None

    async def _fail(self, exc: Exception, endpoint: Endpoint, scope: Scope, sender: _Sender) -> None:
        cause = _leaf(exc)
        if isinstance(cause, ClientDisconnected):
            return
        if sender.started:
            if isinstance(cause, (trio.BrokenResourceError, trio.ClosedResourceError)):
                return  # the peer went away while it was being answered
            _report(exc, endpoint, scope, "a response broke off")
            raise ResponseAborted(f"the response of {endpoint.route.name!r} broke off") from None
        head = scope["method"] == "HEAD"
        if isinstance(cause, HTTPException):
            headers = [
                (k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in (cause.headers or {}).items()
            ]
            await _send_json(sender, cause.status_code, {"detail": cause.detail}, headers, empty=head)
        elif isinstance(cause, BadRequest):
            await _send_json(sender, 422, {"detail": detail_of(cause)}, [], empty=head)
        else:
            number = _report(exc, endpoint, scope, "a handler failed")
            await _send_json(sender, 500, {"detail": "internal error", "id": number}, [], empty=head)


def check_router(router: APIRouter, *, owner: str, injectable: Iterable[type] = ()) -> None:
    """Compile every route of a router, for what is wrong with them.

    Raises:
        RouteError: the first fault; ``plugin`` is ``owner``.
    """
    mount = Mount(router, owner)
    for route in router.routes:
        try:
            Endpoint(mount, route, frozenset(injectable))
        except RouteError as exc:
            raise _owned(exc, mount, route) from exc.__cause__


def _owned(exc: RouteError, mount: Mount, route: Route) -> RouteError:
    methods = ",".join(sorted(route.methods))
    return RouteError(f"{methods} {route.template.path}: {exc}", plugin=mount.owner)


def _leaf(exc: Exception) -> Exception:
    """The one exception in a group of one, however deep; nurseries wrap what is raised inside them."""
    while isinstance(exc, ExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


def _log() -> Any:
    # Imported where used: structlog takes longer to import than everything else here together.
    import structlog

    return structlog.get_logger("tangram.routing")


def _report(exc: BaseException, endpoint: Endpoint, scope: Scope, event: str) -> str:
    """Log a failure; the number in the record is what the client is told."""
    number = secrets.token_hex(8)
    _log().error(
        event,
        id=number,
        plugin=endpoint.owner,
        route=endpoint.route.template.path,
        handler=endpoint.route.name,
        method=scope["method"],
        exc_info=(type(exc), exc, exc.__traceback__),
    )
    return number


async def _answer_method(method: str, allowed: frozenset[str], send: Send) -> None:
    methods = allowed | {"OPTIONS"}
    allow = [(b"allow", ", ".join(sorted(methods)).encode())]
    if method == "OPTIONS":
        await _send_json(send, 204, None, allow)
    else:
        await _send_json(send, 405, {"detail": "Method Not Allowed"}, allow, empty=method == "HEAD")
