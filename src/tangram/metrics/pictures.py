"""Pictures of the last 15 minutes and 24 hours: rings of points, of bounded size.

1. There is no I/O and no clock here: `Pictures.take` gets a `Moment`, and derives a point from the difference
   to the one before.
2. All memory is allocated by the number of series, which is bounded: see `MAX_ROUTES`. Both pictures with all
   routes take 0.5 MB.
3. A point without a value, such as the duration of requests in a second without requests, is NaN here and
   ``null`` in the answers.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs

from tangram.metrics.histogram import HistogramValues
from tangram.metrics.moment import Moment
from tangram.metrics.requests import OTHER, RequestKey

__all__ = ["MAX_MARKS", "MAX_ROUTES", "NAMES", "SPANS", "Mark", "Picture", "Pictures"]

SPANS: Final[Mapping[str, tuple[float, int]]] = {"15m": (2.0, 450), "24h": (60.0, 1440)}
"""For each picture the seconds between two points, and the number of points."""

MAX_ROUTES: Final = 16
"""Routes with series of their own; the others share the series ``_OTHER``."""

UNDRAWN: Final = ("/-/", "/longpoll")
"""Beginnings of routes that are not drawn."""

MAX_MARKS: Final = 256
"""Restarts that are kept."""

NAMES: Final = (
    "deliveries",
    "received",
    "sent_bytes",
    "lag_p50",
    "lag_p99",
    "requests",
    "request_p50",
    "request_p99",
    "loop_lag_p99",
    "memory",
    "connections",
    "backlog",
)
"""The series of a picture. Counts and bytes of flows are per second, durations are seconds."""

NAN: Final = math.nan


@attrs.frozen
class Mark:
    """A restart, drawn on every picture."""

    at: float
    """Seconds since the epoch."""
    child: str
    cause: str


class Picture:
    """The points of one span.

    Args:
        step: seconds between two points.
        length: points that are kept.
    """

    def __init__(self, step: float, length: int) -> None:
        self.step = step
        self.length = length
        self.points = 0
        """Points ever taken; the ring holds the last ``length`` of them."""
        self._times = array("d", [NAN]) * length
        self._series = {name: self._blank() for name in NAMES}
        self._routes: dict[str, tuple[array[float], array[float]]] = {}
        self._earlier: Moment | None = None

    def _blank(self) -> array[float]:
        return array("f", [NAN]) * self.length

    @property
    def size(self) -> int:
        """Bytes of the rings."""
        rings = [*self._series.values(), *(ring for pair in self._routes.values() for ring in pair)]
        return sum(len(ring) * ring.itemsize for ring in (self._times, *rings))

    def take(self, moment: Moment, wall: float) -> None:
        """Add a point if the last one is ``step`` seconds old.

        Args:
            moment: the numbers of now.
            wall: seconds since the epoch.
        """
        earlier = self._earlier
        if earlier is None:
            self._earlier = moment
            return
        elapsed = moment.at - earlier.at
        if elapsed < 0.99 * self.step:  # a timer may be early by its resolution
            return
        self._earlier = moment
        place = self.points % self.length
        self.points += 1
        self._times[place] = wall
        for name, value in _point(earlier, moment, elapsed).items():
            self._series[name][place] = value
        self._take_routes(place, earlier, moment, elapsed)

    def _take_routes(self, place: int, earlier: Moment, moment: Moment, elapsed: float) -> None:
        for rates, durations in self._routes.values():
            rates[place], durations[place] = 0.0, NAN
        by_route: dict[str, HistogramValues] = {}
        for key, values in _drawn(moment):
            then = earlier.requests.get(key)
            new = values if then is None else values.since(then)
            if new.count:
                name = self._route_name(f"{key.method} {key.route}" if key.route else OTHER)
                by_route[name] = _sum(by_route[name], new) if name in by_route else new
        for name, new in by_route.items():
            rates, durations = self._routes[name]
            rates[place], durations[place] = new.count / elapsed, new.quantile(0.99) or NAN

    def _route_name(self, name: str) -> str:
        if name not in self._routes:
            if len(self._routes) >= MAX_ROUTES:
                name = OTHER
            self._routes.setdefault(name, (self._blank(), self._blank()))
        return name

    def to_dict(self, after: int = 0) -> dict[str, Any]:
        """Return the points as plain values, oldest first.

        Args:
            after: leave out the first so many points ever taken; ``points`` of the last answer.
        """
        first = max(after, self.points - self.length, 0)
        places = [number % self.length for number in range(first, self.points)]
        return {
            "points": self.points,
            "step": self.step,
            "length": self.length,
            "times": [self._times[place] for place in places],
            "series": {name: _shown(ring, places) for name, ring in self._series.items()},
            "routes": {
                name: {"rate": _shown(rates, places), "p99": _shown(durations, places)}
                for name, (rates, durations) in self._routes.items()
            },
        }


class Pictures:
    """Both pictures, and the marks of restarts."""

    def __init__(self) -> None:
        self.spans = {name: Picture(*span) for name, span in SPANS.items()}
        self.marks: deque[Mark] = deque(maxlen=MAX_MARKS)

    def take(self, moment: Moment, wall: float) -> None:
        """Add the numbers of a moment to both pictures, where a point is due."""
        for picture in self.spans.values():
            picture.take(moment, wall)

    def mark(self, mark: Mark) -> None:
        """Add the mark of a restart."""
        self.marks.append(mark)

    @property
    def size(self) -> int:
        """Bytes of the rings of both pictures."""
        return sum(picture.size for picture in self.spans.values())


def _drawn(moment: Moment) -> Iterator[tuple[RequestKey, HistogramValues]]:
    """Yield the series of requests that are drawn.

    Those of the operator are not, nor those that wait for messages. An open page of the console would be a
    request of an hour.
    """
    for key, values in moment.requests.items():
        if not key.route.startswith(UNDRAWN):
            yield key, values


def _point(earlier: Moment, now: Moment, elapsed: float) -> dict[str, float]:
    lag = now.delivery_lag.since(earlier.delivery_lag)
    requests = _all_requests(now, earlier)
    return {
        "deliveries": (now.deliveries - earlier.deliveries) / elapsed,
        "received": (now.received - earlier.received) / elapsed,
        "sent_bytes": (now.sent_bytes - earlier.sent_bytes) / elapsed,
        "lag_p50": _or_nan(lag.quantile(0.5)),
        "lag_p99": _or_nan(lag.quantile(0.99)),
        "requests": (requests.count if requests else 0) / elapsed,
        "request_p50": _or_nan(requests.quantile(0.5) if requests else None),
        "request_p99": _or_nan(requests.quantile(0.99) if requests else None),
        "loop_lag_p99": _or_nan(now.loop_lag.since(earlier.loop_lag).quantile(0.99)),
        "memory": now.process.resident_bytes,
        "connections": now.connections,
        "backlog": now.backlog_bytes,
    }


def _all_requests(now: Moment, earlier: Moment) -> HistogramValues | None:
    """Return the durations of all requests between two moments."""
    total: HistogramValues | None = None
    for key, values in _drawn(now):
        then = earlier.requests.get(key)
        new = values if then is None else values.since(then)
        if new.count:
            total = new if total is None else _sum(total, new)
    return total


def _sum(one: HistogramValues, other: HistogramValues) -> HistogramValues:
    counts = tuple(a + b for a, b in zip(one.counts, other.counts, strict=True))
    return HistogramValues(one.bounds, counts, one.total + other.total)


def _or_nan(value: float | None) -> float:
    return NAN if value is None else value


def _shown(ring: array[float], places: list[int]) -> list[float | None]:
    """Return points with six significant digits: more would be noise."""
    return [None if math.isnan(value := ring[place]) else float(f"{value:.6g}") for place in places]
