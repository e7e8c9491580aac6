"""The route ``/-/metrics``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Final

import trio

from tangram.console.access import OperatorAccess
from tangram.metrics.moment import Moment
from tangram.routing import APIRouter, Request, Response

__all__ = ["add_metrics_route"]

_EXPOSITION: Final = "tangram.metrics.exposition"


def add_metrics_route(
    router: APIRouter, moment: Callable[[], Moment], access: OperatorAccess, *, public: bool
) -> None:
    """Add the route to the operator's router."""

    @router.get(
        "/metrics",
        summary="Metrics for Prometheus",
        responses={
            200: {"description": "The metrics as text", "content": {"text/plain": {}}},
            401: {"description": "The operator's token is needed"},
        },
    )
    async def prometheus(request: Request) -> Response:
        """Return the metrics for Prometheus or OpenMetrics, as the request accepts.

        Needs the operator's token, or a session of the console, unless ``[metrics] public`` is set.
        """
        if not public:
            access.require_read(request)
        return await _metrics_response(moment(), request.headers.get("accept", ""))


async def _metrics_response(moment: Moment, accept: str) -> Response:
    """Return the metrics in the format that a request accepts.

    ``prometheus-client`` is imported at the first scrape, in a thread, because that takes 50 ms and many
    servers are never scraped.
    """
    if _EXPOSITION not in sys.modules:
        await trio.to_thread.run_sync(import_module, _EXPOSITION)
    from tangram.metrics.exposition import write_metrics

    content_type, text = write_metrics(moment, accept)
    return Response(text, media_type=content_type, headers={"cache-control": "no-store"})
