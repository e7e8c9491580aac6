"""Each fault by name, on fakes and on a real broker; `test_docs` covers the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn

import pytest
import trio
from trio.testing import MockClock

from tangram import BackendState, Plugin
from tangram.redis_url import parse_redis_url
from tangram.testing import FAULTS, Chaos, InvariantBroken, RunningTangram, open_broker, open_tangram
from tangram.testing.faults.catalogue import InjectableFault
from tangram.testing.injection.child_faults import Charge, NothingToStrike, StruckAlready
from tests.app.helpers import Journal, make_plugin

ON_FAKES = sorted(name for name, one in FAULTS.items() if one.on in {"anything", "sockets"})
QUICK = [pytest.param(name, marks=pytest.mark.slow) if name == "plugin_flood" else name for name in ON_FAKES]
"""Faults on fakes; the ones that send much are marked slow."""
SHORT = {"supervisor": {"stop_timeout": 2.0, "start_timeout": 3.0, "root_restarts": 10}}
"""Timeouts that a test can wait for, and that processes can keep."""


@pytest.mark.parametrize("name", QUICK)
async def test_the_server_heals_from_each_fault(autojump_clock: MockClock, name: str) -> None:
    """After each fault everything is up, and the fault counts as the right crash."""
    async with open_tangram([make_plugin(Journal())], fakes=True) as running:
        struck = await Chaos(running).strike(name)
        answer = await running.http.get("/probe/value")

        assert struck.outcome == "up"
        assert answer.json()["value"] == 42


STRATEGIES = ("one_for_all", "rest_for_one", "one_for_one")
PAIRS = [
    ("broker_kill", "crash_plugin"),
    ("crash_bus", "browser_reset"),
    ("crash_bus", "slow_browser"),
    ("crash_web", "crash_channels"),
    ("crash_plugin", "crash_plugin"),
    ("redis_latency", "crash_web"),
    ("redis_reset", "redis_latency"),
]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("names", PAIRS)
async def test_the_server_heals_from_two_faults_at_once(
    autojump_clock: MockClock, names: tuple[str, str], strategy: str
) -> None:
    """Each of two simultaneous faults counts, the second perhaps in the next incarnation."""
    config = {"supervisor": {"root_restarts": 10, "strategy": strategy}}
    async with open_tangram([make_plugin(Journal())], config, fakes=True) as running:
        struck = await Chaos(running).strike(*names)

        assert struck.outcome == "up"


async def test_faults_strike_beside_a_test(autojump_clock: MockClock) -> None:
    """A test may inject a fault while those of its block go on."""
    config = {"supervisor": {"root_restarts": 10}}
    async with open_tangram([make_plugin(Journal())], config, fakes=True) as running:
        chaos = Chaos(running)
        async with chaos.striking("crash_bus"):
            await chaos.strike("browser_reset")

        assert [struck.outcome for struck in chaos.struck] == ["up", "up"]


async def test_two_faults_overlap(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """They begin in the order of their names, and the second before the end of the first."""
    log: list[str] = []

    def lasting(name: str) -> Callable[[Chaos], Awaitable[None]]:
        async def strike(chaos: Chaos) -> None:
            log.append(f"{name} begins{' alone' if chaos.alone else ''}")
            await trio.sleep(1.0)
            log.append(f"{name} ends")

        return strike

    for name in ("first", "second"):
        monkeypatch.setitem(FAULTS, name, InjectableFault(name, lasting(name), None, ""))
    async with open_tangram(fakes=True) as running:
        for _ in range(5):
            log.clear()
            await Chaos(running).strike("first", "second")

            assert log[:2] == ["first begins", "second begins"]
            assert len(log) == 4


async def test_two_simultaneous_faults_are_counted_together(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An additional crash breaks an invariant, whose message names both faults."""

    async def wrong(chaos: Chaos) -> None:
        await FAULTS["crash_channels"].strike(chaos)

    monkeypatch.setitem(FAULTS, "wrong", InjectableFault("wrong", wrong, None, ""))
    config = {"supervisor": {"strategy": "one_for_one"}}
    async with open_tangram(config=config, fakes=True) as running:
        with pytest.raises(InvariantBroken, match=r"crash_web \+ wrong should crash \['web'\], it crashed"):
            await Chaos(running).strike("crash_web", "wrong")


