"""The decisions about workers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.workers.rules import ABSENT, LEAVE_SECONDS, Names, Rolling, pause_before_accept, worker_count


@pytest.mark.parametrize(("wanted", "cores", "count"), [(1, 8, 1), (3, 2, 3), ("auto", 8, 8), ("auto", 0, 1)])
def test_auto_is_one_worker_for_each_core(wanted: int, cores: int, count: int) -> None:
    """A number is taken as it is."""
    assert worker_count(wanted, cores) == count


def test_each_process_has_a_name_of_its_own() -> None:
    """The first one in a place is called by its number."""
    names = Names()

    assert [names.next_name(place) for place in (1, 2, 1, 1, 2)] == ["1", "2", "1-2", "1-3", "2-2"]


@pytest.mark.parametrize(
    ("mine", "others", "waits"),
    [
        (1000, [], False),
        (1000, [ABSENT, ABSENT], False),
        (4, [0], False),
        (9, [0], True),
        (9, [0, ABSENT], True),
        (105, [100], False),
        (120, [100], True),
        (100, [120], False),
        (30, [10, 50], False),
    ],
)
def test_a_worker_above_the_mean_leaves_a_connection_to_the_others(
    mine: int, others: list[int], waits: bool
) -> None:
    """Processes that do not accept are not counted, and a few connections are no imbalance."""
    assert pause_before_accept(mine, others) == (LEAVE_SECONDS if waits else 0.0)


@given(counts=st.lists(st.integers(0, 10000), min_size=2, max_size=8))
def test_the_worker_with_the_fewest_connections_never_waits(counts: list[int]) -> None:
    """A connection is always taken at once by one of them."""
    fewest = min(range(len(counts)), key=counts.__getitem__)
    others = counts[:fewest] + counts[fewest + 1 :]

    assert pause_before_accept(counts[fewest], others) == 0.0


@given(
    places=st.lists(st.integers(1, 9), unique=True), results=st.lists(st.booleans(), min_size=20, max_size=20)
)
def test_a_rolling_restart_ends_with_one_configuration(places: list[int], results: list[bool]) -> None:
    """All places have the new one, or all but those that did not take the old one back."""
    rolling = Rolling(places)
    has_new = dict.fromkeys(places, False)
    steps = []
    for succeeds in results:
        if (step := rolling.step) is None:
            break
        steps.append(step)
        assert has_new[step.place] is step.back
        if succeeds:
            has_new[step.place] = not step.back
            rolling.done()
        else:
            rolling.failed("no")

    assert rolling.step is None
    assert [step.place for step in steps if not step.back] == places[: len([s for s in steps if not s.back])]
    if rolling.cause is None:
        assert all(has_new.values())
    else:
        assert {place for place, new in has_new.items() if new} == set(rolling.kept_new)
