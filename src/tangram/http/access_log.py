"""The access log: one record for each answered request and each WebSocket handshake."""

from __future__ import annotations

import structlog

from tangram.asgi import ROOT, Scope
from tangram.http.engine import Engine

__all__ = ["log_access"]

log = structlog.get_logger("tangram.access")


def log_access(
    engine: Engine, scope: Scope, *, status: int | None, sent: int | None = None, seconds: float | None = None
) -> None:
    """Write the record of a request, with the address of the client behind a trusted proxy.

    The path is that of the browser, with ``[server] root_path``. The query is left out, because clients send
    tokens in it.

    Args:
        engine: the engine that answered.
        scope: the request or the handshake.
        status: the status code; None if the client got none.
        sent: bytes of the body, if they were counted.
        seconds: from the head of the request to the end of the response.
    """
    values = {"bytes": sent, "seconds": None if seconds is None else round(seconds, 6)}
    log.info(
        "request",
        method=scope.get("method", "GET"),
        path=scope.get(ROOT, "") + scope["path"],
        version=scope["http_version"],
        status=status,
        client=engine.address_of(scope),
        **{key: value for key, value in values.items() if value is not None},
    )
