"""``/-/``: what the operator and their machines ask. Health, readiness, the supervision tree, the plugins.

Numbers and states are for all. Causes, with the last frames of their tracebacks, are for the operator (the
token) and for this machine. Whatever changes something needs the token, from this machine as well: any page
in a browser here can send a request to loopback.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tangram.errors import NoSuchChild, StartFailed
from tangram.routing import APIRouter, HTTPException, JSONResponse, Request
from tangram.web.origin import Addresses

__all__ = ["DETAIL_KEYS", "Operator", "operator_router", "without_details"]

DETAIL_KEYS = frozenset(
    {"last_crash", "crashes", "crash", "ghosts", "stubborn", "where", "others", "traceback"}
)
"""What is kept, whole, from those who may not see details."""
PUBLIC_WORDS = frozenset(
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
    | {"services", "path"}
)
"""Under these names text is for all. Any other text may be somebody's path, address or value, and is kept
back.
"""


class Operator(Protocol):
    """What the routes need to know of the running server."""

    def health(self) -> bool:
        """The event loop turns and the tree stands; ``False`` once the server ends."""
        ...

    def readiness(self) -> tuple[bool, Sequence[str]]:
        """Whether everything that should run does, and if not, why: one short reason each, fit for
        everybody.
        """
        ...

    def supervision(self) -> Mapping[str, Any]:
        """The tree, with all details, as plain values."""
        ...

    def plugins(self) -> Sequence[Mapping[str, Any]]:
        """The plugins, with all details, as plain values: at least ``name`` and ``state``."""
        ...

    async def restart_plugin(self, name: str) -> None:
        """Restart one, also one in quarantine; raises `NoSuchChild`, or `StartFailed` when it fails again."""
        ...

    def unavailable(self) -> Mapping[str, str]:
        """Plugins whose routes cannot answer now, with a reason fit for everybody. Asked at every request:
        cheap.
        """
        ...

    async def wait_available(self, plugin: str) -> str | None:
        """Wait, for a bounded time, for a plugin that restarts: ``None`` once it serves, else the reason."""
        ...


def without_details(value: Any) -> Any:
    """Numbers, states and names alone: what is not known to be harmless is left out."""
    if isinstance(value, Mapping):
        return {
            key: without_details(item)
            for key, item in value.items()
            if key not in DETAIL_KEYS and (key in PUBLIC_WORDS or not _holds_text(item))
        }
    if isinstance(value, list | tuple):
        return [without_details(item) for item in value]
    return value


def _holds_text(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_text, value))
    return isinstance(value, str | bytes)


def operator_router(operator: Operator, token: str, addresses: Addresses) -> APIRouter:
    """The routes below ``/-``."""
    guard = _Guard(token, addresses)
    router = APIRouter(prefix="/-", tags=["operator"])

    @router.get("/healthz", summary="Does the server live?")
    async def healthz() -> JSONResponse:
        """200 while the event loop turns; for liveness probes."""
        if operator.health():
            return _fresh({"status": "ok"})
        return _fresh({"status": "stopping"}, 503)

    @router.get("/readyz", summary="Can the server do its work?")
    async def readyz() -> JSONResponse:
        """200 when bus, channels and plugins are up; 503 with the reasons otherwise."""
        ready, reasons = operator.readiness()
        return _fresh(
            {"status": "ready" if ready else "not ready", "reasons": list(reasons)}, 200 if ready else 503
        )

    @router.get("/supervision", summary="The supervision tree")
    async def supervision(request: Request) -> JSONResponse:
        """State, incarnation and restarts of each part; for the operator also the last crashes."""
        tree = operator.supervision()
        return _fresh(tree if guard.sees_details(request) else without_details(tree))

    @router.get("/plugins", summary="The plugins")
    async def plugins(request: Request) -> JSONResponse:
        """Name and state of each plugin; for the operator also what went wrong."""
        listed = list(operator.plugins())
        return _fresh(listed if guard.sees_details(request) else without_details(listed))

    @router.post("/plugins/{name}/restart", summary="Restart a plugin")
    async def restart(name: str, request: Request) -> JSONResponse:
        """Restart one plugin, also one in quarantine. Needs the operator's token."""
        guard.require_token(request)
        return await _restart(operator, name)

    return router


async def _restart(operator: Operator, name: str) -> JSONResponse:
    try:
        await operator.restart_plugin(name)
    except NoSuchChild:
        raise HTTPException(404, f"no plugin is called {name!r}: see /-/plugins") from None
    except StartFailed as error:
        return _fresh({"detail": f"plugin {name!r} did not start", "cause": str(error)}, 503)
    return _fresh({"status": "restarted", "plugin": name})


def _fresh(content: Any, status: int = 200) -> JSONResponse:
    # What is told holds for this moment; a proxy that remembers it would lie.
    return JSONResponse(content, status, headers={"cache-control": "no-store"})


class _Guard:
    def __init__(self, token: str, addresses: Addresses) -> None:
        self._token = token.encode()
        self._addresses = addresses

    def sees_details(self, request: Request) -> bool:
        return self._has_token(request) or self._addresses.is_local(request.scope)

    def require_token(self, request: Request) -> None:
        if not self._has_token(request):
            raise HTTPException(
                401,
                "the operator's token is needed: Authorization: Bearer TOKEN",
                {"www-authenticate": 'Bearer realm="tangram"'},
            )

    def _has_token(self, request: Request) -> bool:
        values = request.headers.getlist("authorization")
        if len(values) != 1 or not self._token:
            return False
        scheme, _, given = values[0].partition(" ")
        # The time that the comparison takes must not tell how much of the token was right.
        return (
            hmac.compare_digest(given.strip().encode("latin-1"), self._token) and scheme.lower() == "bearer"
        )
