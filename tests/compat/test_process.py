"""Existing plugins that misbehave, in a process of their own: who is to blame is named, and the end comes."""

from __future__ import annotations

from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import trio

from tests.e2e.harness import Home, open_server, wait_gone
from tests.machine_slack import open_lateness

pytestmark = pytest.mark.slow

BOUND = 1.5
"""``shutdown_timeout`` of these servers, in seconds."""
MORE = 1.0
"""What a stop may take beyond that, at most."""
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
    """A plugin of the published server's group, called ``old``, as if it were installed."""
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
"""A thread that is due may have to wait for a processor. Not that long three times in a row, if the server is
as fast as it says."""


@pytest.mark.parametrize("where", ["service", "handler"])
async def test_who_blocks_the_loop_is_named_within_a_second(home: Home, where: str) -> None:
    """An asyncio service or handler that sleeps for real: log and ``/-/supervision`` tell its plugin and its
    line, while it still blocks.
    """
    write(home, BLOCKS)
    async with open_server(home, "old") as server:
        named: list[float] = []
        for count in range(1, ROUNDS + 1):
            await server.get(f"/old/{where}")
            await server.wait_line("event loop unblocked", times=count)
            began = await server.get("/old/began")
            *_, told = server.events("event loop blocked")
            *_, stall = (await server.get("/-/supervision"))["watchdog"]["last"]

            assert told["owner"] == stall["owner"] == "old"
            assert any(f"block_in_{where}" in frame for frame in stall["stack"])
            assert stall["seconds"] >= 1.2
            named.append(stall["at"] - began)
            if named[-1] <= 1.0:
                break
        assert min(named) <= 1.0, named


async def test_a_plain_handler_blocks_nobody(home: Home) -> None:
    """A handler without ``async`` sleeps in a thread, and the watchdog has nothing to tell."""
    write(home, BLOCKS)
    async with open_server(home, "old") as server:
        await server.get("/old/thread")

        assert (await server.get("/-/supervision"))["watchdog"]["stalls"] == 0


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
    """A thread of the plugin's own, or with FastAPI a handler without ``async`` that is stuck, is no daemon,
    and Python would wait for it: the process ends within the bound with status 0, and the thread is named.
    """
    write(home, LEFT[what])
    async with open_server(home, "old", extra=LIMITS) as server:
        await server.wait_line("it runs")
        with open_lateness() as late:
            begun = trio.current_time()
            status = await server.stop()
            took = trio.current_time() - begun
        told = [
            f"{name}: {where}"
            for event in server.events("threads that nobody ended keep the process")
            for name, where in event["threads"].items()
        ]

        assert status == 0
        assert took <= BOUND + MORE + late.allowed
        # Ours runs plain handlers in Trio's threads, which are daemons.
        assert len(told) == (what == "thread" or "fastapi" in packages_distributions())
        assert all("old.py" in one or "left: " in one for one in told)


@pytest.mark.parametrize("what", ENDLESS)
async def test_the_process_ends_although_a_plugin_goes_on(home: Home, what: str) -> None:
    """A task that swallows its cancellation, or waits for a thread: the stop comes within its bound, with
    status 0; the task and the thread are named, and the broker is not left behind.
    """
    write(home, ENDLESS[what])
    told_by_python = {"no_traceback": "Python tells of a coroutine that ignores its end"}
    async with open_server(home, "old", extra=LIMITS, but=told_by_python) as server:
        below = server.children()
        await server.wait_line("it runs")
        with open_lateness() as late:
            begun = trio.current_time()
            status = await server.stop()
            took = trio.current_time() - begun
        await wait_gone(below)
        (told,) = [one for one in server.records if "is abandoned" in one["event"]]
        threads = server.events("a thread that does not end was abandoned", service="old/executor")

        assert status == 0
        assert took <= BOUND + MORE + late.allowed
        assert (told["plugin"], told["task"]) == ("old", "endless")
        assert len(threads) == (what == "to_thread")
