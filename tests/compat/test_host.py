"""Existing plugins in the supervision tree are restarted and stopped like native ones."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from typing import Annotated, Any

import pytest
import structlog
import trio

from tangram.app import start_gate
from tangram.compat.plugin import Plugin
from tangram.compat.state import BackendState
from tangram.plugins import Plugin as NativePlugin
from tangram.routing import APIRouter, Body
from tangram.testing import open_tangram
from tests.machine_slack import open_lateness

pytestmark = pytest.mark.slow

ONE_FOR_ONE = {"supervisor": {"strategy": "one_for_one", "backoff_initial": 0.0}}


def named(plugin: Plugin | NativePlugin, name: str) -> Any:
    plugin.name = name
    return plugin


def routed(plugin: Plugin) -> Any:
    """Give a plugin a route: FastAPI's, or tangram's where FastAPI is not installed."""
    router = import_module("fastapi").APIRouter(prefix="/demo")
    plugin.routers.append(router)
    return router


async def test_a_crash_takes_the_same_path_as_a_native_one() -> None:
    """A crash event names plugin, service and line; the plugin runs again afterwards."""
    plugin = Plugin()
    runs: list[int] = []

    @plugin.register_service()
    async def poll(_state: BackendState) -> None:
        runs.append(1)
        await asyncio.sleep(0.01)
        if len(runs) == 1:
            raise LookupError("gone wrong")
        await asyncio.sleep(1000)

    async with open_tangram([named(plugin, "demo")], ONE_FOR_ONE) as tangram:
        crashed = await tangram.wait_event("crashed", "plugin:demo")
        await tangram.wait_event("ready", after=tangram.events.index(crashed))
        logged = (await tangram.http.get("/-/plugins", headers=tangram.operator)).json()[0]

    assert "LookupError: gone wrong" in str(crashed.cause)
    assert logged["last_crash"]["path"] == ["plugin:demo", "poll"]
    assert any("test_host.py" in line for line in logged["last_crash"]["traceback"])
    assert len(runs) == 2


async def test_bodies_may_be_as_long_as_configured() -> None:
    """Tangram's own routes of an existing plugin accept bodies up to [server] max_body."""
    plugin, router = Plugin(), APIRouter(prefix="/demo")
    plugin.routers.append(router)

    async def size(data: Any) -> int:
        await asyncio.sleep(0)
        return len(data)

    size.__annotations__ = {"data": Annotated[bytes, Body()], "return": int}
    router.post("/size")(size)
    async with open_tangram([named(plugin, "demo")], {"server": {"max_body": 3_000_000}}) as tangram:
        answer = await tangram.http.post("/demo/size", content=b"x" * 2_900_000)

    assert (answer.status_code, answer.json()) == (200, 2_900_000)


async def test_too_many_crashes_are_quarantine() -> None:
    """A plugin whose service always crashes is quarantined; its neighbour goes on."""
    bad, good = Plugin(), Plugin()

    @bad.register_service()
    async def fail(_state: BackendState) -> None:
        await asyncio.sleep(0)
        raise LookupError("again")

    @routed(bad).get("/bad")  # type: ignore[untyped-decorator]
    async def bad_route() -> dict[str, int]:
        return {"bad": 1}

    @routed(good).get("/good")  # type: ignore[untyped-decorator]
    async def good_route() -> dict[str, int]:
        return {"good": 1}

    settings = {"supervisor": {**ONE_FOR_ONE["supervisor"], "plugin_restarts": 1}}
    async with open_tangram([named(bad, "bad"), named(good, "good")], settings) as tangram:
        await tangram.wait_event("quarantined", "plugin:bad")
        answer = await tangram.http.get("/demo/bad")

        assert answer.status_code == 503
        assert "quarantine" in answer.json()["detail"]
        assert answer.headers["retry-after"] == "1"
        assert (await tangram.http.get("/demo/good")).json() == {"good": 1}


