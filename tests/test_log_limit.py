"""One log line a minute for each kind of event and each source."""

from __future__ import annotations

from tangram.log_limit import INTERVAL, PER_KIND, LogLimit


def test_a_kind_and_source_is_logged_once_a_minute() -> None:
    """The first event is logged at once, the next one a minute later."""
    limit = LogLimit()
    asked = [0.0, 1.0, 59.9, 60.0, 61.0, 120.0]

    assert [now for now in asked if limit.allows("flood", "10.0.0.1", now)] == [0.0, 60.0, 120.0]


def test_kinds_and_sources_do_not_hide_each_other() -> None:
    """Another source, and another kind of the same source, have lines of their own."""
    limit = LogLimit()
    events = [("flood", "10.0.0.1"), ("flood", "10.0.0.2"), ("malformed", "10.0.0.1")]

    assert all(limit.allows(kind, source, 5.0) for kind, source in events)
    assert not any(limit.allows(kind, source, 6.0) for kind, source in events)


def test_many_sources_cannot_fill_the_log() -> None:
    """A kind has a bounded number of lines a minute, and leaves those of other kinds alone."""
    limit = LogLimit()

    assert sum(limit.allows("flood", f"10.0.0.{n}", n / 100) for n in range(1000)) == PER_KIND
    assert limit.allows("malformed", "10.0.0.1", 10.0)
    assert sum(limit.allows("flood", f"10.0.0.{n}", INTERVAL + 10) for n in range(1000)) == PER_KIND


def test_memory_is_bounded() -> None:
    """A source whose line is older than the interval is forgotten."""
    limit = LogLimit()
    for n in range(10_000):
        limit.allows("flood", str(n), n * 10.0)

    assert len(limit._logged) <= INTERVAL / 10
    assert sum(limit._lines.values()) == len(limit._logged)
