"""Faults at every step of the core and of each example plugin: the server heals."""

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

JOBS = {"tangram_demo": 2, "tangram_example_commands": 2}
"""Processes for the runs of the two longest tests.

CI has two cores, and a process costs a second by itself.
"""

ROUTES = {
    "tangram_example_commands": ("from:system:my-plugin-command", []),
    "tangram_example_endpoint": ("", ["/my-plugin/"]),
    "tangram_example_periodic": ("", []),
    "tangram_example_publish": ("", []),
    "tangram_demo": ("from:demo:command", ["/demo/info", "/demo/history", "/demo/history/cpu"]),
}
"""A route of each example, and its answer."""


async def visit(name: str, running: RunningTangram) -> None:
    """Use an example: its route, a second of its services, and a restart."""
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
    """Play a scenario without a connected browser."""
    await trio.sleep(0.1)


def make_mortal(lives: int) -> tangram.Plugin:
    """Make a plugin that runs some times in each server, and raises in each later start."""
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
    """A scenario has the same steps in each run of one seed."""
    counts = {run_every_step(kinds=()).steps for _ in range(3)}

    assert len(counts) == 1
    assert counts.pop() > 300


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_core_survives_at_every_step(kind: StepFault) -> None:
    """The server heals from a fault at any step, or ends with its cause in a first boot."""
    report = run_every_step(kinds=[kind])

    # Of operations there are fewer than of steps, and a browser is not connected all the time.
    wanted = 3 if kind in {*OPERATIONS, "reset"} else report.steps / 2
    assert report.runs[kind] > wanted, str(report)
    healed = report.outcomes[f"{kind}: up"] + report.outcomes[f"{kind}: stopped"]
    assert healed > report.runs[kind] / 2, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ROUTES))
def test_each_example_survives_at_every_step(name: str) -> None:
    """The same holds for the lifespan, services and handlers of each example."""
    report = run_every_step(
        partial(visit, name), plugins=[name], scope=f"plugin:{name}", jobs=JOBS.get(name, 1)
    )

    assert report.steps > 10, str(report)
    # Two of them have no step at which a browser is connected.
    assert set(KINDS) - report.runs.keys() <= {"reset"}, str(report)


@pytest.mark.slow
def test_a_fault_at_one_step_strikes_nowhere_else() -> None:
    """``step`` chooses the only step."""
    report = run_every_step(kinds=["stop"], step=400)

    assert report.runs == {"stop": 1}


@pytest.mark.slow
def test_a_handler_that_awaits_belongs_to_its_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of the web's task inside a handler of the plugin are in its scope."""
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


def test_a_call_that_cannot_be_pickled_is_an_error() -> None:
    """With ``jobs`` a scenario must be importable."""

    async def scenario(running: object) -> None: ...

    with pytest.raises(ValueError, match="use jobs=1"):
        run_every_step(scenario, jobs=2)


@pytest.mark.slow
def test_a_failure_in_a_worker_is_raised_here() -> None:
    """The message of the worker's failure is kept."""
    with pytest.raises(StepFailed, match=r"nothing was struck.*ValueError: mine"):
        run_every_step(fail, jobs=2)


@pytest.mark.slow
async def test_a_service_that_leaks_when_cancelled_is_found() -> None:
    """A plugin that closes its socket only on success is reported with kind and invariant."""
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
    """A bus that crashes on a lost connection heals, and the crash itself is reported."""
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
def test_a_run_without_a_target_fails(settings: dict[str, Any], told: str) -> None:
    """A plugin that was struck nowhere has proved nothing."""
    with pytest.raises(StepFailed, match=told):
        run_every_step(**settings)


def test_an_unknown_kind_is_an_error_with_the_known_ones() -> None:
    """A misspelt kind does not pass."""
    with pytest.raises(ValueError, match="no kind 'cancle': expected some of cancel, crash"):
        run_every_step(kinds=["cancle"])  # type: ignore[list-item]


async def test_a_scenario_that_fails_without_a_fault_is_reported() -> None:
    """No step is blamed for it."""

    async def scenario(running: object) -> None:
        raise ValueError("mine")

    with pytest.raises(StepFailed, match=r"nothing was struck.*ValueError: mine"):
        await every_step(scenario)


MINE: dict[str, Any] = {"scope": "plugin:plugin", "most": 4}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["crash", "kill"])
def test_a_plugin_that_never_comes_back_is_found(kind: StepFault) -> None:
    """A plugin in quarantine after a crash, or after the broker's end, is not up again."""
    told = rf"{kind} at step .*'plugin:plugin' ran and did not come back: ValueError: no device any more"
    with pytest.raises(StepFailed, match=told):
        run_every_step(stay, plugins=[make_mortal(1)], kinds=[kind], **MINE)


def test_a_plugin_that_never_comes_up_is_found() -> None:
    """None of its steps could be struck."""
    told = r"nothing was struck.*'plugin:plugin' does not start: ValueError: no device any more"
    with pytest.raises(StepFailed, match=told):
        run_every_step(plugins=[make_mortal(0)], kinds=["stop"], most=1)


@pytest.mark.slow
def test_a_plugin_struck_in_its_only_start_may_be_left_out() -> None:
    """In a first boot or a requested restart it has only one start."""
    report = run_every_step(plugins=[make_mortal(9)], kinds=["cancel"], scope="plugin:plugin")

    assert report.outcomes["cancel: quarantined"] > 3, str(report)
    assert report.outcomes["cancel: up"] > 3, str(report)


@pytest.mark.slow
def test_a_scenario_that_quarantines_a_plugin_goes_on() -> None:
    """A plugin that ends there without a fault may end there with one."""

    async def wear_out(running: RunningTangram) -> None:
        if "plugin:plugin" in running.ports.names:
            running.crash("plugin:plugin")
            await running.wait_event("quarantined", "plugin:plugin", seconds=60.0)

    settings: dict[str, Any] = {"kinds": ["drop"], "config": {"supervisor": {"plugin_restarts": 0}}}
    report = run_every_step(wear_out, plugins=[make_mortal(9)], most=5, **settings)

    assert report.outcomes["drop: quarantined"] > 0, str(report)
    last = run_every_step(wear_out, plugins=[make_mortal(9)], step=report.steps // 2, **settings)
    assert last.runs == {"drop": 1}
