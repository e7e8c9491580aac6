"""The Quart application behind the site: plugins' blueprints, and what an engine without channels of its own
mounts.

Built anew for each incarnation, and only where somebody needs it: Quart costs a fifth of a second to import.
Its background tasks and its lifespan are not for use: what fails there is lost in a log line. They are
refused, by name.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import structlog

from tangram.asgi import ASGIApp
from tangram.plugins.registry import LoadedPlugin, cause_line
from tangram.web.operator import Operator

if TYPE_CHECKING:
    import trio
    from quart import Quart

__all__ = ["build_quart"]

log = structlog.get_logger("tangram.web")


def build_quart(
    plugins: Iterable[LoadedPlugin],
    hooks: Iterable[Callable[[Quart], None]],
    operator: Operator,
    max_body: int,
) -> tuple[ASGIApp, dict[str, str]]:
    """The application, and the plugins whose blueprints could not be registered with the cause.

    ``operator`` says which plugins' routes cannot answer now, and why.
    """
    app = _new_app(max_body)
    failures: dict[str, str] = {}
    owners: dict[str, str] = {}
    for loaded in plugins:
        cause = _register(app, loaded, owners)
        if cause is not None:
            failures[loaded.name] = cause
    _answer_for_the_absent(app, owners, operator)
    for hook in hooks:
        hook(app)
    return cast("ASGIApp", app), failures


def _register(app: Quart, loaded: LoadedPlugin, owners: dict[str, str]) -> str | None:
    """Register on a trial application first, so that a blueprint which raises half-way leaves nothing
    behind.
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
        log.exception("a plugin's blueprint cannot be registered", plugin=loaded.name, cause=cause)
        return cause
    owners.update(dict.fromkeys(set(app.blueprints) - before, loaded.name))
    if trial.before_serving_funcs or trial.after_serving_funcs or trial.while_serving_gens:
        log.warning(
            "a blueprint's serving functions are never called: use the plugin's lifespan or a service",
            plugin=loaded.name,
        )
    return None


def _answer_for_the_absent(app: Quart, owners: Mapping[str, str], operator: Operator) -> None:
    from quart import jsonify, request, websocket

    async def refuse(asked: Any) -> Any:
        down = operator.unavailable()
        for name in asked.blueprints if down else ():
            owner = owners.get(name, "")
            reason = await operator.wait_available(owner) if owner in down else None
            if reason is not None:
                return jsonify(detail=reason), 503, {"retry-after": "1"}
        return None

    async def absent() -> Any:
        return await refuse(request)

    async def absent_websocket() -> Any:
        # What is returned here is the answer to the handshake.
        return await refuse(websocket)

    app.before_request(absent)
    app.before_websocket(absent_websocket)


def _new_app(max_body: int) -> Quart:
    # Quart is not imported with this module: most servers never need it.
    from quart.asgi import ASGIHTTPConnection
    from quart_trio import QuartTrio
    from quart_trio.asgi import TrioASGIHTTPConnection
    from werkzeug.exceptions import HTTPException

    from tangram.http.engine import ClientGone
    from tangram.http.hypercorn.channels import WebsocketConnection

    class Connection(TrioASGIHTTPConnection):
        """One request. Upstream cancels the tail of its own response when the engine reports its end as a
        disconnect.
        """

        complete = False

        async def __call__(self, receive: Any, send: Any) -> None:
            async def watched(message: Any) -> None:
                if message["type"] == "http.response.body" and not message.get("more_body", False):
                    self.complete = True
                await send(message)

            await super().__call__(receive, watched)

        async def handle_messages(self, nursery: trio.Nursery, request: Any, receive: Any) -> None:  # type: ignore[override]
            await ASGIHTTPConnection.handle_messages(self, request, receive)
            if not self.complete:
                nursery.cancel_scope.cancel()

    class Application(QuartTrio):
        asgi_http_class = Connection
        asgi_websocket_class = WebsocketConnection

        async def handle_websocket_exception(self, error: Exception) -> Any:
            if isinstance(error, ClientGone):
                return None  # nobody's fault, and no traceback: a stranger could fill the log with them
            return await super().handle_websocket_exception(error)

        def add_background_task(self, func: Any, *_args: Any, **_kwargs: Any) -> None:
            name = getattr(func, "__name__", repr(func))
            raise RuntimeError(
                f"background task {name!r} would die unseen in a log line: make it a service of the plugin "
                "with @plugin.register_service()"
            )

    app = Application("tangram", static_folder=None, template_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max_body or None
    # Long answers are bounded by the engine's write timeout, which knows whether the client still reads.
    app.config["RESPONSE_TIMEOUT"] = None
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _internal_error)
    return app


async def _http_error(error: Any) -> Any:
    from quart import jsonify

    if error.response is not None:
        return error.response
    told = error.name if error.description == type(error).description else error.description
    answer = jsonify(detail=told)
    answer.status_code = error.code or 500
    for name, value in error.get_headers():
        if name.lower() in {"allow", "www-authenticate", "retry-after", "location"}:
            answer.headers[name] = value
    return answer


async def _internal_error(error: Exception) -> Any:
    from quart import jsonify, request

    ident = secrets.token_hex(6)
    log.error("a page failed", id=ident, path=request.path, exc_info=error)
    return jsonify(detail="internal error", id=ident), 500
