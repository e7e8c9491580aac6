"""The rules of one lease: answers that come late, lost, or in another order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tangram.cluster.lease import Lease, LeaseState
from tangram.cluster.library import LeaseRow, TakeAnswer


def values() -> Iterator[str]:
    return (f"a:{number}" for number in count())


@pytest.fixture
def lease() -> Lease:
    """A lease that node ``a`` waits for."""
    made = Lease("globe", "a", 6.0, values().__next__)
    made.want()
    return made


def taken(token: int) -> TakeAnswer:
    return TakeAnswer(token, "", 6.0, "s")


def test_the_deadline_counts_from_the_time_of_sending(lease: Lease) -> None:
    """An answer that waited for two seconds gives two seconds less: 0.9 * 6 - 1.8 from the start."""
    assert lease.take_answered(10.0, 12.0, taken(1), lease.value) == ""
    assert lease.deadline == pytest.approx(13.6)
    assert not lease.renewal_answered(12.5, 13.5, LeaseRow(True, lease.value, 6.0), lease.value)
    assert lease.deadline == pytest.approx(16.1)


def test_an_answer_behind_the_deadline_does_not_bring_the_lease_back(lease: Lease) -> None:
    """The plugin is stopping already, and another node may start it."""
    lease.take_answered(10.0, 10.0, taken(1), lease.value)
    lease.renewal_answered(12.0, 13.61, LeaseRow(True, lease.value, 6.0), lease.value)

    assert lease.state is LeaseState.LOST
    assert lease.stop_by == pytest.approx(13.6 + 1.8)


def test_a_late_answer_to_an_earlier_take_releases_nothing(lease: Lease) -> None:
    """Two takes of one value were sent; the answer of the first comes behind its own deadline."""
    value = lease.value
    lease.take_answered(14.0, 14.0, taken(2), value)

    assert lease.take_answered(10.0, 15.0, taken(1), value) == ""
    assert lease.held
    assert lease.token == 2
    assert lease.deadline == pytest.approx(17.6)


def test_a_late_answer_does_not_release_a_plugin_that_has_still_to_end(lease: Lease) -> None:
    """The lease keeps others away until it expires."""
    value = lease.value
    lease.take_answered(10.0, 10.0, taken(1), value)

    assert lease.take_answered(10.1, 13.7, taken(2), value) == ""
    assert lease.state is LeaseState.LOST
    assert lease.take_answered(10.2, 14.0, taken(3), value) == ""
    lease.ended()
    assert lease.take_answered(10.2, 14.0, taken(3), value) == value


def test_a_take_that_was_answered_too_late_is_released(lease: Lease) -> None:
    """The plugin does not begin, and the next take has another value."""
    value = lease.value

    assert lease.take_answered(10.0, 13.61, taken(1), value) == value
    assert lease.state is LeaseState.STANDBY
    assert lease.value != value


def test_a_lease_of_another_holder_is_lost_at_once(lease: Lease) -> None:
    """The other holder is known from the answer."""
    lease.take_answered(10.0, 10.0, taken(1), lease.value)
    lease.renewal_answered(11.0, 11.1, LeaseRow(False, "b:1", 5.0), lease.value)

    assert lease.state is LeaseState.LOST
    assert lease.holder == "b"


def test_a_lease_that_redis_has_lost_is_taken_again_and_left_by_others(lease: Lease) -> None:
    """The holder asks for it within its deadline; a node that waits leaves it for one ttl."""
    lease.take_answered(10.0, 10.0, taken(1), lease.value)
    assert lease.renewal_answered(11.0, 11.1, LeaseRow(False, "", 0.0), lease.value)
    other = Lease("globe", "b", 6.0, values().__next__)
    other.want()
    other.distrust(11.0)
    assert other.take_at(0.0) == pytest.approx(17.0)
    other.heard(12.0, {"what": "released", "lease": "globe", "by": "a:1", "to": ""})
    assert other.take_at(0.0) == pytest.approx(12.0)


def test_a_node_that_was_told_to_give_a_lease_away_does_not_take_it_back(lease: Lease) -> None:
    """It leaves it to the others for three seconds; the released value is its own."""
    value = lease.value
    lease.take_answered(10.0, 10.0, taken(1), value)

    assert lease.give_up(11.0, shun=True) == value
    lease.want()
    assert lease.take_at(0.0) == pytest.approx(14.0)
    assert lease.value != value
