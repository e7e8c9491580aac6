"""Sometimes assertions tell what a set of runs never reached."""

from __future__ import annotations

from tangram.supervision import SupervisionEvent
from tangram.testing import collecting, sometimes
from tangram.testing.checks.sometimes import SUPERVISION, observe


def test_what_no_run_reached_is_told() -> None:
    """A condition that held once is reached; one that never held is told by its name."""
    with collecting() as reached:
        for number in range(3):
            sometimes("two", number == 2)
            sometimes("nine", number == 9)

    assert reached.never == ["nine"]
    assert reached.counts["two"] == 1
    assert "nine  never" in str(reached)


def test_outside_of_a_set_of_runs_nothing_is_kept() -> None:
    """A line in a test costs nothing where nobody collects, and still answers."""
    assert sometimes("by itself", condition=True)
    with collecting() as reached:
        pass

    assert reached.counts == {}


def test_what_is_expected_is_told_although_no_line_asked() -> None:
    """Where no run even comes to the line, the name is never reached."""
    with collecting() as reached:
        reached.expect(SUPERVISION)

    assert set(reached.never) == set(SUPERVISION)


def test_events_tell_strategy_back_off_and_escalation() -> None:
    """The record of one run shows which strategy, which step of the back-off and what escalation it had."""
    at = ("incarnation", "plugin:x")
    events = [
        SupervisionEvent("crashed", "incarnation", "plugin:x", 1.0, cause="x", path=at),
        SupervisionEvent(
            "restarting", "incarnation", "plugin:x", 1.0, strategy="rest_for_one", delay=0.19, path=at
        ),
        SupervisionEvent("crashed", "incarnation", "plugin:x", 1.1, cause="x", path=at),
        SupervisionEvent("quarantined", "incarnation", "plugin:x", 1.1, cause="x", path=at),
        SupervisionEvent("gave_up", "root", None, 2.0, cause="x"),
    ]
    with collecting() as reached:
        reached.expect(SUPERVISION)
        observe(events)

    got = set(SUPERVISION) - set(reached.never)
    assert got == {
        "event: crashed",
        "event: restarting",
        "event: quarantined",
        "event: gave_up",
        "strategy: rest_for_one",
        "back-off: 0.2 s",
        "escalation: a plugin into quarantine",
        "escalation: the root gave up",
        "a crash while a restart was going on",
    }


def test_sets_of_runs_within_each_other_are_two_although_they_reached_the_same() -> None:
    """The end of the inner one ends that one alone."""
    with collecting() as outer:
        with collecting() as inner:
            sometimes("both")
        sometimes("the outer alone")

    assert inner.counts == {"both": 1}
    assert outer.counts == {"both": 1, "the outer alone": 1}
