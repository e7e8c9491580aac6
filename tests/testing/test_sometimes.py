"""Sometimes assertions report conditions that a set of runs never reached."""

from __future__ import annotations

from tangram.supervision import SupervisionEvent
from tangram.testing import collecting, sometimes
from tangram.testing.checks.sometimes import SUPERVISION, observe


def test_an_unreached_condition_is_reported() -> None:
    """A condition that held once is reached; one that never held is listed."""
    with collecting() as reached:
        for number in range(3):
            sometimes("two", number == 2)
            sometimes("nine", number == 9)

    assert reached.never == ["nine"]
    assert reached.counts["two"] == 1
    assert "nine  never" in str(reached)


def test_nothing_is_kept_outside_of_collecting() -> None:
    """A call costs nothing and still returns the condition."""
    assert sometimes("by itself", condition=True)
    with collecting() as reached:
        pass

    assert reached.counts == {}


def test_an_expected_name_is_reported_without_a_call() -> None:
    """A name that no run asked for was never reached."""
    with collecting() as reached:
        reached.expect(SUPERVISION)

    assert set(reached.never) == set(SUPERVISION)


def test_events_show_strategy_back_off_and_escalation() -> None:
    """The events of one run show its strategy, its step of the back-off and its escalation."""
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


def test_nested_sets_of_runs_are_separate() -> None:
    """The end of the inner one ends that one only."""
    with collecting() as outer:
        with collecting() as inner:
            sometimes("both")
        sometimes("the outer alone")

    assert inner.counts == {"both": 1}
    assert outer.counts == {"both": 1, "the outer alone": 1}
