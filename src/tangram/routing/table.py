"""``RouteTable``: find the route of a request, run its handler, and answer its failures."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import trio

from tangram import defaults
from tangram.asgi import JSON_TYPE, ROOT, Fields, Receive, Scope, Send, send_json, send_whole, with_fields
from tangram.asyncio_hint import asyncio_hint
from tangram.errors import RouteError
from tangram.groups import unwrap_single
from tangram.routing.binding import Overrides
from tangram.routing.calls import Threads
from tangram.routing.endpoint import Endpoint, MountedApp
from tangram.routing.exceptions import ResponseAborted
from tangram.routing.paths import Found, PathTree, decode_path
from tangram.routing.request import ClientDisconnected
from tangram.routing.responses import JSONResponse, Response
from tangram.routing.router import APIRouter, Mount, Route
from tangram.routing.short_way import NOT_SHORT, NotShort
from tangram.routing.shortage import refusal_of

if TYPE_CHECKING:
    from tangram.routing.websocket import SocketEndpoint

__all__ = ["RouteTable", "check_router"]

THREADS: Final = 40
"""Sync handlers that run at once, as many as in FastAPI."""

MATCHES: Final = "tangram.matches"
"""Key of the scope for the match of its request: the `RouteTable`, and its `Found` or None."""

_SOCKET: Final = "WEBSOCKET"
"""Takes the place of a method for WebSocket routes."""

_PATH_SAFE: Final = "/:@!$&'()*+,;=~"
"""Characters that a redirect leaves unquoted (RFC 3986, 3.3)."""


class _Sender:
    """ASGI's ``send``, which adds header fields and remembers how much has been sent.

    After a failure it decides whether an error can still be answered.
    """

    started = False
    ended = False
    broken = False

    def __init__(self, send: Send, fields: Fields) -> None:
        self._send = send
        self._fields = fields

    async def __call__(self, message: Any) -> None:
        self.started = True
        if self._fields and message["type"] == "http.response.start":
            message = with_fields(message, self._fields)
        try:
            await self._send(message)
        except Exception:
            self.broken = True  # the client has disconnected: errors that follow are not logged
            raise
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.ended = True

    def answer(self, scope: Scope, status: int, body: bytes) -> Awaitable[None]:
        """Send a whole JSON answer, as the only one and with nothing sent before."""
        # An exception of the engine ends the request without another answer, as in __call__.
        self.started = self.ended = self.broken = True
        return send_whole(scope, self._send, status, (JSON_TYPE, *self._fields), body)


class RouteTable:
    """The routes of several owners as one ASGI application.

    A route that cannot be compiled, or whose method and path are taken, is left out; the others are served.
    ``problems`` lists the causes, each with the owner as ``plugin``.

    Args:
        mounts: the routers, each with its owner.
        injectable: types whose parameters get their value from the mount's ``resolve``.
        overrides: replacements of dependencies, for tests.
        max_body: the largest body in bytes of a route without a limit of its own; 0 is no limit.
        threads: sync handlers that run at once.
    """

    def __init__(
        self,
        mounts: Iterable[Mount],
        *,
        injectable: Iterable[type] = (),
        overrides: Overrides | None = None,
        max_body: int = defaults.MAX_BODY,
        threads: int = THREADS,
    ) -> None:
        self.max_body = max_body
        self.threads = Threads(threads)
        self.endpoints: list[Endpoint] = []
        self.problems: list[RouteError] = []
        self._tree: PathTree[Endpoint | MountedApp] = PathTree()
        self._sockets: PathTree[SocketEndpoint] = PathTree()
        kinds = frozenset(injectable)
        for mount in mounts:
            for route in mount.router.routes:
                try:
                    self._add(_compile(mount, route, kinds, overrides))
                except RouteError as exc:
                    self.problems.append(_owned(exc, mount, route))
            for route in mount.router.websocket_routes:
                try:
                    self._add_socket(_compile_socket(mount, route, kinds, overrides))
                except RouteError as exc:
                    self.problems.append(_owned(exc, mount, route))
        for problem in self.problems:
            _log().warning("route left out", plugin=problem.plugin, cause=str(problem))

    def _add(self, endpoint: Endpoint | MountedApp) -> None:
        route = endpoint.route
        leaf = self._tree.leaf(route.template)
        taken = {method: leaf[method] for method in route.methods if method in leaf}
        for method, other in sorted(taken.items()):
            problem = f"{method} {route.template.path!r} is a route of {other.owner!r} already"
            self.problems.append(RouteError(problem, plugin=endpoint.owner))
        free = route.methods - taken.keys()
        for method in free:
            leaf[method] = endpoint
        if free and isinstance(endpoint, Endpoint):
            self.endpoints.append(endpoint)

    def _add_socket(self, endpoint: SocketEndpoint) -> None:
        leaf = self._sockets.leaf(endpoint.route.template)
        if _SOCKET in leaf:
            owner = leaf[_SOCKET].owner
            raise RouteError(f"it is a route of {owner!r} already")
        leaf[_SOCKET] = endpoint

    def match(
        self, method: str, path: str, raw_path: bytes | None = None
    ) -> Found[Endpoint | MountedApp] | None:
        """Return the endpoint for a method and path, or None if no route has the path.

        If routes have the path for other methods only, ``value`` is None and ``allowed`` lists the methods.
        """
        segments = None
        if raw_path and b"%" in raw_path:
            # Segments are decoded one by one: an encoded slash does not split a segment.
            segments = decode_path(raw_path)
            if segments is None:
                return None
        return self._tree.find(method, path, segments)

    def locate(self, scope: Scope) -> Found[Endpoint | MountedApp] | None:
        """Match the method and path of a request, once: further calls return the first result.

        The scope keeps the result, under `MATCHES`, until another table asks. The engine asks for the route's
        body limit, the site for its owner, and `handle` for its endpoint.
        """
        kept: tuple[RouteTable, Found[Endpoint | MountedApp] | None] | None = scope.get(MATCHES)
        if kept is not None and kept[0] is self:
            return kept[1]
        path: str = scope["path"]
        raw = scope.get("raw_path")
        if scope.get("root_path"):
            below, _ = _split_root(scope)
            raw = raw if below is path else None
            path = below
        found = self.match(scope["method"], path, raw)
        scope[MATCHES] = (self, found)
        return found

    def body_limit(self, scope: Scope) -> int:
        """Return the largest body in bytes that the request may have; 0 is no limit."""
        found = self.locate(scope)
        return (
            self.max_body if found is None or found.value is None else found.value.body_limit(self.max_body)
        )

    async def handle(self, scope: Scope, receive: Receive, send: Send, fields: Fields = ()) -> bool:
        """Answer a request and return True, or return False if no route has its path.

        ``fields`` are added to the header of the answer, and replace the handler's
        ``access-control-allow-origin``.
        """
        found = self.locate(scope)
        if found is None:
            return await self._redirect(scope, *_split_root(scope), receive, _Sender(send, fields))
        endpoint = found.value
        if endpoint is None:
            await _answer_method(scope, found.allowed, _Sender(send, fields))
        else:
            await self.run(endpoint, found.values, scope, receive, send, fields)
        return True

    def locate_websocket(self, scope: Scope) -> Found[SocketEndpoint | MountedApp] | None:
        """Return the endpoint for a WebSocket, or None if no route and no mount has its path."""
        path, _ = _split_root(scope)
        raw = scope.get("raw_path") if path is scope["path"] else None
        segments = decode_path(raw) if raw and b"%" in raw else None
        found = self._sockets.find(_SOCKET, path, segments)
        if found is not None and found.value is not None:
            return Found(found.value, found.values, found.allowed)
        mounted = self._tree.find("GET", path, segments)
        if mounted is not None and isinstance(mounted.value, MountedApp):
            return Found(mounted.value, mounted.values, mounted.allowed)
        return None

    async def handle_websocket(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Serve a WebSocket and return True, or return False if no route has its path."""
        found = self.locate_websocket(scope)
        if found is None or found.value is None:
            return False
        endpoint = found.value
        if isinstance(endpoint, MountedApp):
            await endpoint.respond(found.values, scope, receive, send, self.max_body, self.threads, NOT_SHORT)
            return True

        def report(error: Exception) -> str:
            return _report(error, endpoint, scope, "handler failed")

        await endpoint.serve(found.values, scope, receive, send, self.threads, report)
        return True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request as an ASGI application, with 404 if no route has its path."""
        if scope["type"] == "websocket":
            if not await self.handle_websocket(scope, receive, send):
                await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            raise NotImplementedError(f"expected scope type 'http', not {scope['type']!r}")
        if not await self.handle(scope, receive, send):
            await send_json(scope, send, 404, {"detail": "Not Found"})

    async def _redirect(self, scope: Scope, path: str, root: str, receive: Receive, send: Send) -> bool:
        """Redirect to the path with a slash added or removed at its end, if a route has that path.

        Status 307 keeps the method and the body.
        """
        other = path[:-1] if path.endswith("/") else path + "/"
        if not other or self._tree.find(scope["method"], other) is None:
            return False
        # Exactly one slash in front: "//host/" would be the address of another server.
        target = "/" + (scope.get(ROOT, "") + root + other).lstrip("/\\")
        query = scope.get("query_string", b"")
        response = Response(b"", 307)
        response.headers["location"] = quote(target, safe=_PATH_SAFE, errors="replace") + (
            "?" + quote(query, safe="%?" + _PATH_SAFE) if query else ""
        )
        await response(scope, receive, send)
        return True

    async def run(  # noqa: PLR0917 - the three of ASGI and the request's data
        self,
        endpoint: Endpoint | MountedApp,
        values: tuple[str, ...],
        scope: Scope,
        receive: Receive,
        send: Send,
        fields: Fields,
    ) -> None:
        """Answer a request that ``locate`` has found the endpoint of; see ``handle``."""
        sender = _Sender(send, fields)
        try:
            result: bytes | Response | NotShort = NOT_SHORT
            if endpoint.short is not None:
                result = await endpoint.short(values, scope, receive, self.max_body)
            if isinstance(result, bytes):
                await sender.answer(scope, endpoint.route.status_code, result)
                return
            await endpoint.respond(values, scope, receive, sender, self.max_body, self.threads, result)
            if not sender.started:
                raise RuntimeError("a dependency swallowed the exception that was thrown into it")  # noqa: TRY301 - answered below
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - a failure ends its own request only
            await _fail(exc, endpoint, scope, sender)
        except BaseExceptionGroup as group:
            failures, rest = group.split((Exception, SystemExit))
            if failures is not None and not sender.broken:
                _report(failures, endpoint, scope, "handler failed during cancellation")
            if rest is not None:
                raise rest from None


def check_router(router: APIRouter, *, owner: str, injectable: Iterable[type] = ()) -> None:
    """Compile every route of a router to check it.

    Raises:
        RouteError: a route cannot be compiled; ``plugin`` is ``owner``.
    """
    mount = Mount(router, owner)
    for route in (*router.routes, *router.websocket_routes):
        try:
            if route.websocket:
                _compile_socket(mount, route, frozenset(injectable))
            else:
                _compile(mount, route, frozenset(injectable))
        except RouteError as exc:
            raise _owned(exc, mount, route) from exc.__cause__


def _compile(
    mount: Mount, route: Route, injectable: frozenset[type], overrides: Overrides | None = None
) -> Endpoint | MountedApp:
    if route.mounted:
        return MountedApp(mount, route)
    return Endpoint(mount, route, injectable, overrides)


def _compile_socket(
    mount: Mount, route: Route, injectable: frozenset[type], overrides: Overrides | None = None
) -> SocketEndpoint:
    # Imported here: few servers have WebSocket routes.
    from tangram.routing.websocket import SocketEndpoint

    return SocketEndpoint(mount, route, injectable, overrides)


def _owned(exc: RouteError, mount: Mount, route: Route) -> RouteError:
    methods = ",".join(sorted(route.methods)) or _SOCKET
    return RouteError(f"{methods} {route.template.path}: {exc}", plugin=mount.owner)


def _split_root(scope: Scope) -> tuple[str, str]:
    """Return the path below ASGI's ``root_path``, and ``root_path``."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return (path[len(root) :] or "/", root) if root and path.startswith(root) else (path, root)