async def test_order_of_an_incarnation() -> None:
    """The lifespan is entered before the services start, and left after they have ended.

    Enter and exit run in one asyncio task; services start by priority and name.
    """
    logged: list[str] = []
    tasks: list[object] = []

    @asynccontextmanager
    async def lifespan(state: BackendState) -> AsyncIterator[None]:
        tasks.append(asyncio.current_task())
        state.made = "by the lifespan"
        logged.append("enter")
        yield
        await asyncio.sleep(0.01)
        tasks.append(asyncio.current_task())
        logged.append("leave")

    plugin = Plugin(lifespan=lifespan)

    def service(name: str, priority: int) -> None:
        async def run(state: BackendState) -> None:
            logged.append(f"{name} {state.made}")
            try:
                await asyncio.sleep(1000)
            finally:
                logged.append(f"{name} ends")

        run.__name__ = name
        plugin.register_service(priority)(run)

    service("b", 0)
    service("a", 0)
    service("first", -1)
    async with open_tangram([plugin]):
        with trio.fail_after(30):
            while len(logged) < 4:  # noqa: ASYNC110 - asyncio starts the services
                await trio.sleep(0.01)

    starts = [f"{name} by the lifespan" for name in ("first", "a", "b")]
    assert logged == ["enter", *starts, "b ends", "a ends", "first ends", "leave"]
    assert tasks[0] is tasks[1]


async def test_state_is_shared_and_clients_are_not() -> None:
    """Attributes set by one plugin are visible to all; clients and configuration are its own."""
    first, second, native = Plugin(), Plugin(), NativePlugin()
    seen: dict[str, Any] = {}

    @first.register_service()
    async def one(state: BackendState) -> None:
        state.found = 42
        state.config.core.redis_url = "redis://nowhere"
        state.config.plugins["second"] = {"stolen": True}
        seen["first"] = state.redis_client
        await state.redis_client.set("key", "value")

    @second.register_service()
    async def two(state: BackendState) -> None:
        seen["second"] = state.redis_client
        seen["found"] = state.found
        seen["config"] = (state.config.core.redis_url, dict(state.config.plugins))
        while not (value := await state.redis_client.get("key")):  # noqa: ASYNC110 - Redis tells nobody
            await asyncio.sleep(0.01)
        seen["value"] = value
        await state.publish("from:x:y", b"1")

    @native.register_service()
    async def three(state: Any) -> None:
        seen["native"] = state.found

    plugins = [named(first, "first"), named(second, "second"), named(native, "third")]
    async with open_tangram(plugins) as tangram:
        url = tangram.redis_url
        with trio.fail_after(30):
            while "value" not in seen or "native" not in seen:
                await tangram.http.get("/-/healthz")

    assert (seen["found"], seen["native"], seen["value"]) == (42, 42, b"value")
    assert seen["first"] is not seen["second"]
    assert seen["config"] == (url, {})


@pytest.mark.parametrize("islands", ["each", "one"])
async def test_islands(islands: str) -> None:
    """Each plugin has a loop of its own, or all share one that outlives their restarts."""
    loops: dict[str, list[object]] = {"one": [], "two": []}
    plugins = []
    for name in ("one", "two"):
        plugin = named(Plugin(), name)
        plugins.append(plugin)

        async def note(_state: BackendState, name: str = name) -> None:
            loops[name].append(asyncio.get_running_loop())
            await asyncio.sleep(1000)

        plugin.register_service()(note)

        @plugin.register_service()  # type: ignore[untyped-decorator]
        async def leak(_state: BackendState, name: str = name) -> None:
            _kept.append(asyncio.create_task(asyncio.sleep(1000), name=f"leaked by {name}"))
            await asyncio.sleep(1000)

    async with open_tangram(plugins, {"compat": {"islands": islands}, **ONE_FOR_ONE}) as tangram:
        await tangram.http.post("/-/plugins/one/restart", headers=tangram.operator)
        leaked = [task.get_name() for task in _kept if not task.done()]

    assert len(loops["one"]) == 2
    assert (loops["one"][0] is loops["two"][0]) is (islands == "one")
    assert (loops["one"][0] is loops["one"][1]) is (islands == "one")
    assert sorted(leaked) == ["leaked by one", "leaked by two"]
    assert all(task.done() for task in _kept)
    _kept.clear()


_kept: list[asyncio.Task[Any]] = []


async def test_a_stubborn_plugin_is_contained() -> None:
    """Swallowed cancellation and failing or endless clean-ups do not hold up a restart.

    Each is logged with the plugin's name, and the restart takes no longer than the stop times.
    """
    lives: list[int] = []

    @asynccontextmanager
    async def lifespan(_state: BackendState) -> AsyncIterator[None]:
        yield
        raise LookupError("not this way out")

    plugin = Plugin(lifespan=lifespan)

    @plugin.register_service(stop_timeout=0.5)
    async def stubborn(_state: BackendState) -> None:
        lives.append(1)
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(1000)

    with structlog.testing.capture_logs() as logs:
        async with open_tangram([named(plugin, "demo")], ONE_FOR_ONE) as tangram:
            with open_lateness() as late:
                began = trio.current_time()
                await tangram.http.post("/-/plugins/demo/restart", headers=tangram.operator)
                took = trio.current_time() - began
    errors = [record for record in logs if record["log_level"] == "error"]

    assert len(lives) == 2
    assert took < 2 + late.allowed
    assert {(one.get("plugin"), one.get("task")) for one in errors} >= {("demo", "stubborn")}
    assert "LookupError: not this way out" in str([record.get("cause") for record in logs])


