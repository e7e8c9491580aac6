"""Rings of points for the pictures."""

from __future__ import annotations

import pytest

from tangram.metrics.histogram import HTTP_BOUNDS, Histogram, HistogramValues
from tangram.metrics.pictures import MAX_MARKS, MAX_ROUTES, SPANS, Mark, Picture, Pictures
from tangram.metrics.requests import OTHER, RequestKey
from tests.metrics.moments import moment

TWO_MEGABYTES = 2 * 2**20


def test_a_point_is_the_rate_since_the_last_one() -> None:
    """Counters become rates; gauges stay as they are; nothing observed is null."""
    picture = Picture(2.0, 10)
    picture.take(moment(0.0, deliveries=100, connections=1), 1000.0)
    picture.take(moment(1.0, deliveries=150), 1001.0)  # not due
    picture.take(moment(2.0, deliveries=300, connections=7), 1002.0)

    shown = picture.to_dict()

    assert shown["times"] == [1002.0]
    assert shown["series"]["deliveries"] == [100.0]
    assert shown["series"]["connections"] == [7.0]
    assert shown["series"]["lag_p99"] == [None]


def test_old_points_are_overwritten() -> None:
    """The ring keeps the last points, in order; a reader asks for those it has not seen."""
    picture = Picture(1.0, 3)
    for second in range(6):
        picture.take(moment(float(second), connections=second), float(second))

    assert picture.points == 5
    assert picture.to_dict()["series"]["connections"] == [3.0, 4.0, 5.0]
    assert picture.to_dict(after=4)["times"] == [5.0]
    assert picture.to_dict(after=5)["times"] == []


def requests(counts: dict[str, int]) -> dict[RequestKey, HistogramValues]:
    found = {}
    for route, count in counts.items():
        histogram = Histogram(HTTP_BOUNDS)
        histogram.observe(0.02, count)
        found[RequestKey("GET", route, 200, "http")] = histogram.values()
    return found


def test_each_route_has_its_rate_and_duration() -> None:
    """A route is drawn by itself; a second without requests is a rate of 0 and no duration."""
    picture = Picture(1.0, 10)
    picture.take(moment(0.0), 0.0)
    picture.take(moment(1.0, requests=requests({"/a": 8})), 1.0)
    picture.take(moment(2.0, requests=requests({"/a": 8, "/b": 2})), 2.0)

    shown = picture.to_dict()

    assert shown["routes"]["GET /a"]["rate"] == [8.0, 0.0]
    assert shown["routes"]["GET /a"]["p99"] == [pytest.approx(0.025, rel=0.1), None]
    assert shown["routes"]["GET /b"]["rate"] == [None, 2.0]
    assert shown["series"]["requests"] == [8.0, 2.0]


def test_the_operators_own_requests_are_not_drawn() -> None:
    """An open page of the console is a request of an hour, which would hide the others."""
    picture = Picture(1.0, 10)
    picture.take(moment(0.0), 0.0)
    picture.take(moment(1.0, requests=requests({"/a": 1, "/-/live/{page}": 5, "/longpoll": 5})), 1.0)

    shown = picture.to_dict()
    assert shown["series"]["requests"] == [1.0]
    assert list(shown["routes"]) == ["GET /a"]


def test_further_routes_share_one_series() -> None:
    """The number of series is bounded, however many routes there are."""
    picture = Picture(1.0, 10)
    picture.take(moment(0.0), 0.0)
    picture.take(moment(1.0, requests=requests({f"/{n}": 1 for n in range(40)})), 1.0)

    routes = picture.to_dict()["routes"]

    assert len(routes) == MAX_ROUTES + 1
    assert routes[OTHER]["rate"] == [40.0 - MAX_ROUTES]


def test_both_pictures_fit_into_two_megabytes() -> None:
    """Also with every series in use."""
    pictures = Pictures()
    everything = requests({f"/{n}": 1 for n in range(40)})
    for second in (0.0, 100.0):
        pictures.take(moment(second, requests=everything if second else {}), second)
    for number in range(MAX_MARKS + 5):
        pictures.mark(Mark(float(number), "plugin:demo", "ValueError: no"))

    assert all(picture.points == 1 for picture in pictures.spans.values())
    assert pictures.size < TWO_MEGABYTES / 2
    assert len(pictures.marks) == MAX_MARKS


def test_the_spans_are_15_minutes_and_24_hours() -> None:
    """Step times length."""
    assert {name: step * length for name, (step, length) in SPANS.items()} == {"15m": 900, "24h": 86400}
