from __future__ import annotations

import pytest

from tangram.bus.gathering import GATHER_MAX, WINDOW, Gathering

COSTLY = 0.01
"""CPU seconds of a delivery for which the longest pause is right."""


def gathering(channels: list[bytes], rate: float) -> Gathering:
    """Count a tenth of a second of messages, ``rate`` a second in all, on channels in turn."""
    made = Gathering()
    for number in range(int(rate / 10)):
        made.count([(channels[number % len(channels)], b"x")], number / rate)
    return made


@pytest.mark.parametrize(("rate", "pause"), [(20, 0.0), (500, 0.0), (1000, GATHER_MAX), (20_000, GATHER_MAX)])
def test_a_pause_needs_several_messages_within_it(rate: float, pause: float) -> None:
    """Below 750 a second on one channel no delivery is followed by a pause."""
    assert gathering([b"to:a:b"], rate).pause(COSTLY) == pause


def test_many_channels_with_single_messages_do_not_wait() -> None:
    """Messages of 5,000 clients with a channel each save no writes; one busy channel among them does."""
    topics = [b"to:%d:x" % number for number in range(5000)]
    assert gathering(topics, 20_000).pause(COSTLY) == 0.0
    busy = [name for topic in topics for name in (topic, b"to:busy:x")]
    assert gathering(busy, 20_000).pause(COSTLY) == GATHER_MAX


def test_the_pause_follows_the_cost_of_a_delivery() -> None:
    """A cheap delivery has no pause, a costly one ten times its cost, at most 4 ms."""
    made = gathering([b"to:a:b"], 2000)

    assert [made.pause(cost) for cost in (0.00009, 0.0002, 0.1)] == [0.0, 0.002, GATHER_MAX]


def test_a_message_after_a_quiet_moment_ends_the_pauses() -> None:
    """A rate of the past counts until the next message, which comes after the window."""
    made = gathering([b"to:a:b"], 2000)
    made.count([(b"to:a:b", b"x")], 10.0)
    assert not made.pays
    # A burst is counted within one window.
    made.count([(b"to:a:b", b"x")] * 50, 10.0 + WINDOW / 2)
    made.count([(b"to:a:b", b"x")], 10.0 + WINDOW)

    assert made.pays
