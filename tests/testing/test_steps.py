"""Something is done at every step, and the server heals: of the core and of each example plugin."""

from __future__ import annotations

import socket

import pytest
import trio

import tangram
from tangram.testing.steps import KINDS, Blow, StepFailed, every_step, run_every_step

EXAMPLES = [
    "tangram_example_commands",
    "tangram_example_endpoint",
    "tangram_example_periodic",
    "tangram_example_publish",
    "tangram_demo",
]


def test_the_same_seed_counts_the_same_steps() -> None:
    """A scenario has the same steps each time it is run from one seed."""
    counts = {run_every_step(kinds=()).steps for _ in range(3)}

    assert len(counts) == 1
    assert counts.pop() > 300


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_the_core_survives_at_every_step(kind: Blow) -> None:
    """Boot, serve, restart and stop, with one thing done at one step: the server heals, or ends with its
    cause where it was booting, and every invariant holds."""
    report = await every_step(kinds=[kind], most=20)

    assert report.runs[kind] > 12, str(report)
    healed = report.outcomes[f"{kind}: up"] + report.outcomes[f"{kind}: stopped"]
    assert healed > report.runs[kind] / 2, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
async def test_each_example_survives_at_every_step(name: str) -> None:
    """The same with an example plugin beside it."""
    report = await every_step(plugins=[name], most=3, seed=EXAMPLES.index(name))

    assert report.runs.keys() == set(KINDS), str(report)


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


async def test_a_scenario_that_fails_by_itself_is_told_as_such() -> None:
    """What fails without anything being done is not blamed on a step."""

    async def scenario(running: object) -> None:
        raise ValueError("mine")

    with pytest.raises(StepFailed, match=r"nothing was struck.*ValueError: mine"):
        await every_step(scenario)
