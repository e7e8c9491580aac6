"""Counters over several incarnations."""

from __future__ import annotations

import attrs

from tangram.metrics.carried import Carried


@attrs.define(eq=False)
class Part:
    count: int
    open: bool = False


def test_counters_do_not_fall_when_a_part_is_replaced() -> None:
    """An ended part keeps its count, and one that still works goes on counting."""
    carried: Carried[Part] = Carried(lambda part: {"n": part.count}, lambda part: not part.open)
    first, second = Part(5, open=True), Part(1)
    carried.add(first)
    carried.end(first)
    carried.add(second)

    assert carried.totals()["n"] == 6
    first.count = 7  # a connection of it was closed late
    assert carried.totals()["n"] == 8
    first.open = False
    assert carried.totals()["n"] == 8
    first.count = 100  # it is over, and forgotten
    assert carried.totals()["n"] == 8
    assert carried.totals((second, {"n": 2}))["n"] == 9


def test_a_count_of_zero_and_a_late_key_are_kept() -> None:
    """Keys come and go with the parts."""
    carried: Carried[Part] = Carried(lambda part: {("closed", part.count): 1})
    for count in (1, 1, 2):
        part = Part(count)
        carried.add(part)
        carried.end(part)

    assert carried.totals() == {("closed", 1): 2, ("closed", 2): 1}
