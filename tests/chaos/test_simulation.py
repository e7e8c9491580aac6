"""Scripts of faults drawn from seeds hold, replay, and are shortened where they fail."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import MutableMapping
from typing import Any, NoReturn

import attrs
import pytest
import structlog
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tangram import client
from tangram.channels.disconnects import RESTART
from tangram.channels.hub import Hub
from tangram.channels.outbox import Outbox
from tangram.chaos import observers
from tangram.chaos.observers import KEPT, recover_and_restart
from tangram.chaos.simulation import (
    SIMULATED,
    main,
    play,
    script_from,
    script_of,
    simulate,
    simulate_many,
    written,
)
from tangram.errors import Refused
from tangram.gateway.channels import Channels
from tangram.supervision import SupervisionEvent
from tangram.testing import FAULTS, Chaos, InvariantBroken, StepFailed, run_every_step
from tangram.testing.faults.catalogue import InjectableFault
from tangram.testing.run.workers import cores
from tests.app.helpers import Journal, make_plugin

SEEDS = 500


@pytest.mark.slow
def test_five_hundred_seeds_hold_and_reach_everything() -> None:
    """No script breaks an invariant, and together they reach every ability of supervision."""
    outcome = simulate_many(range(SEEDS), jobs=cores())

    assert not outcome.failed, "\n".join(outcome.failed.values())
    assert not outcome.reached.never, str(outcome.reached)


def told(events: list[SupervisionEvent]) -> list[tuple[object, ...]]:
    return [(one.kind, one.path, one.incarnation, one.at, one.delay, one.cause) for one in events]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 4, 7])
def test_a_seed_gives_the_same_record_again(seed: int) -> None:
    """The same seed gives the same events at the same times."""
    runs = [told(simulate(seed, plugins=[make_plugin(Journal())])) for _ in range(2)]

    assert runs[0] == runs[1]
    assert len(runs[0]) > 10


@pytest.mark.slow
def test_a_seed_gives_the_same_record_in_another_process() -> None:
    """This holds although strings have other hashes there."""
    code = (
        "from tangram.testing.checks.log_records import quiet\n"
        "from tangram.chaos.simulation import simulate, _plugin\n"
        "with quiet(): events = simulate(0, plugins=[_plugin()])\n"
        "print([(e.kind, e.path, e.at, e.delay) for e in events])"
    )
    texts = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]

    assert texts[0] == texts[1]
    assert "crashed" in texts[0]


def test_a_seed_stands_for_one_script() -> None:
    """A script depends on its seed alone, and can be written and parsed."""
    scripts = [script_of(seed) for seed in range(40)]

    assert scripts == [script_of(seed) for seed in range(40)]
    assert len(set(scripts)) > 35
    assert [script_from(written(script)) for script in scripts] == scripts


@pytest.mark.parametrize("text", ["0.1", "x crash_bus", "-1 crash_bus", "0.1 crash_buss", "0.1 crash_bus+no"])
def test_an_invalid_script_is_an_error_with_its_step(text: str) -> None:
    """The message has the invalid step."""
    with pytest.raises(ValueError, match="is no step of a script") as caught:
        script_from(f"0.5 crash_web, {text}")

    assert repr(text) in str(caught.value)


@pytest.mark.slow
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.floats(0, 3), st.sampled_from(["crash_bus", "crash_plugin", "broker_kill", "planned_restart"])
        ),
        max_size=4,
    )
)
def test_any_script_holds(script: list[tuple[float, str]]) -> None:
    """Invariants hold for all scripts; hypothesis shrinks a failure."""
    play(tuple(script), plugins=[make_plugin(Journal())])


@pytest.mark.slow
def test_a_failing_script_is_shortened(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of six steps the one that shows a planted mistake is left, in the notation of --script."""
    careless = attrs.evolve(FAULTS["broker_kill"], counts=None)
    monkeypatch.setitem(FAULTS, "broker_kill", careless)
    script = "0.1 crash_web, 0.2 planned_restart, 0.1 browser_reset, 0.3 broker_kill, 0.1 crash_plugin"

    assert main(["--script", script, "--shrink"]) == 1
    assert "--script '0.3 broker_kill'" in capsys.readouterr().err


GAP = (Hub, "interrupted", lambda _hub: None)
NO_BOUND = (Outbox, "_widen", lambda _outbox, _size: True)
CLOSES_1000 = (Channels, "close_reason", RESTART._replace(code=1000))