async def _fail(exc: BaseException, endpoint: Endpoint | MountedApp, scope: Scope, sender: _Sender) -> None:
    """Answer an exception, unless the client has disconnected or the answer is complete."""
    cause = unwrap_single(exc)
    if isinstance(cause, ClientDisconnected) or sender.broken:
        return
    if sender.ended:
        _report(exc, endpoint, scope, "dependency clean-up failed after the response")
        return
    if sender.started:
        _report(exc, endpoint, scope, "response aborted")
        raise ResponseAborted(f"the response of {endpoint.route.name!r} broke off") from None
    try:
        answer = _refusal(cause)
    except Exception as unfit:  # noqa: BLE001 - a detail that is no JSON, a header with a line break
        exc, answer = unfit, None
    if answer is None:
        number = _report(exc, endpoint, scope, "handler failed")
        answer = JSONResponse({"detail": "internal error", "id": number}, 500)
    try:
        await answer(scope, _never, sender)
    except Exception:
        if not sender.broken:
            raise


def _refusal(cause: BaseException) -> Response | None:
    """Return the answer that an exception stands for, or None for an unexpected exception."""
    refusal = refusal_of(cause)
    if refusal is None:
        return None
    return JSONResponse({"detail": refusal.detail}, refusal.status_code, refusal.headers)


