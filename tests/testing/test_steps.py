"""Something is done at every step, and the server heals: of the core and of each example plugin."""

from __future__ import annotations

import socket
from functools import partial
from typing import Any

import pytest
import trio

import tangram
from tangram.bus import keeper
from tangram.plugins.registry import Loaded
from tangram.testing.seams import SEAMS
from tangram.testing.server import RunningTangram
from tangram.testing.steps import KINDS, Blow, StepFailed, every_step, run_every_step, serve_and_restart

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
    if channel and tree.bus is not None:
        await tree.bus.publish(channel, "{}")
    for path in paths:
        answer = await running.http.get(path)
        assert answer.status_code == 200, answer.text
    await trio.sleep(1.1)
    await serve_and_restart(running)


async def fail(_running: object) -> None:
    raise ValueError("mine")


@pytest.mark.slow
def test_the_same_seed_counts_the_same_steps() -> None:
    """A scenario has the same steps each time it is run from one seed."""
    counts = {run_every_step(kinds=()).steps for _ in range(3)}

    assert len(counts) == 1
    assert counts.pop() > 300


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_core_survives_at_every_step(kind: Blow) -> None:
    """Boot, serve, restart and stop, with one thing done at one step, for every step: the server heals, or
    ends with its cause where it was booting, and every invariant holds."""
    report = run_every_step(kinds=[kind], jobs=JOBS)

    # Of operations there are fewer than of steps, and a browser is not connected all the time.
    wanted = 3 if kind in {*SEAMS, "reset"} else report.steps / 2
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
            Loaded, "owner_of", lambda _loaded, name, mine=mine: "plugin" if name == mine else None
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
@pytest.mark.parametrize("kind", SEAMS)
def test_a_bus_that_a_lost_connection_crashes_is_found(kind: Blow, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bus that knows no lost connection heals as from a crash, and is told for that it crashed at all."""
    monkeypatch.setattr(keeper, "LOST", ())

    with pytest.raises(StepFailed, match=f"{kind} at step .*a lost connection crashed bus"):
        run_every_step(kinds=[kind], most=20)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"scope": "plugin:nobody"}, "no step is in scope 'plugin:nobody'"),
        ({"kinds": ["stop"], "step": 99_999}, "stop found nothing to strike at step 99999"),
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
