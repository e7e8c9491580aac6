from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tangram.bus.subscriber import service_nursery
from tangram.errors import PluginConfigError, PluginError, RestartsExhausted, StartFailed
from tangram.plugins.host import PluginHost
from tangram.plugins.plugin import Lifespan, Plugin, ServiceFunction
from tangram.plugins.state import BackendState
from tangram.supervision import Child
from tangram.testing import open_supervised
from tests.plugins.fakes import loaded, make_state, state_of


def host_of(
    plugin: Plugin, config: dict[str, Any] | None = None, state: BackendState | None = None, **more: Any
) -> PluginHost:
    return PluginHost(loaded(plugin), state=state_of(state or make_state()), config=config, **more)


class Record(list[str]):
    """A list of events in their order."""

    def service(self, name: str, *, stops: bool = True) -> ServiceFunction:
        async def run(state: BackendState) -> None:
            self.append(f"{name} starts")
            try:
                await trio.sleep_forever()
            finally:
                if stops:
                    self.append(f"{name} stops")

        return run

    def lifespan(self) -> Lifespan:
        @asynccontextmanager
        async def around(state: BackendState) -> AsyncIterator[None]:
            self.append("lifespan enters")
            try:
                yield
            finally:
                await trio.sleep(1)
                self.append("lifespan leaves")

        return around


async def test_the_lifespan_is_around_the_services(autojump_clock: MockClock) -> None:
    """The lifespan is entered before the services start, and left after they have stopped."""
    record = Record()
    plugin = Plugin(lifespan=record.lifespan())
    plugin.register_service(2, name="late")(record.service("late"))
    plugin.register_service(1, name="early")(record.service("early"))
    host = host_of(plugin)

    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        await trio.testing.wait_all_tasks_blocked()
        assert host.statistics().running
        nursery.cancel_scope.cancel()

    assert record == [
        "lifespan enters",
        "early starts",
        "late starts",
        "late stops",
        "early stops",
        "lifespan leaves",
    ]
    assert not host.statistics().running


