"""The pace at which a server that ends closes its WebSockets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.http.closing import (
    CLOSE_EACH,
    CLOSE_PAUSE,
    CLOSE_SHARE,
    MOST_AWAY,
    MOVE_EACH,
    REST_SHARE,
    ClosePace,
)

GRACE = 5.0


@pytest.mark.parametrize(("each", "batch"), [(CLOSE_EACH, 50), (MOVE_EACH, 10)])
@pytest.mark.parametrize("left", [1, 120, 1400])
def test_batches_go_with_the_seconds_for_each(each: float, batch: int, left: int) -> None:
    """As many are closed before each pause as that pause is worth."""
    assert ClosePace(each, GRACE, 10.0).next_batch(left, 0, 10.0) == min(batch, left)


def test_the_next_batch_waits_for_members_that_are_away() -> None:
    """With as many away as may be, none is closed, until the share of the grace is over."""
    pace = ClosePace(MOVE_EACH, GRACE, 10.0)

    assert pace.next_batch(500, MOST_AWAY - 1, 10.5) == 10
    assert pace.next_batch(500, MOST_AWAY, 10.5) == 0
    assert pace.next_batch(500, MOST_AWAY, 10.0 + GRACE * CLOSE_SHARE) > 0


@given(st.integers(1, 100_000), st.sampled_from([CLOSE_EACH, MOVE_EACH]), st.booleans(), st.floats(0.0, 60.0))
def test_all_are_closed_within_the_grace(left: int, each: float, stuck: bool, grace: float) -> None:
    """However many there are, and if none of them comes back, the handshakes have time left."""
    pace, now = ClosePace(each, grace, 0.0), 0.0
    while left > 0:
        left -= pace.next_batch(left, MOST_AWAY if stuck else 0, now)
        now += CLOSE_PAUSE

    assert now <= grace * (CLOSE_SHARE + REST_SHARE) + 2 * CLOSE_PAUSE