@pytest.mark.parametrize(
    ("planted", "script", "told"),
    [
        pytest.param(GAP, ", ".join(["0.1 crash_bus"] * 6), "messages_in_order", id="a-gap-is-not-told"),
        pytest.param(NO_BOUND, "8 crash_web", "memory_per_slow_client", id="no-bound"),
        pytest.param(CLOSES_1000, "1 crash_channels", "close_codes_documented", id="closed-with-1000"),
    ],
)
def test_an_observer_finds_a_breakage_that_no_fault_checks(
    monkeypatch: pytest.MonkeyPatch, planted: tuple[object, str, object], script: str, told: str
) -> None:
    """Broken observations fail the run, although the fault itself is healed."""
    monkeypatch.setattr(*planted)

    with pytest.raises(InvariantBroken, match=told):
        play(script_from(script), plugins=[make_plugin(Journal())], strategy="one_for_one")


QUARANTINED = ", ".join(["0.1 crash_plugin"] * 6)
"""A script that spends the plugin's budget."""


@pytest.mark.slow
def test_after_a_quarantine_nothing_is_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken promise fails the run, also after an earlier quarantine."""

    async def unkept(_chaos: Chaos) -> None:
        await trio.lowlevel.checkpoint()
        raise AssertionError("a message was lost")

    monkeypatch.setitem(FAULTS, "unkept", InjectableFault("unkept", unkept, None, ""))
    script = script_from(f"{QUARANTINED}, 0.1 unkept")
    with pytest.raises(ExceptionGroup) as caught:
        play(script, plugins=[make_plugin(Journal())], seed=1, limited=True)

    assert caught.group_contains(InvariantBroken, match="a message was lost")


@pytest.mark.slow
def test_after_a_quarantine_a_fault_may_have_no_target() -> None:
    """The plugin cannot be struck again, and the script goes on."""
    script = script_from(f"{QUARANTINED}, 0.1 crash_plugin, 0.1 crash_at_start, 0.1 crash_web")
    events = play(script, plugins=[make_plugin(Journal())], seed=1, limited=True)

    assert [one.child for one in events if one.kind == "quarantined"] == ["plugin:probe"]
    assert [one.child for one in events if one.kind == "crashed"][-1] == "web"


def test_a_server_that_gives_up_ends_a_script() -> None:
    """Faults in its end need not keep their promises."""
    script = script_from(", ".join(["0.1 crash_bus+slow_browser"] * 6))
    events = play(script, plugins=[make_plugin(Journal())], seed=1, limited=True)

    assert [one for one in events if one.kind == "gave_up" and not one.path]


def test_a_broker_that_refuses_writes_for_a_moment_does_not_end_recording() -> None:
    """Redis refuses the recorder's step, and the end of its lease: a new lease is taken later."""
    play(script_from("0.7 broker_readonly"), history=True)


@pytest.mark.slow
def test_clients_recover_at_every_step() -> None:
    """No injection at any step makes a client miss a message unnoticed."""
    config = {"channel": {"history": [{"topics": KEPT}]}}
    report = run_every_step(recover_and_restart, config=config, most=6)

    assert report.steps > 300
    assert {one.partition(": ")[2] for one in report.outcomes} >= {"up", "stopped"}


def test_a_scenario_of_recovery_needs_a_history() -> None:
    """Without one nothing would be checked."""
    with pytest.raises(StepFailed, match="no topic 'tangram-chaos-kept-"):
        run_every_step(recover_and_restart, most=1)


def test_a_simulation_without_any_message_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The observers get no token: everything is up, but serves no client."""

    async def no_token(*_args: object, **_more: object) -> NoReturn:
        await trio.lowlevel.checkpoint()
        raise Refused("nobody gets one")

    monkeypatch.setattr(client, "fetch_token", no_token)
    monkeypatch.setattr(observers, "HEARD_SECONDS", 3.0)
    with pytest.raises(InvariantBroken, match=r"comes_to_rest: .*gets no message any more"):
        play(script_from("0.1 crash_web"), plugins=[make_plugin(Journal())])


def test_a_fault_that_no_seed_strikes_is_reported() -> None:
    """The result lists the faults that struck, and those that never did."""
    never = simulate_many([10]).reached.never
    struck = {name for _, names in script_of(10) for name in names.split("+")}

    assert {f"fault: {name}" for name in SIMULATED} - set(never) == {f"fault: {name}" for name in struck}


def test_a_simulation_leaves_the_callers_log_as_it_was() -> None:
    """Its silence ends with it, and it changes nothing else."""

    def mine(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return event

    before = structlog.get_config()
    try:
        structlog.configure(processors=[mine])
        simulate_many([])

        assert structlog.get_config()["processors"] == [mine]
    finally:
        structlog.configure(**before)
