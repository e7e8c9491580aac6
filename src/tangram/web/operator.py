"""Routes of the operator below ``/-/``, for example health, plugins and topics.

1. Numbers and states are public. Causes of crashes, with the last frames of their tracebacks, are shown to
   requests with the operator's token, and to browsers that are logged in to the console.
2. Routes that change something need the token too. Being on this machine replaces it nowhere: a proxy on this
   machine makes every client local, and any page in a browser here can send a request to loopback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import trio

from tangram.config.model import MetricsConfig
from tangram.console.access import OperatorAccess
from tangram.errors import NoSuchChild, PluginError, StartFailed
from tangram.metrics.moment import Moment
from tangram.routing import APIRouter, HTTPException, JSONResponse, Request, Response
from tangram.supervision.records import cause_of
from tangram.web.metrics import add_metrics_route
from tangram.web.node_routes import NodeControl, add_node_routes
from tangram.web.topic_routes import TopicControl, add_topic_routes

__all__ = ["DETAIL_KEYS", "ServerControl", "operator_router", "without_details"]

DETAIL_KEYS: Final = frozenset(
    {"last_crash", "crashes", "crash", "ghosts", "stubborn", "where", "others", "traceback"}
)
"""Keys whose whole value is left out of public answers."""
PUBLIC_TEXT_KEYS: Final = frozenset(
    {
        "name",
        "state",
        "status",
        "kind",
        "strategy",
        "restart",
        "child",
        "supervisor",
        "plugin",
        "distribution",
    }
    | {"services", "path", "routes", "topics"}
)
"""Keys whose text is public. Any other text may contain a path, an address or a value of a plugin."""


class ServerControl(TopicControl, NodeControl, Protocol):
    """The running server, as the operator's routes see it."""

    def is_stopping(self) -> bool:
        """Return whether the stop of the server has begun."""
        ...

    def readiness(self) -> tuple[bool, Sequence[str]]:
        """Return whether the server is ready, and a short public reason for each part that is not.

        There may be reasons although it is ready: plugins that are not required.
        """
        ...

    def supervision(self) -> Mapping[str, Any]:
        """Return the supervision tree with all details, as plain values."""
        ...

    def plugins(self) -> Sequence[Mapping[str, Any]]:
        """Return the plugins with all details, as plain values: at least ``name`` and ``state``."""
        ...

    def moment(self) -> Moment:
        """Return all numbers of now, for the metrics."""
        ...

    async def restart_plugin(self, name: str, *, reload: bool = False) -> None:
        """Restart one plugin, also one in quarantine; ``reload`` imports its code again first.

        Raises:
            NoSuchChild: No plugin has this name.
            PluginError: The code cannot be imported again.
            StartFailed: The plugin failed again.
        """
        ...

    def unavailable(self) -> Mapping[str, str]:
        """Return public reasons by name of the plugins whose routes cannot answer now.

        Called at each request, so it must be cheap.
        """
        ...

    def websockets_of(self, plugin: str) -> set[trio.CancelScope]:
        """Return the scopes of the plugin's WebSockets, which are cancelled when it ends."""
        ...

    async def wait_available(self, plugin: str) -> str | None:
        """Wait a bounded time for a plugin that restarts; return the reason if it is not back."""
        ...


def without_details(value: Any) -> Any:
    """Return a copy with public parts only: numbers, states and names."""
    if isinstance(value, Mapping):
        return {
            key: without_details(item)
            for key, item in value.items()
            if key not in DETAIL_KEYS and (key in PUBLIC_TEXT_KEYS or not _holds_text(item))
        }
    if isinstance(value, list | tuple):
        return [without_details(item) for item in value]
    return value


def _holds_text(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_text, value))
    return isinstance(value, str | bytes)