async def test_sync_services_run_in_threads() -> None:
    """A plain function runs as a service in a thread; one that does not end is counted."""
    plugin = Plugin()
    ran: list[str] = []

    @plugin.register_service()
    def count(_state: BackendState) -> None:
        ran.append(threading.current_thread().name)

    async with open_tangram([named(plugin, "demo")]) as tangram:
        with trio.fail_after(30):
            while not ran:
                await tangram.http.get("/-/healthz")

    assert ran == ["demo/count"]


async def test_a_bad_configuration_is_reported_by_pydantic() -> None:
    """A table that does not fit the config_class is a configuration fault with its path."""
    from dataclasses import dataclass

    from tangram.errors import ConfigError

    @dataclass(frozen=True)
    class Settings:
        number: int = 0

    plugin = named(Plugin(config_class=Settings), "demo")
    with pytest.raises(ConfigError, match=r"plugins\.demo\.number"):
        async with open_tangram([plugin], {"plugins.demo": {"number": "three"}}):
            pass
    async with open_tangram([plugin], {"plugins.demo": {"number": "3"}}) as tangram:
        assert tangram.server.tree is not None
        assert tangram.server.tree.incarnation.require_state().plugin_config(Settings) == Settings(3)


async def test_restarts_leave_nothing_behind() -> None:
    """Fifty restarts leave no more asyncio tasks, threads and descriptors than ten."""
    plugin = Plugin()

    @plugin.register_service()
    async def busy(state: BackendState) -> None:
        _kept.append(asyncio.create_task(asyncio.sleep(1000)))
        await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0)
        while True:
            await state.redis_client.publish("x", "y")
            await asyncio.sleep(0.001)

    @routed(plugin).get("/ping")  # type: ignore[untyped-decorator]
    async def ping(state: import_module("tangram_core").InjectBackendState) -> bool:  # type: ignore[valid-type]
        return bool(await state.redis_client.ping())

    async with open_tangram([named(plugin, "demo")], ONE_FOR_ONE) as tangram:

        async def rounds(count: int) -> tuple[int, int]:
            for _ in range(count):
                assert (await tangram.http.get("/demo/ping")).json() is True
                await tangram.http.post("/-/plugins/demo/restart", headers=tangram.operator)
            gc.collect()
            return len(
                os.listdir("/proc/self/fd")  # noqa: PTH208 - only the names matter
            ), threading.active_count()

        before = await rounds(10)
        after = await rounds(40)
        alive = [task for task in _kept if not task.done()]

        assert after[0] <= before[0] + 2
        assert after[1] <= before[1] + 1
        assert len(alive) <= 1
    _kept.clear()


async def test_services_of_all_plugins_start_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service of the first plugin starts when the last one has entered its lifespan."""
    monkeypatch.setattr(start_gate, "TOGETHER_SECONDS", 60.0)  # for a slow machine
    plugins = [named(Plugin(), f"plugin{number}") for number in range(4)]
    received: list[bytes] = []
    order: list[str] = []

    @plugins[0].register_service()  # type: ignore[untyped-decorator]
    async def register(state: BackendState) -> None:
        order.append("service")
        while not received:  # the other one subscribes at its own pace, and Redis keeps no message for it
            await state.redis_client.publish("control", b"register")
            await asyncio.sleep(0.01)
        await asyncio.Future()

    @plugins[-1].register_service()  # type: ignore[untyped-decorator]
    async def listen(state: BackendState) -> None:
        async with state.redis_client.pubsub() as pubsub:
            await pubsub.subscribe("control")
            async for message in pubsub.listen():
                received.extend([message["data"]] if message["type"] == "message" else [])

    for plugin in plugins[1:3]:

        @asynccontextmanager
        async def slow(_state: BackendState) -> AsyncIterator[None]:
            await asyncio.sleep(0.05)
            order.append("lifespan")
            yield

        plugin.lifespan = slow

    async with open_tangram(plugins) as tangram:
        for number in (1, 2):
            with trio.fail_after(30):
                while order.count("service") < number or not received:
                    await tangram.http.get("/-/healthz")
            received.clear()
            await tangram.server.restart()

    assert order[:6] == ["lifespan", "lifespan", "service"] * 2
