"""Misuse of the loop and leftover resources are contained and logged."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import structlog
import trio

from tangram.compat.island import Island, Resident, open_island
from tangram.compat.plugin import Plugin
from tangram.compat.state import BackendState
from tangram.testing import RunningTangram, open_tangram

pytestmark = pytest.mark.slow

ONE_FOR_ONE = {"supervisor": {"strategy": "one_for_one", "backoff_initial": 0.0, "plugin_restarts": 1}}
_kept: list[Any] = []


@pytest.fixture(autouse=True)
def forget() -> None:
    _kept.clear()


@pytest.fixture
async def island() -> AsyncIterator[Island]:
    async with open_island("test") as island:
        yield island


def serving(name: str, work: Callable[[], Awaitable[object]]) -> Plugin:
    """Return a plugin with one service that runs this function and then waits for ever."""
    plugin = Plugin()
    plugin.name = name

    @plugin.register_service()
    async def run(_state: BackendState) -> None:
        await work()
        await asyncio.Future()

    return plugin


async def restart(tangram: RunningTangram, name: str) -> None:
    answer = await tangram.http.post(f"/-/plugins/{name}/restart", headers=tangram.operator)
    assert answer.is_success


@pytest.mark.parametrize("islands", ["each", "one"])
async def test_a_plugin_that_stops_its_loop_has_crashed(islands: str) -> None:
    """``loop.stop()`` raises in the plugin that calls it; its neighbour on the loop goes on."""

    asked: list[int] = []
    beats: list[int] = []

    async def stop() -> None:
        while not asked:  # noqa: ASYNC110 - it is asked from outside of its loop
            await asyncio.sleep(0.005)
        asyncio.get_running_loop().stop()

    async def beat() -> None:
        while True:
            beats.append(1)
            await asyncio.sleep(0.01)

    settings = {"compat": {"islands": islands}, **ONE_FOR_ONE}
    async with open_tangram([serving("good", beat), serving("bad", stop)], settings) as tangram:
        asked.append(1)
        crashed = await tangram.wait_event("crashed", "plugin:bad")
        await tangram.wait_event("quarantined", "plugin:bad")
        count = len(beats)
        with trio.fail_after(30):
            while len(beats) <= count:
                await tangram.http.get("/-/healthz")

    assert "may not stop the loop" in str(crashed.cause)


async def test_handlers_for_the_servers_signals_are_ignored(island: Island) -> None:
    """A plugin's handler for SIGTERM is ignored with a warning; another signal's is called."""
    resident = Resident(island, "demo")
    before, received = signal.getsignal(signal.SIGTERM), asyncio.Event()

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, received.set)
        assert not loop.remove_signal_handler(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is before
        loop.add_signal_handler(signal.SIGUSR2, received.set)
        signal.raise_signal(signal.SIGUSR2)
        await received.wait()
        assert loop.remove_signal_handler(signal.SIGUSR2)

    with structlog.testing.capture_logs() as logs, trio.fail_after(30):
        await resident.call(ask, name="ask")

    assert [(one["plugin"], one["signal"]) for one in logs] == [("demo", "SIGTERM")]


async def test_an_executor_of_the_plugins_own_works(island: Island) -> None:
    """``run_in_executor`` takes any executor of the standard library."""
    resident = Resident(island, "demo")

    async def work() -> str:
        with ThreadPoolExecutor(thread_name_prefix="mine") as executor:
            loop = asyncio.get_running_loop()
            name = await loop.run_in_executor(executor, lambda: threading.current_thread().name)
            with pytest.raises(ZeroDivisionError):
                await loop.run_in_executor(executor, lambda: 1 // 0)
        return name

    assert (await resident.call(work, name="work")).startswith("mine")


async def test_tasks_of_a_plugins_task_factory_end_with_it(island: Island) -> None:
    """Tasks of a plugin's own task factory belong to the plugin, and are cancelled with it."""
    resident = Resident(island, "demo")
    made: list[asyncio.Task[Any]] = []

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **settings: Any) -> asyncio.Task[Any]:
        made.append(asyncio.Task(coro, loop=loop, **settings))
        return made[-1]

    async def work() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        _kept.append(asyncio.create_task(asyncio.sleep(1000), name="left"))
        asyncio.get_running_loop().set_task_factory(None)
        _kept.append(asyncio.create_task(asyncio.sleep(1000), name="left too"))

    await resident.call(work, name="work")
    await resident.close(list)

    assert made == _kept[:1]
    assert all(task.cancelled() for task in _kept)


async def test_a_failing_callback_is_logged_with_its_plugin(island: Island) -> None:
    """An exception in a callback is logged with the plugin's name, and the loop goes on."""
    resident = Resident(island, "demo")

    async def work() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await asyncio.sleep(0.01)

    with structlog.testing.capture_logs() as logs:
        await resident.call(work, name="work")

    assert [(one["plugin"], one["cause"][:17]) for one in logs] == [("demo", "ZeroDivisionError")]


async def open_everything() -> None:
    """Open a server, both ends of a connection to it, a datagram socket, and a process."""
    server = await asyncio.start_server(lambda *ends: _kept.append(ends), "127.0.0.1", 0)
    _kept.append(server)
    _kept.append(await asyncio.open_connection(*server.sockets[0].getsockname()))
    loop = asyncio.get_running_loop()
    _kept.append(await loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0)))
    _kept.append(await asyncio.create_subprocess_exec("sleep", "1000", stdout=asyncio.subprocess.PIPE))


@pytest.mark.parametrize("islands", ["each", "one"])
async def test_leftover_resources_are_closed_with_their_plugin(islands: str) -> None:
    """Sockets are closed and child processes killed when their plugin ends, with a log record."""
    settings = {"compat": {"islands": islands}, **ONE_FOR_ONE}
    with structlog.testing.capture_logs() as logs:
        async with open_tangram([serving("demo", open_everything)], settings) as tangram:
            with trio.fail_after(30):
                while len(_kept) < 5:
                    await tangram.http.get("/-/healthz")
            process = next(one for one in _kept if isinstance(one, asyncio.subprocess.Process))
            await restart(tangram, "demo")

            assert not psutil.pid_exists(process.pid)
            logged = [one for one in logs if "leftover resources closed" in one["event"]]
            assert logged[0]["plugin"] == "demo"
            assert f"process {process.pid}" in logged[0]["left"]
            assert any("server on" in one for one in logged[0]["left"])


async def test_system_exit_in_a_task_ends_its_loop_and_is_a_crash() -> None:
    """SystemExit in a task ends the loop, whose tasks are not waited for; the plugin starts again."""

    async def leave() -> None:
        async def exits() -> None:
            raise SystemExit(4)

        _kept.append(asyncio.create_task(exits()))

    async with open_tangram([serving("demo", leave)], checks=()) as tangram:
        with trio.fail_after(30):
            await tangram.wait_event("crashed", "plugin:demo")

        crash = next(event for event in tangram.events if event.kind == "crashed")
        assert "SystemExit" in str(crash.crash) or "PluginExited" in str(crash.crash)
        assert tangram.status == 0