def operator_router(
    control: ServerControl, access: OperatorAccess, *, metrics: MetricsConfig | None = None
) -> APIRouter:
    """Make the routes below ``/-``."""
    router = APIRouter(prefix="/-", tags=["operator"])

    @router.get("/healthz", summary="Liveness")
    async def healthz() -> JSONResponse:
        """Answer 200 while the event loop runs, also while the server stops; for liveness probes."""
        # An upgrade behind a balancer must not look like an outage. Balancers ask for readiness.
        return _uncached({"status": "stopping" if control.is_stopping() else "ok"})

    @router.get("/readyz", summary="Readiness", responses={503: {"description": "A part is not up"}})
    async def readyz() -> JSONResponse:
        """Answer 200 when bus, channels and plugins are up, else 503 with the reasons.

        A plugin that is quarantined or could not be loaded is a reason with status 200, because the others
        serve; ``[server] ready_requires`` makes it 503.
        """
        ready, reasons = control.readiness()
        return _uncached(
            {"status": "ready" if ready else "not ready", "reasons": list(reasons)}, 200 if ready else 503
        )

    @router.get("/supervision", summary="The supervision tree")
    async def supervision(request: Request) -> Response:
        """Return state, incarnation and restarts of each part; crashes for the operator only.

        A browser that navigates here is led to the console.
        """
        return _to_console(request, access.root_path) or _supervision(control, access, request)

    @router.get("/plugins", summary="The plugins")
    async def plugins(request: Request) -> JSONResponse:
        """Return name and state of each plugin; for the operator also the causes of failures."""
        listed = list(control.plugins())
        return _uncached(listed if access.may_read(request) else without_details(listed))

    @router.post(
        "/plugins/{name}/restart",
        summary="Restart a plugin",
        responses={
            401: {"description": "The operator's token is needed"},
            404: {"description": "No plugin has this name"},
            409: {"description": "The plugin's code cannot be imported again; it runs on as it is"},
            503: {"description": "The plugin did not start"},
        },
    )
    async def restart(name: str, request: Request, *, reload: bool = False) -> JSONResponse:
        """Restart one plugin, also one in quarantine. Needs the operator's token.

        With ``reload`` its code is imported again first.
        """
        access.require_token(request)
        return await _restart(control, name, reload=reload)

    add_metrics_route(router, control.moment, access, public=metrics is not None and metrics.public)
    add_topic_routes(router, control, access)
    return add_node_routes(router, control, access)


def _is_navigation(request: Request) -> bool:
    """Return whether a browser asks for a page, and not a program for data.

    Browsers name HTML first in ``Accept``; programs that accept it, too, name JSON before it.
    """
    return request.headers.get("accept", "").lstrip().startswith("text/html")


def _to_console(request: Request, root: str) -> Response | None:
    """Return the redirect of a navigating browser, or None for a program."""
    if not _is_navigation(request):
        return None
    return Response(b"", 303, {"location": f"{root}/-/#/tree", "vary": "Accept"})


def _supervision(control: ServerControl, access: OperatorAccess, request: Request) -> Response:
    tree = control.supervision()
    response = _uncached(tree if access.may_read(request) else without_details(tree))
    response.headers["vary"] = "Accept"
    return response


async def _restart(control: ServerControl, name: str, *, reload: bool) -> JSONResponse:
    try:
        await control.restart_plugin(name, reload=reload)
    except NoSuchChild:
        raise HTTPException(404, f"no plugin is called {name!r}: see /-/plugins") from None
    except PluginError as error:
        detail = f"plugin {name!r} cannot be imported again and runs on as it is"
        return _uncached({"detail": detail, "cause": str(error)}, 409)
    except StartFailed as error:
        return _uncached({"detail": f"plugin {name!r} did not start", "cause": cause_of(error)}, 503)
    return _uncached({"status": "restarted", "plugin": name})


def _uncached(content: Any, status: int = 200) -> JSONResponse:
    # The answer holds for this moment, so a proxy must not keep it.
    return JSONResponse(content, status, headers={"cache-control": "no-store"})
