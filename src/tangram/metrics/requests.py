"""Durations of HTTP requests by method, route and status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from tangram.metrics.histogram import HTTP_BOUNDS, Histogram, HistogramValues

__all__ = ["MAX_SERIES", "OTHER", "RequestKey", "RequestTimes"]

MAX_SERIES: Final = 1000
"""Histograms at most: methods, routes and statuses are few, and clients choose none of them freely."""

OTHER: Final = "_OTHER"
"""OpenTelemetry's name for a method that is not known, here also for a route beyond `MAX_SERIES`."""

_METHODS: Final = frozenset(
    {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "QUERY"}
)


class RequestKey(NamedTuple):
    """One series of durations."""

    method: str
    route: str
    """The template of the path, such as ``/greet/{name}``; empty if no route was found."""
    status: int
    scheme: str


class RequestTimes:
    """The durations of all requests of a server, over all incarnations."""

    def __init__(self) -> None:
        self._series: dict[RequestKey, Histogram] = {}

    def observe(self, method: str, route: str, status: int, scheme: str, seconds: float) -> None:
        """Count one request."""
        # A plain tuple finds its equal RequestKey, and costs less to make.
        found = self._series.get((method, route, status, scheme))  # type: ignore[call-overload]
        if found is None:
            found = self._new(method, route, status, scheme)
        found.observe(seconds)

    def _new(self, method: str, route: str, status: int, scheme: str) -> Histogram:
        key = RequestKey(method if method in _METHODS else OTHER, route, status, scheme)
        if len(self._series) >= MAX_SERIES:
            key = RequestKey(OTHER, OTHER, 0, "")
        return self._series.setdefault(key, Histogram(HTTP_BOUNDS))

    def values(self) -> Mapping[RequestKey, HistogramValues]:
        """Return the durations until now."""
        return {key: series.values() for key, series in self._series.items()}