async def test_both_of_two_simultaneous_faults_are_reported(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first broken promise does not hide the second."""

    async def unkept(_chaos: Chaos) -> None:
        raise AssertionError("a message was lost")

    for name in ("one", "other"):
        monkeypatch.setitem(FAULTS, name, InjectableFault(name, unkept, None, ""))
    async with open_tangram(fakes=True) as running:
        with pytest.raises(InvariantBroken, match=r"one: a message was lost; .*other: a message was lost"):
            await Chaos(running).strike("one", "other")


def make_quick_plugin() -> Plugin:
    """Make a plugin with short limits for start and stop."""
    plugin = Plugin()
    plugin.name = "quick"

    @plugin.register_service(start_timeout=1.0, stop_timeout=1.0)
    async def wait(state: BackendState) -> None:
        await trio.sleep_forever()

    return plugin


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_FAKES)
async def test_a_real_server_heals_from_real_faults(name: str) -> None:
    """A server with a real broker in real time heals from each fault."""
    async with open_tangram([make_quick_plugin()], SHORT) as running:
        struck = await Chaos(running).strike(name)

        assert struck.outcome == "up"


async def test_a_crash_of_the_wrong_child_breaks_an_invariant(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault that must crash no child and crashes the web is reported with both names."""

    async def wrong(chaos: Chaos) -> None:
        mark = len(chaos.tangram.events)
        chaos.tangram.crash("web")
        await chaos.tangram.wait_event("crashed", "web", after=mark)

    monkeypatch.setitem(FAULTS, "wrong", InjectableFault("wrong", wrong, None, ""))
    async with open_tangram(fakes=True) as running:
        with pytest.raises(InvariantBroken, match=r"wrong should crash no child, it crashed \['web'\]"):
            await Chaos(running).strike("wrong")


async def test_an_exception_of_a_fault_breaks_its_promise(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any exception is reported with the fault's name, also out of nested groups."""

    async def unkept(_chaos: Chaos) -> None:
        raise ExceptionGroup("nursery", [ExceptionGroup("nursery", [AssertionError("a message was lost")])])

    async def slow(_chaos: Chaos) -> None:
        raise trio.TooSlowError

    async def hurt(_chaos: Chaos) -> None:
        raise ConnectionResetError("gone")

    async with open_tangram(fakes=True) as running:
        for strike, told in [(unkept, "a message was lost"), (slow, "too long"), (hurt, "gone")]:
            monkeypatch.setitem(FAULTS, "bad", InjectableFault("bad", strike, None, ""))
            with pytest.raises(InvariantBroken, match=f"ends_as_promised: bad: .*{told}"):
                await Chaos(running).strike("bad")


async def test_a_slow_recovery_breaks_an_invariant(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that needs longer than its longest back-off and a start is reported."""

    async def lasting(chaos: Chaos) -> None:
        until = trio.current_time() + 20.0
        missing = chaos.tangram.missing

        def late() -> list[str]:
            return [*missing(), *([] if trio.current_time() > until else ["somebody"])]

        monkeypatch.setattr(chaos.tangram, "missing", late)

    monkeypatch.setitem(FAULTS, "lasting", InjectableFault("lasting", lasting, None, ""))
    async with open_tangram(fakes=True) as running:
        with pytest.raises(InvariantBroken, match="steady_in_time: after lasting"):
            await Chaos(running).strike("lasting")


async def test_a_fault_that_waits_for_healing_is_bounded(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bus that is back late is reported, also where the fault itself waits for it."""
    back = trio.current_time() + 20.0
    monkeypatch.setattr(Chaos, "_bus_is_up", lambda _chaos: trio.current_time() > back)

    async def waiting(chaos: Chaos) -> None:
        await chaos.wait_bus()

    monkeypatch.setitem(FAULTS, "waiting", InjectableFault("waiting", waiting, None, ""))
    async with open_tangram(fakes=True) as running:
        with pytest.raises(InvariantBroken, match="waiting: the bus should be up within 11 s"):
            await Chaos(running).strike("waiting")


async def test_a_key_error_is_not_taken_for_a_missing_target(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ``KeyError`` breaks the fault; only NothingToStrike means that it has no target."""

    async def buggy(_chaos: Chaos) -> None:
        raise KeyError("status")

    async def idle(_chaos: Chaos) -> None:
        raise NothingToStrike("nobody is there")

    monkeypatch.setitem(FAULTS, "buggy", InjectableFault("buggy", buggy, None, ""))
    monkeypatch.setitem(FAULTS, "idle", InjectableFault("idle", idle, None, ""))
    async with open_tangram(fakes=True) as running:
        with pytest.raises(InvariantBroken, match="ends_as_promised: buggy: KeyError"):
            await Chaos(running).strike("buggy")
        with pytest.raises(NothingToStrike, match="nobody is there"):
            await Chaos(running).strike("idle")


async def test_a_crashing_child_is_struck_in_its_next_incarnation(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that is being crashed is struck when it runs again, and both crashes count."""

    async def twice(chaos: Chaos) -> None:
        mark = len(chaos.tangram.events)
        chaos.tangram.crash("web")
        with pytest.raises(StruckAlready):
            chaos.tangram.crash("web")
        await chaos.wait_crash("web", after=mark)

    monkeypatch.setitem(FAULTS, "twice", InjectableFault("twice", twice, "web", ""))
    async with open_tangram(fakes=True) as running:
        await Chaos(running).strike("twice", "crash_web")

        assert len([event for event in running.events if event.kind == "crashed"]) == 2


async def test_a_missing_target_is_reported_at_once(autojump_clock: MockClock) -> None:
    """An unknown child, and any plugin of a server without plugins, have no port."""
    async with open_tangram(fakes=True) as running:
        began = trio.current_time()
        with pytest.raises(NothingToStrike, match="no child 'nobody' runs"):
            running.crash("nobody")
        with pytest.raises(NothingToStrike, match="no plugin is running"):
            await Chaos(running).strike("crash_plugin")

        assert trio.current_time() == began


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ["crash_in_cleanup", "crash_at_start", "stop_late", "two_at_once"])
async def test_a_fault_of_a_plugin_strikes_under_each_strategy(
    autojump_clock: MockClock, strategy: str, name: str
) -> None:
    """The fault leaves no charge behind."""
    config = {"supervisor": {"strategy": strategy}}
    async with open_tangram([make_plugin(Journal())], config, fakes=True) as running:
        chaos = Chaos(running)
        await chaos.strike(name)
        mark = len(running.events)
        await chaos.strike("planned_restart")

        assert not [event.cause for event in running.events[mark:] if "raised" in (event.cause or "")]
        assert not [event for event in running.events[mark:] if event.kind == "stubborn"]


async def test_an_unused_charge_is_removed(autojump_clock: MockClock) -> None:
    """A charge in a child is removed when the fault is over."""
    async with open_tangram(fakes=True) as running:
        ports = running.ports
        charges: list[tuple[Charge, Callable[[], None]]] = [
            ("cleanup", lambda: ports.break_cleanup("channels")),
            ("start", lambda: ports.break_start("channels")),
            ("ready", lambda: ports.hang_start("channels")),
            ("cancel", lambda: ports.ignore_cancel("channels", 60.0)),
        ]
        for charge, put_in in charges:
            with ports.disarming(charge, "channels"):
                put_in()
        await running.server.restart()

        assert await running.wait_steady(seconds=1.0) == "up"
        assert not [one for one in running.events if one.kind in {"crashed", "stubborn"}]
        assert not [one for one in running.events if "raised" in (one.cause or "")]


async def test_a_cancelled_freeze_thaws_the_broker(autojump_clock: MockClock) -> None:
    """A fault that is cancelled in the middle leaves a broker that answers."""
    async with open_tangram(fakes=True) as running:
        tree = running.server.tree
        assert tree is not None
        assert tree.incarnation.bus is not None
        with trio.move_on_after(0.5) as cut:
            await Chaos(running).strike("broker_stop")
        await tree.incarnation.bus.publish("to:x:y", b"{}", timeout=0.5)

        assert cut.cancelled_caught


@pytest.mark.parametrize(
    "name", ["web_latency", "web_narrow", "web_sliced", "web_reset", "web_half_close", "web_black_hole"]
)
async def test_a_fault_of_the_network_dials_no_stranger(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With a web port in memory, no fault connects to the port in the URL."""

    async def dialled(*_args: object) -> NoReturn:
        raise AssertionError("somebody dialled")

    monkeypatch.setattr(trio, "open_tcp_stream", dialled)
    async with open_tangram(fakes=True, memory_port=True) as running:
        with pytest.raises(NothingToStrike, match="the web port is in memory"):
            await Chaos(running).strike(name)


async def test_a_browser_with_a_small_buffer_dials_no_stranger(autojump_clock: MockClock) -> None:
    """The same holds for a fault that needs a real socket."""
    async with open_tangram(fakes=True, memory_port=True) as running:
        with pytest.raises(NothingToStrike, match="the web port is in memory"):
            await Chaos(running).strike("browser_never_reads")


async def test_two_faults_may_be_one_crash_and_a_late_end(autojump_clock: MockClock) -> None:
    """A plugin with many services ends after the channels, whose crash has it stopped."""
    plugin = Plugin()
    for number in range(6):

        async def wait(state: BackendState) -> None:
            await trio.sleep_forever()

        wait.__name__ = f"wait_{number}"
        plugin.register_service()(wait)
    async with open_tangram([plugin], fakes=True) as running:
        chaos = Chaos(running)
        for _ in range(2):
            assert (await chaos.strike("two_at_once")).outcome == "up"


PARTS = [
    "redis://:p%40ss@127.0.0.1:{port}",
    "redis://me:p:w@127.0.0.1:{port}/2",
    "redis://127.0.0.1:{port}/?db=1",
]
"""Parts of a URL beside host and port."""


@pytest.mark.parametrize("url", PARTS)
async def test_a_fault_before_redis_accepts_every_url(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """The proxy uses host and port and ignores the other parts."""
    async with open_tangram(fakes=True) as running:
        port = parse_redis_url(running.redis_url).port
        monkeypatch.setattr(RunningTangram, "redis_url", url.format(port=port))
        struck = await Chaos(running).strike("redis_reset")

    assert struck.outcome == "up"


@pytest.mark.parametrize("url", ["unix:///run/valkey.sock", "rediss://127.0.0.1:6380"])
async def test_a_redis_that_no_proxy_can_reach_has_no_target(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """A Unix socket has no network, and TLS does not accept a proxy."""
    async with open_tangram(fakes=True) as running:
        monkeypatch.setattr(RunningTangram, "redis_url", url)
        chaos = Chaos(running)
        with pytest.raises(NothingToStrike, match=r"redis is reached (through a unix socket|by TLS)"):
            await chaos.strike("redis_reset")

        assert not chaos.detoured


@pytest.mark.slow
async def test_a_fault_before_a_redis_with_a_password_and_a_database() -> None:
    """A real Redis asks for both through the proxy."""
    with open_broker(password="p@ss/w:rd") as broker:
        config = {"core": {"redis_url": f"{broker.url}/3"}}
        async with open_tangram([make_quick_plugin()], {**SHORT, **config}) as running:
            assert (await Chaos(running).strike("redis_reset")).outcome == "up"
