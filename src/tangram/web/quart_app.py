"""The Quart application of one incarnation, which serves the blueprints of plugins.

The site imports this module only where a plugin brings blueprints, because importing Quart takes 0.2 s.
Quart's background tasks and its serving functions cannot be used: Quart only logs their errors. The former
are refused, the latter are never called, and a warning names the plugin.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, cast

import structlog
import trio
from quart import Quart, has_request_context, jsonify, request, websocket
from quart.wrappers import Websocket
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection, TrioASGIWebsocketConnection
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RoutingException

from tangram.asgi import ASGIApp, Scope
from tangram.channels.disconnects import CRASH
from tangram.descriptors import is_exhaustion
from tangram.http.engine import ClientGone
from tangram.plugins.registry import LoadedPlugin, cause_line
from tangram.routing.shortage import unavailable
from tangram.web.operator import ServerControl
from tangram.web.plugin_sockets import bind_to_plugin

__all__ = ["QuartWebSocketConnection", "build_quart"]

log = structlog.get_logger("tangram.web")


def build_quart(
    plugins: Iterable[LoadedPlugin], control: ServerControl, max_body: int
) -> tuple[ASGIApp, dict[str, str], Callable[[Scope], str]]:
    """Make the Quart application with the blueprints of ``plugins``.

    Args:
        plugins: Those without blueprints are ignored.
        control: Reports which plugins cannot answer now; their blueprints answer 503.
        max_body: Bytes of a request body; 0 means no limit.

    Returns:
        The application, causes by name of the plugins whose blueprints cannot be registered, and a function
        that returns the owner of a request's route, or an empty text.
    """
    app = _new_app(max_body)
    failures: dict[str, str] = {}
    owners: dict[str, str] = {}
    for loaded in plugins:
        cause = _register(app, loaded, owners)
        if cause is not None:
            failures[loaded.name] = cause
    _refuse_unavailable(app, owners, control)
    return cast("ASGIApp", app), failures, partial(_owner_of, app, owners)


def _owner_of(app: Quart, owners: Mapping[str, str], scope: Scope) -> str:
    is_websocket = scope["type"] == "websocket"
    try:
        endpoint, _ = app.url_map.bind("").match(
            scope["path"], scope.get("method", "GET"), websocket=is_websocket
        )
    except (HTTPException, RoutingException):
        return ""  # a redirect or a refusal, which needs no plugin
    return next((owner for name, owner in owners.items() if str(endpoint).startswith(f"{name}.")), "")


def _register(app: Quart, loaded: LoadedPlugin, owners: dict[str, str]) -> str | None:
    """Register the blueprints of one plugin; return the cause if that fails.

    They are registered on a trial application first: a blueprint that raises half-way would leave some of its
    routes in the real one.
    """
    trial = _new_app(0)
    before = set(app.blueprints)
    try:
        for blueprint in loaded.plugin.blueprints:
            trial.register_blueprint(blueprint)
        for blueprint in loaded.plugin.blueprints:
            app.register_blueprint(blueprint)
    except Exception as error:
        cause = cause_line(error, loaded.source)
        log.exception("blueprint registration failed", plugin=loaded.name, cause=cause)
        return cause
    owners.update(dict.fromkeys(set(app.blueprints) - before, loaded.name))
    if trial.before_serving_funcs or trial.after_serving_funcs or trial.while_serving_gens:
        log.warning(
            "serving functions of a blueprint are never called",
            plugin=loaded.name,
            hint="use the plugin's lifespan or a service",
        )
    return None


def _refuse_unavailable(app: Quart, owners: Mapping[str, str], control: ServerControl) -> None:
    """Answer 503 on the routes of plugins that are down; bind WebSockets to their plugin."""

    async def refusal(context: Any) -> Any:
        down = control.unavailable()
        for name in context.blueprints if down else ():
            owner = owners.get(name, "")
            reason = await control.wait_available(owner) if owner in down else None
            if reason is not None:
                return jsonify(detail=reason), 503, {"retry-after": "1"}
        return None

    async def before_request() -> Any:
        return await refusal(request)

    async def before_websocket() -> Any:
        # The returned response is the answer to the handshake.
        refused = await refusal(websocket)
        for name in websocket.blueprints if refused is None else ():
            bind_to_plugin(cast("Any", websocket).scope, control.websockets_of(owners.get(name, "")))
        return refused

    app.before_request(before_request)
    app.before_websocket(before_websocket)


class _QuartHttpConnection(TrioASGIHTTPConnection):
    """One HTTP request whose response may outlast the ``http.disconnect`` event.

    quart-trio cancels the rest of its own response when the engine reports the end of the request.
    """

    complete = False

    async def __call__(self, receive: Any, send: Any) -> None:
        async def watched_send(message: Any) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self.complete = True
            await send(message)

        await super().__call__(receive, watched_send)

    async def handle_messages(  # type: ignore[override] # quart-trio adds the nursery
        self, nursery: trio.Nursery, request: Any, receive: Any
    ) -> None:
        guarded = cast("trio.Nursery", _IncompleteOnly(self, nursery))
        await super().handle_messages(guarded, request, receive)


class _IncompleteOnly:
    """The part of a nursery that quart-trio uses at a disconnect."""

    def __init__(self, connection: _QuartHttpConnection, nursery: trio.Nursery) -> None:
        self._connection = connection
        self._nursery = nursery
        self.cancel_scope = self

    def cancel(self) -> None:
        if not self._connection.complete:
            self._nursery.cancel_scope.cancel()


class _CrashRecorder:
    """An application that records whether its WebSocket handler failed.

    After the upgrade, a handler that returns a response has failed: Quart made that response of its
    exception.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self.crashed = False

    async def handle_websocket(self, socket: Websocket) -> Any:
        response = await self._app.handle_websocket(socket)
        self.crashed = response is not None
        return response

    def __getattr__(self, name: str) -> Any:
        return getattr(self._app, name)


