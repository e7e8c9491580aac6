"""The metrics as text, and their page of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tangram.metrics.exposition import write_metrics
from tangram.metrics.histogram import HTTP_BOUNDS, Histogram
from tangram.metrics.moment import TopicNumbers
from tangram.metrics.requests import RequestKey
from tests.metrics.moments import moment

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
HOSTILE = 'a"b\\c\nd'
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def everything() -> object:
    histogram = Histogram(HTTP_BOUNDS)
    histogram.observe(0.03, 3)
    return moment(
        connections=3,
        disconnects={(1013, "too far behind"): 2},
        services={("demo", "tick"): True},
        restarts={("plugin:demo", HOSTILE): 1},
        requests={RequestKey("GET", "/greet/{name}", 200, "http"): histogram.values()},
        leases={"globe": True, "demo/tick": False},
        named_topics=[TopicNumbers(HOSTILE, 1, 2, 3, 4)],
    )


def families(accept: str = "") -> dict[str, object]:
    content_type, text = write_metrics(everything(), accept)  # type: ignore[arg-type]
    parse = parse_openmetrics if "openmetrics" in content_type else text_string_to_metric_families
    return {family.name: family for family in parse(text.decode())}


def test_both_formats_can_be_read() -> None:
    """Prometheus and OpenMetrics get the same families, with labels that clients cannot break."""
    plain, open_ = families(), families(OPENMETRICS)

    assert {name.removesuffix("_info") for name in plain} == {name.removesuffix("_info") for name in open_}
    (sample,) = plain["tangram_topic_members"].samples  # type: ignore[attr-defined]
    assert sample.labels == {"topic": HOSTILE}


def test_the_buckets_of_a_histogram_add_up() -> None:
    """Buckets are cumulative, and the last one is the count."""
    samples = families()["http_server_request_duration_seconds"].samples  # type: ignore[attr-defined]
    buckets = {one.labels["le"]: one.value for one in samples if one.name.endswith("_bucket")}

    assert (buckets["0.025"], buckets["0.05"], buckets["+Inf"]) == (0.0, 3.0, 3.0)
    assert next(one.value for one in samples if one.name.endswith("_count")) == 3.0
    assert samples[0].labels["http_route"] == "/greet/{name}"


def test_every_metric_has_a_heading_and_every_heading_is_a_metric() -> None:
    """The page of the metrics lists exactly the metrics that are written."""
    text = write_metrics(everything(), "")[1].decode()  # type: ignore[arg-type]
    written = {
        f"{name}_info" if name == "tangram_build" else name
        for name in re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    }
    headings = set(re.findall(r"^### (\S+)$", PAGE, re.MULTILINE))

    assert headings == written


def test_topics_are_no_label_unless_they_are_named() -> None:
    """Clients choose the names of topics, so that each would be a series for ever."""
    text = write_metrics(moment(topics=5), "")[1].decode()

    assert "tangram_topics 5.0" in text
    assert "topic=" not in text
