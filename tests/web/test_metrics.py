"""The route of the metrics, and the durations that the site counts."""

from __future__ import annotations

import pytest

import tangram
from tangram.config.model import Config, MetricsConfig
from tangram.metrics.requests import MAX_SERIES, OTHER, RequestTimes
from tests.plugins.fakes import loaded
from tests.web.asgi import TOKEN, call, site_of

AS_OPERATOR = {"authorization": f"Bearer {TOKEN}"}
FAR = ("198.51.100.7", 4000)


@pytest.mark.parametrize("client", [("127.0.0.1", 50000), FAR])
async def test_the_metrics_need_the_token(client: tuple[str, int]) -> None:
    """Being on this machine opens nothing: behind a proxy every client is local."""
    refused = await call(site_of(), "GET", "/-/metrics", client=client)
    shown = await call(site_of(), "GET", "/-/metrics", client=client, headers=AS_OPERATOR)

    assert refused.status == 401
    assert b"tangram" not in refused.body.replace(b'realm="tangram"', b"")
    assert shown.status == 200
    assert shown.headers["content-type"].startswith("text/plain; version=")
    assert b"\ntangram_connections 0.0\n" in shown.body


async def test_the_metrics_may_be_public() -> None:
    """``[metrics] public`` shows them without a token."""
    site = site_of(config=Config(metrics=MetricsConfig(public=True)))

    assert (await call(site, "GET", "/-/metrics", client=FAR)).status == 200


async def test_openmetrics_is_sent_to_a_request_that_accepts_it() -> None:
    """Prometheus asks for it by default."""
    headers = AS_OPERATOR | {"accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    answer = await call(site_of(), "GET", "/-/metrics", headers=headers)

    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")


router = tangram.APIRouter()


@router.get("/greet/{name}")
async def greet(name: str) -> str:
    if name == "broken":
        raise LookupError(name)
    return name


async def test_a_request_is_counted_under_its_route_and_status() -> None:
    """The template of the path is the label, because clients choose the path."""
    times = RequestTimes()
    site = site_of(loaded(tangram.Plugin(routers=[router]), "demo"), request_times=times)
    for path in ("/greet/a", "/greet/b", "/greet/broken", "/missing", "/static/app.js", "/greet/a/b"):
        await call(site, "GET", path)
    await call(site, "BREW", "/greet/a")

    counted = {(key.method, key.route, key.status): one.count for key, one in times.values().items()}

    assert counted == {
        ("GET", "/greet/{name}", 200): 2,
        ("GET", "/greet/{name}", 500): 1,
        ("GET", "", 404): 2,
        ("GET", "/static/{file}", 200): 1,
        (OTHER, "", 405): 1,
    }


def test_the_number_of_series_is_bounded() -> None:
    """Beyond the bound requests share one series."""
    times = RequestTimes()
    for number in range(MAX_SERIES + 50):
        times.observe("GET", f"/{number}", 200, "http", 0.001)

    values = times.values()
    assert len(values) == MAX_SERIES + 1
    assert sum(one.count for one in values.values()) == MAX_SERIES + 50