class QuartWebSocketConnection(TrioASGIWebsocketConnection):
    """A WebSocket of Quart with two corrections; for ``Quart.asgi_websocket_class``.

    1. A handler that failed is closed with 1011 instead of 1000, after which phoenix.js would not reconnect.
    2. An empty binary frame arrives as ``b""``, whichever of its keys the engine leaves out of the event.
    """

    app: Any

    async def __call__(self, receive: Any, send: Any) -> None:
        async def receive_data() -> Any:
            event: Any = await receive()
            if event["type"] == "websocket.receive":
                # Quart takes ``bytes`` or, if that is empty, ``text``.
                data = event.get("bytes")
                event = {**event, "text": data if data is not None else event.get("text", "")}
            return event

        await super().__call__(receive_data, send)

    async def handle_websocket(  # type: ignore[override] # quart-trio adds the nursery
        self, nursery: trio.Nursery, websocket: Websocket, send: Any
    ) -> None:
        recorder = self.app = _CrashRecorder(self.app)

        async def send_with_code(event: Any) -> None:
            if recorder.crashed and event["type"] == "websocket.close":
                event = {**event, "code": CRASH.code, "reason": CRASH.reason}
            await send(event)

        await super().handle_websocket(nursery, websocket, send_with_code)


class _Application(QuartTrio):
    asgi_http_class = _QuartHttpConnection
    asgi_websocket_class = QuartWebSocketConnection

    async def handle_websocket_exception(self, error: Exception) -> Any:
        if isinstance(error, ClientGone):
            return None  # an ordinary end, and a traceback for each would let clients fill the log
        return await super().handle_websocket_exception(error)

    def add_background_task(self, func: Callable[..., Any], *_args: Any, **_kwargs: Any) -> None:
        name = getattr(func, "__name__", repr(func))
        raise RuntimeError(
            f"background task {name!r} is refused, because Quart would only log its errors: "
            "make it a service of the plugin with @plugin.register_service()"
        )


def _new_app(max_body: int) -> Quart:
    app = _Application("tangram", static_folder=None, template_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max_body or None
    # The write timeout of the engine bounds long responses, because the engine knows whether the client
    # reads.
    app.config["RESPONSE_TIMEOUT"] = None
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _internal_error)
    return app


async def _http_error(error: Any) -> Any:
    if error.response is not None:
        return error.response
    detail = error.name if error.description == type(error).description else error.description
    answer = jsonify(detail=detail)
    answer.status_code = error.code or 500
    for name, value in error.get_headers():
        if name.lower() in {"allow", "www-authenticate", "retry-after", "location"}:
            answer.headers[name] = value
    return answer


async def _internal_error(error: Exception) -> Any:
    if is_exhaustion(error):
        short = unavailable(error)
        return jsonify(detail=short.detail), short.status_code, dict(short.headers or {})
    ident = secrets.token_hex(6)
    path = request.path if has_request_context() else websocket.path
    log.error("request failed", id=ident, path=path, exc_info=error)
    return jsonify(detail="internal error", id=ident), 500
