"""Histograms and their quantiles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.metrics.histogram import Histogram


def test_a_value_on_a_bound_belongs_below_it() -> None:
    """Prometheus' ``le`` includes the bound."""
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)

    assert histogram.values().counts == (2, 2, 1)
    assert histogram.values().total == 7.5


@given(st.lists(st.floats(0, 10), min_size=1), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    """The estimate is at most one bucket away from the exact quantile."""
    bounds = (1.0, 2.0, 4.0, 8.0, 16.0)
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    exact = sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]
    estimate = histogram.values().quantile(share)
    upper = next(bound for bound in bounds if exact <= bound)

    assert estimate is not None
    assert upper / 2 - 1 <= estimate <= upper


def test_there_is_no_quantile_of_nothing() -> None:
    """Without observations there is no value, not 0."""
    assert Histogram((1.0,)).values().quantile(0.5) is None


def test_beyond_the_last_bound_the_estimate_is_that_bound() -> None:
    """As in Prometheus."""
    histogram = Histogram((1.0, 2.0))
    histogram.observe(50.0)

    assert histogram.values().quantile(0.99) == pytest.approx(2.0)


def test_the_difference_of_two_moments() -> None:
    """Only the later observations are in it."""
    histogram = Histogram((1.0,))
    histogram.observe(0.5)
    earlier = histogram.values()
    histogram.observe(3.0, 4)

    new = histogram.values().since(earlier)

    assert (new.counts, new.total, new.count) == ((0, 4), 12.0, 4)
