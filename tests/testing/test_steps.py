"""Something is done at every step, and the server heals: of the core and of each example plugin."""

from __future__ import annotations

import socket
from collections import Counter
from functools import partial
from typing import Any

import pytest
import trio

import tangram
from tangram.bus import reconnect
from tangram.plugins.registry import LoadedPlugins
from tangram.testing.faults.steps import (
    KINDS,
    StepFailed,
    StepFault,
    every_step,
    run_every_step,
    serve_and_restart,
)
from tangram.testing.injection.io_faults import OPERATIONS
from tangram.testing.run.server import RunningTangram

JOBS = 2
"""Processes for the runs: as many as the machines of CI have cores."""

ROUTES = {
    "tangram_example_commands": ("from:system:my-plugin-command", []),
    "tangram_example_endpoint": ("", ["/my-plugin/"]),
    "tangram_example_periodic": ("", []),
    "tangram_example_publish": ("", []),
    "tangram_demo": ("from:demo:command", ["/demo/info", "/demo/history", "/demo/history/cpu"]),
}
"""What each example listens to, and what it answers."""


async def visit(name: str, running: RunningTangram) -> None:
    """Use an example: what it listens to, what it answers, a second of its services; and restart."""
    channel, paths = ROUTES[name]
    tree = running.server.tree
    assert tree is not None
    if channel and tree.incarnation.bus is not None:
        await tree.incarnation.bus.publish(channel, "{}")
    for path in paths:
        answer = await running.http.get(path)
        assert answer.status_code == 200, answer.text
    await trio.sleep(1.1)
    await serve_and_restart(running)


async def fail(_running: object) -> None:
    raise ValueError("mine")


async def stay(_running: object) -> None:
    """No browser is connected meanwhile."""
    await trio.sleep(0.1)


def make_mortal(lives: int) -> tangram.Plugin:
    """A plugin that has so many lives in each server, and raises in the start of all that come after."""
    plugin = tangram.Plugin()
    begun: Counter[trio.lowlevel.TrioToken] = Counter()

    @plugin.register_service()
    async def live(state: tangram.BackendState, *, task_status: trio.TaskStatus[None]) -> None:
        begun[trio.lowlevel.current_trio_token()] += 1
        await trio.lowlevel.checkpoint()
        if begun[trio.lowlevel.current_trio_token()] > lives:
            raise ValueError("no device any more")
        task_status.started()
        while True:  # noqa: ASYNC110 - something to strike at
            await trio.sleep(0.01)

    return plugin


@pytest.mark.slow
def test_the_same_seed_counts_the_same_steps() -> None:
    """A scenario has the same steps each time it is run from one seed."""
    counts = {run_every_step(kinds=()).steps for _ in range(3)}

    assert len(counts) == 1
    assert counts.pop() > 300


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_core_survives_at_every_step(kind: StepFault) -> None:
    """Boot, serve, restart and stop, with one thing done at one step, for every step: the server heals, or
    ends with its cause where it was booting, and every invariant holds."""
    report = run_every_step(kinds=[kind], jobs=JOBS)

    # Of operations there are fewer than of steps, and a browser is not connected all the time.
    wanted = 3 if kind in {*OPERATIONS, "reset"} else report.steps / 2
    assert report.runs[kind] > wanted, str(report)
    healed = report.outcomes[f"{kind}: up"] + report.outcomes[f"{kind}: stopped"]
    assert healed > report.runs[kind] / 2, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ROUTES))
def test_each_example_survives_at_every_step(name: str) -> None:
    """The same at every step of each example plugin: its lifespan, its services, its handlers."""
    report = run_every_step(partial(visit, name), plugins=[name], scope=f"plugin:{name}", jobs=JOBS)

    assert report.steps > 10, str(report)
    # Two of them have no step at which a browser is connected.
    assert set(KINDS) - report.runs.keys() <= {"reset"}, str(report)


@pytest.mark.slow
def test_a_step_can_be_struck_alone() -> None:
    """``step`` strikes there and nowhere else."""
    report = run_every_step(kinds=["stop"], step=400)

    assert report.runs == {"stop": 1}


@pytest.mark.slow
def test_a_handler_that_awaits_belongs_to_its_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps at which a handler of the plugin is on its way in the web's task are within its scope."""
    router = tangram.APIRouter(prefix="/waits")

    @router.get("/")
    async def wait() -> dict[str, int]:
        for _ in range(7):
            await trio.lowlevel.checkpoint()
        return {}

    async def scenario(running: RunningTangram) -> None:
        answer = await running.http.get("/waits/")
        assert answer.status_code == 200, answer.text

    plugin = tangram.Plugin(routers=[router])
    steps = []
    for mine in ("", __file__):
        monkeypatch.setattr(
            LoadedPlugins, "owner_of", lambda _loaded, name, mine=mine: "plugin" if name == mine else None
        )
        steps.append(run_every_step(scenario, plugins=[plugin], scope="plugin:plugin", kinds=()).steps)

    assert steps[1] - steps[0] == 7


