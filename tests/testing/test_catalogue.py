"""Each fault by name, on fakes and on a real broker; those that need more are struck by `test_docs`."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tangram import BackendState, Plugin
from tangram.testing import FAULTS, Chaos, InvariantBroken, open_tangram
from tangram.testing.catalogue import Fault
from tests.app.helpers import Journal, make_plugin

ON_FAKES = sorted(name for name, one in FAULTS.items() if one.on in {"anything", "sockets"})
QUICK = [pytest.param(name, marks=pytest.mark.slow) if name == "plugin_flood" else name for name in ON_FAKES]
"""On fakes; of these one sends so much that it is slow."""
SHORT = {"supervisor": {"stop_timeout": 0.2, "start_timeout": 0.3, "root_restarts": 10}}
"""Times that a test can wait for."""


@pytest.mark.parametrize("name", QUICK)
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


def make_quick_plugin() -> Plugin:
    """One whose start and stop have short limits."""
    plugin = Plugin()
    plugin.name = "quick"

    @plugin.register_service(start_timeout=0.2, stop_timeout=0.2)
    async def wait(state: BackendState) -> None:
        await trio.sleep_forever()

    return plugin


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_FAKES)
async def test_a_real_server_heals_from_real_faults(name: str) -> None:
    """A server with a real broker and real time heals from each fault as it is promised."""
    async with open_tangram([make_quick_plugin()], SHORT) as running:
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


async def test_a_fault_that_does_not_end_as_promised_is_told(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a fault finds is told by its name, whatever exception it was and however deep in groups."""

    async def unkept(_chaos: Chaos) -> None:
        raise ExceptionGroup("nursery", [ExceptionGroup("nursery", [AssertionError("a message was lost")])])

    async def slow(_chaos: Chaos) -> None:
        raise trio.TooSlowError

    async def hurt(_chaos: Chaos) -> None:
        raise ConnectionResetError("gone")

    async with open_tangram(fakes=True) as running:
        for strike, told in [(unkept, "a message was lost"), (slow, "too long"), (hurt, "gone")]:
            monkeypatch.setitem(FAULTS, "bad", Fault("bad", strike, None, ""))
            with pytest.raises(InvariantBroken, match=f"ends_as_promised: bad: .*{told}"):
                await Chaos(running).strike("bad")


async def test_a_fault_after_which_it_takes_long_to_rest_is_told(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is at rest only after more than the longest back-off and a start breaks an invariant."""

    async def lasting(chaos: Chaos) -> None:
        until = trio.current_time() + 20.0
        missing = chaos.tangram.missing

        def late() -> list[str]:
            return [*missing(), *([] if trio.current_time() > until else ["somebody"])]

        monkeypatch.setattr(chaos.tangram, "missing", late)

    monkeypatch.setitem(FAULTS, "lasting", Fault("lasting", lasting, None, ""))
    async with open_tangram(fakes=True) as running:
        with pytest.raises(InvariantBroken, match="steady_in_time: after lasting"):
            await Chaos(running).strike("lasting")
