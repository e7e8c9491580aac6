"""The last records of the log."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tangram.console.records import KEPT, MAX_RECORD, RecordRing


def only(event: dict[str, Any]) -> dict[str, Any]:
    records = RecordRing()
    records.take(event, 5.0)
    ((_, text),) = records.after(0)
    found: dict[str, Any] = json.loads(text)
    return found


def test_a_record_keeps_its_fields() -> None:
    """Time, level, text and plugin stand apart from the other fields."""
    found = only(
        {"event": "child crashed", "level": "error", "plugin": "demo", "cause": "ValueError", "n": 1}
    )

    assert found == {
        "n": 1,
        "at": 5.0,
        "level": "error",
        "event": "child crashed",
        "logger": "",
        "plugin": "demo",
        "fields": {"cause": "ValueError", "n": 1},
    }


@pytest.mark.parametrize(
    "value",
    [object(), b"\xff", {1: {2: 3}}, {("a",): 1}, float("nan"), 2**80, "\udcff", "x" * 5000, [["y"] * 900]],
)
def test_a_record_of_any_value_is_kept_within_the_bound(value: object) -> None:
    """A plugin may log anything: the record is JSON of a bounded size."""
    records = RecordRing()
    records.take({"event": "odd", "value": value, "more": "z" * 3000, "last": 1}, 0.0)
    ((_, text),) = records.after(0)

    assert json.loads(text)["event"] == "odd"
    assert len(text) <= MAX_RECORD


def test_only_the_last_records_are_kept() -> None:
    """A reader asks for those after the last that it has."""
    records = RecordRing()
    for number in range(KEPT + 10):
        records.take({"event": "x" * 5000, "n": number}, 0.0)

    assert [number for number, _ in records.after(KEPT + 7)] == [KEPT + 8, KEPT + 9, KEPT + 10]
    assert len(records.after(0)) == KEPT
    assert records.size <= KEPT * MAX_RECORD
