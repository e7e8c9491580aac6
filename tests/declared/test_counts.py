"""The numbers of one plugin's pushes."""

from __future__ import annotations

from tangram.declared.counts import MAX_SERIES, PushCounts
from tangram.metrics.requests import OTHER


def test_an_event_keeps_its_histogram() -> None:
    """A pool after a restart counts on where the last one ended."""
    counts = PushCounts()
    counts.durations_of("map:{area}", "select").observe(0.3)
    counts.durations_of("map:{area}", "select").observe(0.2)

    assert [(key, values.count, values.total) for key, values in counts.durations().items()] == [
        (("map:{area}", "select"), 2, 0.5)
    ]


def test_events_beyond_the_bound_share_a_histogram() -> None:
    """Code that is reloaded with other events again and again does not fill memory or the metrics."""
    counts = PushCounts()
    for number in range(MAX_SERIES + 20):
        counts.durations_of("map", f"event{number}").observe(0.1)
    counts.durations_of("map", "event0").observe(0.1)

    found = counts.durations()
    assert len(found) == MAX_SERIES + 1
    assert found[OTHER, OTHER].count == 20
    assert found["map", "event0"].count == 2