async def test_start_is_reported_when_all_services_are_up(autojump_clock: MockClock) -> None:
    """A service that takes task_status delays the plugin's start until it reports."""
    plugin = Plugin()

    @plugin.register_service()
    async def slow(state: BackendState, *, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep(3)
        task_status.started()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        await nursery.start(host_of(plugin).run)
        assert trio.current_time() == pytest.approx(3)
        nursery.cancel_scope.cancel()


async def test_a_crash_carries_plugin_and_service_up(autojump_clock: MockClock) -> None:
    """A service's crash has the path of plugin and service, the cause and its line."""
    plugin = Plugin()

    @plugin.register_service(name="tick")
    async def tick(state: BackendState) -> None:
        await trio.sleep(1)
        raise ValueError("no such aircraft")

    host = host_of(plugin)
    with pytest.raises(RestartsExhausted) as caught:
        async with open_supervised([Child("plugin:demo", host.run)], restarts=0):
            await trio.sleep(5)
    assert "plugin:demo > tick: ValueError: no such aircraft" in caught.value.crashes[-1]


async def test_a_call_of_asyncio_is_explained(autojump_clock: MockClock) -> None:
    """The crash names trio's counterpart of the function, and the line that called it."""
    plugin = Plugin()

    @plugin.register_service()
    async def tick(state: BackendState) -> None:
        await trio.sleep(1)
        await asyncio.sleep(1)

    with pytest.raises(RestartsExhausted) as caught:
        async with open_supervised([Child("plugin:demo", host_of(plugin).run)], restarts=0):
            await trio.sleep(5)
    crash = caught.value.crashes[-1]
    line = tick.__code__.co_firstlineno + 3
    assert "asyncio.sleep does not work on Trio: use trio.sleep" in crash
    assert f"{__file__}:{line}" in crash


async def test_a_call_of_asyncio_in_a_lifespan_is_explained() -> None:
    """A lifespan gets the same explanation."""

    @asynccontextmanager
    async def lifespan(state: BackendState) -> AsyncIterator[None]:
        async with asyncio.timeout(2):
            yield

    with pytest.raises(PluginError, match=r"use trio\.fail_after"):
        await host_of(Plugin(lifespan=lifespan)).run()


async def test_one_crash_stops_the_siblings_and_leaves_the_lifespan(autojump_clock: MockClock) -> None:
    """The first crash ends the plugin: the other services stop, the lifespan is left."""
    record = Record()
    plugin = Plugin(lifespan=record.lifespan())
    plugin.register_service(0, name="healthy")(record.service("healthy"))

    @plugin.register_service(1)
    async def sick(state: BackendState) -> None:
        await trio.sleep(1)
        raise RuntimeError("boom")

    with pytest.raises(RestartsExhausted):
        await host_of(plugin).run()
    assert record == ["lifespan enters", "healthy starts", "healthy stops", "lifespan leaves"]


async def test_a_crash_hidden_by_the_lifespan_is_a_crash(autojump_clock: MockClock) -> None:
    """A lifespan that swallows exceptions does not turn a crash into a normal end."""

    @asynccontextmanager
    async def swallowing(state: BackendState) -> AsyncIterator[None]:
        with contextlib.suppress(Exception):
            yield

    plugin = Plugin(lifespan=swallowing)

    @plugin.register_service()
    async def sick(state: BackendState) -> None:
        await trio.sleep(1)
        raise RuntimeError("boom")

    with pytest.raises(RestartsExhausted):
        await host_of(plugin).run()


async def test_a_service_may_simply_return(autojump_clock: MockClock) -> None:
    """A transient service may return, and the plugin stays for its routes."""
    plugin = Plugin()

    @plugin.register_service()
    async def once(state: BackendState) -> None:
        await trio.lowlevel.checkpoint()

    with trio.move_on_after(10) as scope:
        await host_of(plugin).run()
    assert scope.cancelled_caught


async def test_a_permanent_service_may_not_return(autojump_clock: MockClock) -> None:
    """The return of a permanent service ends the plugin."""
    plugin = Plugin()

    @plugin.register_service(restart="permanent")
    async def once(state: BackendState) -> None:
        await trio.sleep(1)

    with trio.move_on_after(10), pytest.raises(RestartsExhausted):
        await host_of(plugin).run()
    assert trio.current_time() < 10


async def test_a_temporary_service_runs_once_per_server_start(autojump_clock: MockClock) -> None:
    """A temporary service does not start again with its plugin, and its crash is ignored."""
    runs: list[str] = []
    plugin = Plugin()

    @plugin.register_service(restart="temporary")
    async def once(state: BackendState) -> None:
        runs.append("temporary")
        raise RuntimeError("nobody cares")

    @plugin.register_service()
    async def always(state: BackendState) -> None:
        runs.append("transient")

    host = host_of(plugin)
    for _ in range(2):
        with trio.move_on_after(1) as scope:
            await host.run()
        assert scope.cancelled_caught
    assert sorted(runs) == ["temporary", "transient", "transient"]


async def test_the_configuration_is_checked_once_and_handed_over(autojump_clock: MockClock) -> None:
    """Services read the validated object from the state, by plugin, name or class."""

    @attrs.frozen
    class Settings:
        rate: float
        name: str = "x"

    plugin = Plugin(config_class=Settings)
    seen: list[Any] = []

    @plugin.register_service()
    async def look(state: BackendState) -> None:
        seen.extend(
            [state.plugin_config(plugin), state.plugin_config("Tangram.Demo"), state.plugin_config(Settings)]
        )

    with trio.move_on_after(1):
        await host_of(plugin, {"rate": 2}).run()
    assert seen == [Settings(2.0)] * 3


async def test_a_bad_configuration_names_every_fault() -> None:
    """A plugin with a wrong table does not start, and every fault is reported."""

    @attrs.frozen
    class Settings:
        rate: float
        size: int

    plugin = Plugin(config_class=Settings, lifespan=Record().lifespan())
    with pytest.raises(PluginConfigError) as caught:
        await host_of(plugin, {"rate": "fast"}).run()
    assert {fault.path for fault in caught.value.faults} == {
        "plugins.tangram_demo.rate",
        "plugins.tangram_demo.size",
    }


async def test_a_lifespan_that_fails_keeps_its_exception() -> None:
    """An exception while a lifespan is entered ends the plugin, with a note of the place."""

    @asynccontextmanager
    async def failing(state: BackendState) -> AsyncIterator[None]:
        raise OSError("no disk")
        yield

    with pytest.raises(OSError, match="no disk") as caught:
        await host_of(Plugin(lifespan=failing)).run()
    assert caught.value.__notes__ == ["in the lifespan of plugin 'demo'"]


async def test_the_clean_up_of_a_lifespan_has_a_deadline(autojump_clock: MockClock) -> None:
    """The clean-up of a lifespan has a deadline."""

    @asynccontextmanager
    async def stubborn(state: BackendState) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        await nursery.start(host_of(Plugin(lifespan=stubborn), lifespan_timeout=2.0).run)
        nursery.cancel_scope.cancel()
    assert trio.current_time() == pytest.approx(2)


async def test_a_service_that_does_not_start_fails_the_plugin(autojump_clock: MockClock) -> None:
    """A service that raises before it reports fails the start of the plugin."""
    plugin = Plugin()

    @plugin.register_service()
    async def never(state: BackendState, *, task_status: trio.TaskStatus[None]) -> None:
        raise LookupError("no antenna")

    with pytest.raises(StartFailed, match="no antenna"):
        await host_of(plugin).run()


async def test_tasks_of_a_service_run_in_its_own_nursery(autojump_clock: MockClock) -> None:
    """A task that a service starts runs in its nursery, and its crash is the service's."""
    plugin = Plugin()
    nurseries: list[trio.Nursery] = []

    async def crash() -> None:
        await trio.sleep(1)
        raise ValueError("in a task")

    @plugin.register_service()
    async def a(state: BackendState) -> None:
        nursery = service_nursery.get()
        assert nursery is not None
        nurseries.append(nursery)
        nursery.start_soon(crash)

    @plugin.register_service()
    async def b(state: BackendState) -> None:
        nursery = service_nursery.get()
        assert nursery is not None
        nurseries.append(nursery)
        await trio.sleep_forever()

    with pytest.raises(RestartsExhausted) as caught:
        await host_of(plugin).run()
    assert nurseries[0] is not nurseries[1]
    assert caught.value.crashes == ("a: ValueError: in a task",)


async def test_a_plain_function_runs_in_a_thread_and_can_see_the_stop() -> None:
    """A sync service runs in a thread, and can ask whether it should stop."""
    plugin = Plugin()
    seen: list[Any] = []
    state = make_state()
    may_look = threading.Event()
    ended = threading.Event()

    @plugin.register_service()
    def plain(given: BackendState) -> None:
        seen.extend([given, threading.current_thread() is threading.main_thread()])
        trio.from_thread.run_sync(up.set)
        try:
            may_look.wait(5)
            trio.from_thread.check_cancelled()
        finally:
            ended.set()

    up = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(host_of(plugin, state=state).run)
        await up.wait()
        nursery.cancel_scope.cancel()
        may_look.set()

    assert ended.is_set()
    assert seen == [state, False]


async def test_a_thread_that_does_not_stop_is_abandoned_and_shown(autojump_clock: MockClock) -> None:
    """A thread past its stop time is abandoned, and shown with its line until it ends."""
    plugin = Plugin()
    release = threading.Event()

    @plugin.register_service(stop_timeout=0.5)
    def stuck(state: BackendState) -> None:
        trio.from_thread.run_sync(up.set)
        release.wait(30)

    up = trio.Event()
    host = host_of(plugin)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(host.run)
            await up.wait()
            nursery.cancel_scope.cancel()
        (ghost,) = host.statistics().ghosts
    finally:
        release.set()

    assert ghost.name == "demo/stuck"
    assert any("test_host.py" in frame or "threading.py" in frame for frame in ghost.where)


async def test_each_service_has_its_own_stop_time(autojump_clock: MockClock) -> None:
    """Each service has its own stop time: one has 30 s, the next one 8 s after that."""
    ended: list[tuple[str, float]] = []
    plugin = Plugin()

    def slow(name: str, seconds: float) -> ServiceFunction:
        async def run(state: BackendState) -> None:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(seconds)
                ended.append((name, trio.current_time()))

        return run

    plugin.register_service(1, name="first", stop_timeout=8.0)(slow("first", 7.0))
    plugin.register_service(2, name="second", stop_timeout=30.0)(slow("second", 20.0))
    host = host_of(plugin)
    child = Child("plugin:demo", host.run, stop_timeout=host.stop_timeout)
    async with open_supervised([child], shutdown_timeout=60.0) as supervised:
        await trio.sleep(1)
        await supervised.supervisor.stop_child("plugin:demo")

    assert [name for name, _ in ended] == ["second", "first"]
    assert [at for _, at in ended] == [pytest.approx(21.0), pytest.approx(28.0)]


async def test_a_stop_of_the_server_bounds_the_services(autojump_clock: MockClock) -> None:
    """No service gets more than the time that is left of the server's stop."""
    plugin = Plugin()

    @plugin.register_service(stop_timeout=30.0)
    async def slow(state: BackendState) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(20)

    host = host_of(plugin)
    child = Child("plugin:demo", host.run, stop_timeout=host.stop_timeout)
    late = {"nobody_is_stubborn": "it takes 20 s, and has 3", "stops_within_bound": "it has 3 s"}
    async with open_supervised([child], shutdown_timeout=3.0, but=late) as supervised:
        await trio.sleep(1)

    first = next(one for one in supervised.events if one.kind == "stubborn" and one.child == "slow")
    assert first.at == pytest.approx(4.0)


async def test_an_incarnation_starts_afresh(autojump_clock: MockClock) -> None:
    """One host runs in several incarnations, each with the state of that incarnation."""
    states = [make_state(), make_state()]
    seen: list[BackendState] = []
    plugin = Plugin()

    @plugin.register_service()
    async def look(state: BackendState) -> None:
        seen.append(state)

    waiting = iter(states)
    host = PluginHost(loaded(plugin), state=lambda: next(waiting))
    for _ in states:
        with trio.move_on_after(1):
            await host.run()
    assert seen == states