async def _never() -> Any:
    """Wait forever: the ``receive`` of a refusal, which does not read the rest of the request."""
    await trio.sleep_forever()


def _log() -> Any:
    # Imported here: structlog takes longer to import than the rest of this module.
    import structlog

    return structlog.get_logger("tangram.routing")


def _report(
    exc: BaseException, endpoint: Endpoint | MountedApp | SocketEndpoint, scope: Scope, event: str
) -> str:
    """Log a failure and return the id in the record, which the client receives too."""
    number = secrets.token_hex(8)
    hint = asyncio_hint(unwrap_single(exc))
    _log().error(
        event,
        id=number,
        **({"hint": hint} if hint else {}),
        plugin=endpoint.owner,
        route=endpoint.route.template.path,
        handler=endpoint.route.name,
        method=scope.get("method", _SOCKET),
        exc_info=(type(exc), exc, exc.__traceback__),
    )
    return number


async def _answer_method(scope: Scope, allowed: frozenset[str], send: Send) -> None:
    allow = [(b"allow", ", ".join(sorted(allowed | {"OPTIONS"})).encode())]
    if scope["method"] == "OPTIONS":
        await send_json(scope, send, 204, None, headers=allow)
    else:
        await send_json(scope, send, 405, {"detail": "Method Not Allowed"}, headers=allow)
