"""Each invariant finds its own breakage, and holds for a healthy run."""

from __future__ import annotations

from typing import Any

import pytest

from tangram.channels import disconnects
from tangram.supervision import SupervisionEvent
from tangram.testing import INVARIANTS, Evidence, InvariantBroken, KeptMessage, check
from tangram.testing.checks.invariants import DOCUMENTED_CODES, broken


def event(kind: str, child: str | None, incarnation: int = 1, **more: Any) -> SupervisionEvent:
    supervisor = more.pop("supervisor", "incarnation")
    path = more.pop("path", ("incarnation",) if child is None else ("incarnation", child))
    return SupervisionEvent(kind, supervisor, child, 0.0, incarnation, path=path, **more)  # type: ignore[arg-type]


UP = [event("started", name) for name in ("bus", "channels", "web")]
DOWN = [event("stopped", name) for name in ("web", "channels", "bus")]
CRASH = event("crashed", "bus", cause="ValueError: x")

PLANTED: dict[str, list[Evidence]] = {
    "nothing_left_alive": [Evidence(left={"threads": ["a ghost"]}), Evidence(broker_clients=1)],
    "stops_within_bound": [Evidence(stop_seconds=11.5, stop_bound=10.0)],
    "nobody_is_stubborn": [
        Evidence(events=[event("stubborn", "web", where="x.py:1")]),
        Evidence(events=[event("stubborn", "web", where="x.py:1")], stubborn_allowed={"bus"}),
        Evidence(stubborn=["web, at x.py:1 in run"]),
    ],
    "ends_with_its_status": [
        Evidence(status=70, events=[*UP, *DOWN]),
        Evidence(status=1, events=[event("ready", None, path=()), CRASH]),
        Evidence(status=0, events=[event("gave_up", None, path=(), cause="x")]),
    ],
    "starts_in_order": [Evidence(events=[*UP, *DOWN, UP[1], UP[0]])],
    "stops_in_reverse_order": [
        Evidence(events=[*UP, *reversed(DOWN)], stopped_at=3),
        Evidence(events=[*UP, *reversed(DOWN), *UP, *DOWN], stopped_at=9),
        Evidence(events=[*UP, *reversed(DOWN)], out_of_turn={"web"}),
    ],
    "no_two_incarnations": [Evidence(events=[*UP, event("started", "web", 2)]), Evidence(overlaps=["web"])],
    "healthy_siblings_untouched": [
        Evidence(events=[*UP, event("crashed", "web", cause="x"), DOWN[2]], strategy="rest_for_one"),
        Evidence(events=[*UP, CRASH, DOWN[0]], strategy="one_for_one"),
    ],
    "faults_are_counted": [Evidence(faults=1, crashes=2), Evidence(faults=1, crashes=0)],
    "no_connection_refused": [Evidence(refused=1)],
    "messages_in_order": [
        Evidence(messages=[(1, 1), (3, 1)]),
        Evidence(messages=[(2, 1), (1, 1)]),
        Evidence(messages=[(1, 1), (1, 2)]),
    ],
    "nothing_missed": [
        Evidence(kept={"t": [KeptMessage(1, 1, 0), KeptMessage(3, 1, 0)]}),
        Evidence(kept={"t": [KeptMessage(1, 1, 0), KeptMessage(3, 2, 0)]}),
        Evidence(kept={"t": [KeptMessage(2, 1, 0), KeptMessage(2, 1, 0)]}),
        Evidence(kept={"t": [KeptMessage(2, 1, 0), KeptMessage(1, 1, 0)]}),
    ],
    "close_codes_documented": [Evidence(close_codes=[1000]), Evidence(close_codes=[1006])],
    "each_crash_logged_once": [
        Evidence(events=[CRASH], logs=[{"event": "something else"}]),
        Evidence(events=[CRASH], logs=[]),
        Evidence(logs=[{"event": "child crashed", "child": "bus"}]),
    ],
    "memory_per_slow_client": [Evidence(backlogs=[0, 300_000, 5], backlog_bound=262_144)],
    "steady_in_time": [Evidence(healed={"crash_bus": 31.0})],
    "ends_as_promised": [Evidence(unkept=["broker_stop: a message was lost"])],
    "no_secret_in_logs": [
        Evidence(logs=[{"event": "x", "headers": {"a": ["s3cret"]}}], secrets=["s3cret"]),
        Evidence(logs=[{"event": r"the password is s3\cr\et"}], secrets=[r"s3\cr\et"]),
        Evidence(logs=[{"error": ValueError(repr(r"s3\cr'et"))}], secrets=[r"s3\cr'et"]),
    ],
    "comes_to_rest": [
        Evidence(steady=False),
        Evidence(events=[event("crashed", "bus", cause=None)]),
        Evidence(heard=False),
    ],
}


@pytest.mark.parametrize("name", INVARIANTS)
def test_each_invariant_finds_its_breakage(name: str) -> None:
    """Evidence of the breakage breaks the invariant."""
    for evidence in PLANTED[name]:
        with pytest.raises(InvariantBroken, match=name):
            check(evidence, [name])


