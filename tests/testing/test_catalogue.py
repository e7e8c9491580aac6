"""Each fault by name: on fakes all of them, on a real broker those that need one."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from tangram.testing import FAULTS, Chaos, InvariantBroken, open_tangram
from tangram.testing.catalogue import Fault
from tests.app.helpers import Journal, make_plugin

REAL_TIME = {"loop_blocked"}


@pytest.mark.parametrize("name", sorted(FAULTS.keys() - REAL_TIME))
async def test_the_server_heals_from_each_fault(autojump_clock: MockClock, name: str) -> None:
    """After each fault everything is up again, and the fault counts as the crash that it should count as."""
    async with open_tangram([make_plugin(Journal())], fakes=True) as running:
        struck = await Chaos(running).strike(name)
        answer = await running.http.get("/probe/value")

        assert struck.outcome == "up"
        assert answer.json()["value"] == 42


@pytest.mark.parametrize(
    "names",
    [("broker_kill", "crash_plugin"), ("crash_bus", "browser_reset"), ("crash_web", "crash_channels")],
)
async def test_the_server_heals_from_two_faults_at_once(
    autojump_clock: MockClock, names: tuple[str, str]
) -> None:
    """Two faults at once are healed like one."""
    config = {"supervisor": {"root_restarts": 10}}
    async with open_tangram([make_plugin(Journal())], config, fakes=True) as running:
        chaos = Chaos(running)
        async with chaos.striking(names[0]):
            await chaos.strike(names[1])

        assert [struck.outcome for struck in chaos.struck] == ["up", "up"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["broker_kill", "broker_stop", "loop_blocked", "crash_in_cleanup"])
async def test_a_real_server_heals_from_real_faults(name: str) -> None:
    """A server with a real broker heals from faults that need one, or real time."""
    async with open_tangram([make_plugin(Journal())]) as running:
        struck = await Chaos(running).strike(name)

        assert struck.outcome == "up"


async def test_a_fault_that_crashes_somebody_else_is_told(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault that should crash nobody and crashes the web breaks an invariant, which names both."""

    async def wrong(chaos: Chaos) -> None:
        mark = len(chaos.tangram.events)
        chaos.tangram.crash("web")
        await chaos.tangram.wait_event("crashed", "web", after=mark)

    monkeypatch.setitem(FAULTS, "wrong", Fault("wrong", wrong, None, ""))
    async with open_tangram(fakes=True) as running:
        with pytest.raises(InvariantBroken, match=r"wrong should crash nobody, it crashed \['web'\]"):
            await Chaos(running).strike("wrong")
