"""Existing plugins that misbehave, each in a server process of its own."""

from __future__ import annotations

from functools import partial
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import trio

from tests.e2e.harness import Home, Server, open_server, wait_gone, wait_until
from tests.machine_slack import open_lateness

pytestmark = pytest.mark.slow

BOUND = 1.5
"""``shutdown_timeout`` of these servers in seconds."""
MORE = 1.0
"""Seconds that a stop may take beyond that."""
LIMITS = f"[supervisor]\nshutdown_timeout = {BOUND}\n"

HEAD = """
import asyncio, time
from fastapi import APIRouter
import tangram_core

router = APIRouter(prefix="/old")
plugin = tangram_core.Plugin(routers=[router])
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def write(home: Home, source: str) -> None:
    """Install an existing plugin called ``old``."""
    (home.site / "old.py").write_text(HEAD + source)
    metadata = home.site / "old-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: old\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text("[tangram_core.plugins]\nold = old:plugin\n")


BLOCKS = """
began = 0.0
asked = asyncio.Event()

def block():
    global began
    began = time.time()
    time.sleep(1.4)

@plugin.register_service()
async def block_in_service(state):
    while True:
        await asked.wait()
        asked.clear()
        block()

@router.get("/service")
async def let_the_service_block():
    asked.set()

@router.get("/handler")
async def block_in_handler():
    block()

@router.get("/thread")
def block_in_a_thread():
    block()

@router.get("/began")
async def tell():
    return began
"""


ROUNDS = 3
"""Number of attempts: a thread that is due may have to wait for a processor, but not three times in a row."""


async def are_over(server: Server, count: int) -> bool:
    """Return whether that many stalls of the plugin are over; a machine that stands still has no owner."""
    return len(server.events("event loop unblocked", owner="old")) == count


@pytest.mark.parametrize("where", ["service", "handler"])
async def test_a_blocking_plugin_is_logged_within_a_second(home: Home, where: str) -> None:
    """A service or handler that blocks the loop is logged, with its line, while it blocks."""
    write(home, BLOCKS)
    async with open_server(home, "old") as server:
        named: list[float] = []
        for count in range(1, ROUNDS + 1):
            await server.get(f"/old/{where}")
            await wait_until(partial(are_over, server, count))
            began = await server.get("/old/began")
            stalls = (await server.get("/-/supervision"))["watchdog"]["last"]
            *_, stall = [one for one in stalls if one["owner"] == "old"]

            assert server.events("event loop blocked", owner="old")
            assert any(f"block_in_{where}" in frame for frame in stall["stack"])
            assert stall["seconds"] >= 1.2
            named.append(stall["at"] - began)
            if named[-1] <= 1.0:
                break
        assert min(named) <= 1.0, named


async def test_a_plain_handler_does_not_block_the_loop(home: Home) -> None:
    """A handler without ``async`` sleeps in a thread, and the watchdog reports nothing."""
    write(home, BLOCKS)
    async with open_server(home, "old") as server:
        await server.get("/old/thread")

        stalls = (await server.get("/-/supervision"))["watchdog"]["last"]
        assert [one for one in stalls if one["owner"] == "old"] == []


ENDLESS = {
    "service": """
@plugin.register_service(stop_timeout=0.3)
async def endless(state):
    print("it runs", flush=True)
    while True:
        try:
            await asyncio.sleep(1000)
        except BaseException:
            pass
""",
    "to_thread": """
@plugin.register_service(stop_timeout=0.3)
async def endless(state):
    print("it runs", flush=True)
    await asyncio.to_thread(time.sleep, 1000)
""",
}


LEFT = {
    "handler": """
@router.get("/stuck")
def stuck():
    print("it runs", flush=True)
    time.sleep(1000)

@plugin.register_service()
async def ask(state):
    import httpx
    async with httpx.AsyncClient() as client:
        while True:
            try:
                await client.get(f"http://127.0.0.1:{state.config.server.port}/old/stuck", timeout=None)
            except httpx.TransportError:
                await asyncio.sleep(0.05)
""",
    "thread": """
import threading

@plugin.register_service()
async def leave(state):
    threading.Thread(target=time.sleep, args=[1000], name="left").start()
    print("it runs", flush=True)
""",
}


@pytest.mark.parametrize("what", LEFT)
async def test_the_process_ends_although_a_thread_is_left(home: Home, what: str) -> None:
    """The process ends in time with status 0 although a thread of the plugin goes on.

    The thread is no daemon: one of the plugin's own, or a stuck handler. Its name is logged.

    """
    write(home, LEFT[what])
    async with open_server(home, "old", extra=LIMITS) as server:
        await server.wait_line("it runs")
        with open_lateness(server.process.pid) as late:
            begun = trio.current_time()
            status = await server.stop()
            took = trio.current_time() - begun
        logged = [
            f"{name}: {where}"
            for event in server.events("threads keep the process from ending")
            for name, where in event["threads"].items()
        ]

        assert status == 0
        assert took <= BOUND + MORE + late.allowed
        # Ours runs plain handlers in Trio's threads, which are daemons.
        assert len(logged) == (what == "thread" or "fastapi" in packages_distributions())
        assert all("old.py" in one or "left: " in one for one in logged)


@pytest.mark.parametrize("what", ENDLESS)
async def test_the_process_ends_although_a_plugin_goes_on(home: Home, what: str) -> None:
    """The process ends in time although a task swallows cancellation or waits for a thread.

    Task and thread are logged, and no broker is left behind.
    """
    write(home, ENDLESS[what])
    python_warns = {"no_traceback": "Python warns of a coroutine that ignores its end"}
    async with open_server(home, "old", extra=LIMITS, but=python_warns) as server:
        below = server.children()
        await server.wait_line("it runs")
        with open_lateness(server.process.pid) as late:
            begun = trio.current_time()
            status = await server.stop()
            took = trio.current_time() - begun
        await wait_gone(below)
        (logged,) = [one for one in server.records if "asyncio task abandoned" in one["event"]]
        threads = server.events("a thread that does not end was abandoned", service="old/executor")

        assert status == 0
        assert took <= BOUND + MORE + late.allowed
        assert (logged["plugin"], logged["task"]) == ("old", "endless")
        assert len(threads) == (what == "to_thread")