def test_a_healthy_run_breaks_nothing() -> None:
    """A start, a crash with a restart of all, and a stop in order break no invariant."""
    again = [event("started", name, 2) for name in ("bus", "channels", "web")]
    events = [*UP, CRASH, DOWN[0], DOWN[1], *again, event("ready", None), *DOWN]
    log = {"event": "child crashed", "supervisor": "incarnation", "child": "bus"}
    evidence = Evidence(
        events=events,
        stopped_at=len(events) - 3,
        logs=[log | {"incarnation": 1, "cause": "ValueError: x"}],
        secrets=["s3cret"],
        left={},
        stop_seconds=0.1,
        faults=1,
        crashes=1,
        refused=0,
        messages=[(1, 1), (2, 1), (5, 2)],
        close_codes=[1012],
        steady=True,
        heard=True,
        status=0,
        backlogs=[0, 1000],
        healed={"crash_bus": 0.1},
    )

    assert broken(evidence) == []


def test_a_broker_crash_may_stop_the_whole_incarnation() -> None:
    """The root's strategy may stop children that the incarnation's strategy would not."""
    killed = event("crashed", "broker", supervisor="root", cause="x")
    evidence = Evidence(events=[*UP, killed, *DOWN], strategy="one_for_one")

    assert broken(evidence, ["healthy_siblings_untouched"]) == []


def test_a_requested_restart_may_stop_its_child() -> None:
    """A planned restart of one child may stop that child, and no other."""
    planned = [*UP, event("planned", "web"), event("stopped", "web"), event("started", "web", 2)]

    assert broken(Evidence(events=planned, strategy="one_for_one"), ["healthy_siblings_untouched"]) == []
    astray = Evidence(events=[*planned, event("stopped", "channels")], strategy="one_for_one")
    assert broken(astray, ["healthy_siblings_untouched"])


def test_restarts_of_two_children_may_overlap() -> None:
    """Under one_for_one each has a delay of its own; elsewhere the order holds."""
    crashed = [event("crashed", name, cause="x") for name in ("bus", "channels")]
    events = [*UP, *crashed, event("started", "channels", 2), event("started", "bus", 2)]

    assert broken(Evidence(events=events, strategy="one_for_one"), ["starts_in_order"]) == []
    assert broken(Evidence(events=events, strategy="rest_for_one"), ["starts_in_order"])


def test_a_child_that_did_not_start_in_time_may_be_stopped() -> None:
    """Its own crash explains its stop, but no stop of a sibling."""
    late = [*UP, event("crashed", "web", cause="StartTimeout: x"), event("stopped", "web")]

    assert broken(Evidence(events=late, strategy="one_for_one"), ["healthy_siblings_untouched"]) == []
    astray = Evidence(events=[*late, event("stopped", "channels")], strategy="one_for_one")
    assert broken(astray, ["healthy_siblings_untouched"])


def test_each_code_of_the_servers_own_table_is_documented() -> None:
    """The server's table and the invariant's table agree, and 1000 is in neither."""
    table = {one.code for one in vars(disconnects).values() if isinstance(one, disconnects.Disconnect)}
    engines = {1002, 1007, 1009}

    assert table | engines == DOCUMENTED_CODES
    assert 1000 not in DOCUMENTED_CODES


def test_a_late_or_cancelled_child_has_no_turn_in_a_stop() -> None:
    """A child that ignored its cancellation, or that a test cancels, may end at any time."""
    early = [*UP, DOWN[0], DOWN[2], DOWN[1]]

    assert broken(Evidence(events=early), ["stops_in_reverse_order"])
    assert broken(Evidence(events=early, out_of_turn={"channels"}), ["stops_in_reverse_order"]) == []
    late = [*UP, DOWN[0], event("stubborn", "channels", where="x"), DOWN[2], DOWN[1]]
    assert broken(Evidence(events=late), ["stops_in_reverse_order"]) == []


def test_a_child_that_returned_before_its_start_has_its_place_in_the_next_life() -> None:
    """Until then the supervisor does without it; a child that is started again at once comes last."""
    over = event("stopped", None)
    returned = event("stopped", "bus", cause="returned before its start")
    without = [returned, UP[1], UP[2], DOWN[0], DOWN[1], over]
    check(Evidence(events=[*without, *UP, *DOWN, over]))
    check(Evidence(events=[returned, UP[1], UP[2], UP[0], DOWN[2], DOWN[0], DOWN[1], over]))
    with pytest.raises(InvariantBroken, match="bus of incarnation was started after a later child"):
        check(Evidence(events=[*UP, over, *without, *UP, DOWN[2], event("planned", None), UP[1], UP[0]]))


def test_a_failed_requested_restart_stops_the_others_in_order() -> None:
    """The requested stop is over when the failed start stops the others."""
    failed = [
        event("planned", "channels"),
        event("stopped", "channels"),
        event("crashed", "channels", 2, cause="x"),
    ]

    assert broken(Evidence(events=[*UP, *failed, DOWN[0], DOWN[2]]), ["stops_in_reverse_order"]) == []
    assert broken(Evidence(events=[*UP, *failed, DOWN[2], DOWN[0]]), ["stops_in_reverse_order"])


def test_a_child_that_cannot_end_explains_the_status() -> None:
    """A gave_up event with a child is the cause of an exit status."""
    ready, held = (
        event("ready", None, path=()),
        event("gave_up", "deaf", path=("incarnation", "p", "deaf"), cause="x"),
    )

    assert broken(Evidence(status=70, events=[ready, held]), ["ends_with_its_status"]) == []
    assert broken(Evidence(status=0, events=[ready, held]), ["ends_with_its_status"])