def test_what_cannot_be_handed_to_another_process_is_told() -> None:
    """With ``jobs`` a scenario has to be one that can be imported."""

    async def scenario(running: object) -> None: ...

    with pytest.raises(ValueError, match="use jobs=1"):
        run_every_step(scenario, jobs=2)


@pytest.mark.slow
def test_what_fails_in_another_process_is_raised_here() -> None:
    """A worker's failure comes with its message."""
    with pytest.raises(StepFailed, match=r"nothing was struck.*ValueError: mine"):
        run_every_step(fail, jobs=2)


@pytest.mark.slow
async def test_a_service_that_leaves_something_behind_when_cancelled_is_found() -> None:
    """A plugin that closes its socket only where nothing goes wrong is found, with kind and invariant."""
    plugin = tangram.Plugin()
    kept = []

    @plugin.register_service()
    async def careless(state: tangram.BackendState) -> None:
        kept.append(socket.socket())
        await trio.sleep_forever()
        kept.pop().close()

    try:
        with pytest.raises(StepFailed, match=r"nothing_left_alive: . more descriptors"):
            await every_step(plugins=[plugin], kinds=["stop"], stride=60)
    finally:
        for one in kept:
            one.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPERATIONS)
def test_a_bus_that_a_lost_connection_crashes_is_found(
    kind: StepFault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bus that knows no lost connection heals as from a crash, and is told for that it crashed at all."""
    monkeypatch.setattr(reconnect, "LOST", ())

    with pytest.raises(StepFailed, match=f"{kind} at step .*a lost connection crashed bus"):
        run_every_step(kinds=[kind], most=20)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"scope": "plugin:nobody"}, "no step is in scope 'plugin:nobody'"),
        ({"kinds": ["stop"], "step": 99_999}, "stop found nothing to strike at step 99999"),
        ({"kinds": ["reset"], "scenario": stay}, "nothing could be struck by reset in [0-9]+ steps"),
        (
            {"kinds": ["stop", "kill"], "stride": 10**9},
            "struck by stop or kill in .* stride=1000000000: expected",
        ),
    ],
)
def test_a_test_that_strikes_nothing_is_red(settings: dict[str, Any], told: str) -> None:
    """Who is struck nowhere has survived nothing."""
    with pytest.raises(StepFailed, match=told):
        run_every_step(**settings)


def test_a_kind_that_there_is_not_is_told_with_those_that_there_are() -> None:
    """A misspelt kind is no kind that passes."""
    with pytest.raises(ValueError, match="no kind 'cancle': expected some of cancel, crash"):
        run_every_step(kinds=["cancle"])  # type: ignore[list-item]


async def test_a_scenario_that_fails_by_itself_is_told_as_such() -> None:
    """What fails without anything being done is not blamed on a step."""

    async def scenario(running: object) -> None:
        raise ValueError("mine")

    with pytest.raises(StepFailed, match=r"nothing was struck.*ValueError: mine"):
        await every_step(scenario)


MINE: dict[str, Any] = {"scope": "plugin:plugin", "most": 4}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["crash", "kill"])
def test_a_plugin_that_never_comes_back_is_found(kind: StepFault) -> None:
    """By its own crash, or by the broker's end: to be at rest in quarantine is not to be up again."""
    told = rf"{kind} at step .*'plugin:plugin' ran and did not come back: ValueError: no device any more"
    with pytest.raises(StepFailed, match=told):
        run_every_step(stay, plugins=[make_mortal(1)], kinds=[kind], **MINE)


def test_a_plugin_that_never_comes_up_is_found() -> None:
    """Nothing of it could be struck."""
    told = r"nothing was struck.*'plugin:plugin' does not start: ValueError: no device any more"
    with pytest.raises(StepFailed, match=told):
        run_every_step(plugins=[make_mortal(0)], kinds=["stop"], most=1)


@pytest.mark.slow
def test_a_plugin_that_is_struck_in_its_own_start_may_be_left_out() -> None:
    """Of the first boot, and of a restart that somebody asked for: one start is all that it has there."""
    report = run_every_step(plugins=[make_mortal(9)], kinds=["cancel"], scope="plugin:plugin")

    assert report.outcomes["cancel: quarantined"] > 3, str(report)
    assert report.outcomes["cancel: up"] > 3, str(report)


@pytest.mark.slow
def test_a_scenario_that_puts_a_plugin_into_quarantine_is_played_on() -> None:
    """What ends there with nothing done to it may end there with something done to it, too."""

    async def wear_out(running: RunningTangram) -> None:
        if "plugin:plugin" in running.ports.names:
            running.crash("plugin:plugin")
            await running.wait_event("quarantined", "plugin:plugin", seconds=60.0)

    settings: dict[str, Any] = {"kinds": ["drop"], "config": {"supervisor": {"plugin_restarts": 0}}}
    report = run_every_step(wear_out, plugins=[make_mortal(9)], most=5, **settings)

    assert report.outcomes["drop: quarantined"] > 0, str(report)
    last = run_every_step(wear_out, plugins=[make_mortal(9)], step=report.steps // 2, **settings)
    assert last.runs == {"drop": 1}
