"""After a crash of the process the next start reports how it ended."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.e2e.harness import LONG, Home, Server, open_process, open_server

SOURCE = """
import ctypes, os, signal, threading, time
import trio
import tangram

router = tangram.APIRouter()
plugin = tangram.Plugin(routers=[router])
fall_now = threading.Event()


@router.get("/segfault")
async def segfault() -> None:
    ctypes.string_at(0)


@router.get("/abort")
async def abort() -> None:
    os.abort()


@router.get("/exit")
async def leave() -> None:
    os._exit(3)


@router.get("/thread")
async def thread() -> None:
    fall_now.set()
    await trio.sleep_forever()


@plugin.register_service()
def poll(state: tangram.BackendState) -> None:
    while not fall_now.is_set():
        trio.from_thread.check_cancelled()
        time.sleep(0.01)
    ctypes.string_at(0)


@router.get("/fork")
async def fork() -> int:
    pid = os.fork()
    if pid == 0:
        ctypes.string_at(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""

WAYS = {
    "/segfault": ("signal 11 in plugin falling, thread MainThread", "in segfault"),
    "/abort": ("signal 6 in plugin falling, thread MainThread", "in abort"),
    "/exit": ("status 3 by os._exit in plugin falling, thread MainThread", "in leave"),
    "/thread": ("signal 11 in plugin falling, thread poll", "in poll"),
}


def the_last_exit(server: Server) -> dict[str, Any]:
    (found,) = server.events("last exit")
    return found


@pytest.mark.parametrize(("path", "told"), WAYS.items(), ids=WAYS)
async def test_the_end_by_a_plugin_is_reported_at_the_next_start(
    home: Home, path: str, told: tuple[str, str]
) -> None:
    """A record names signal or status, plugin, thread and line; a third start has none."""
    cause, where = told
    home.install("falling", SOURCE)
    async with open_server(home, "falling") as server:
        with pytest.raises(Exception):  # noqa: B017 - the connection breaks, whichever way
            await server.get(path)
        await server.wait_end()
    async with open_server(home, "falling") as again:
        await again.stop()
    async with open_server(home, "falling") as third:
        await third.stop()

    last = the_last_exit(again)
    assert (last["cause"], last["level"]) == (cause, "error")
    assert last["where"].endswith(where)
    assert "falling.py" in last["where"]
    assert any(where in line for line in last["traceback"])
    assert third.events("last exit") == []
    assert list((home.state / "running").iterdir()) == []


async def test_a_crash_at_import_names_the_plugin(home: Home) -> None:
    """The report comes before the plugins of the next start are imported."""
    home.install("falling", "import ctypes\nctypes.string_at(0)\n")
    home.configure(["falling"])
    async with open_process(home) as server:
        assert await server.wait_end(within=LONG) == -signal.SIGSEGV
    async with open_process(home) as again:
        assert await again.wait_end(within=LONG) == -signal.SIGSEGV

    last = the_last_exit(again)
    assert last["cause"] == "signal 11 in plugin falling, while it was imported, thread MainThread"


async def test_a_killed_server_is_reported(home: Home) -> None:
    """SIGKILL and a lack of memory leave no trace, which is reported as a warning."""
    async with open_server(home, "tangram_e2e") as server:
        server.process.kill()
        await server.wait_end()
    async with open_server(home, "tangram_e2e") as again:
        await again.stop()

    assert the_last_exit(again)["level"] == "warning"
    assert "SIGKILL" in the_last_exit(again)["cause"]


async def test_the_end_of_a_forked_child_is_not_the_end_of_the_server(home: Home) -> None:
    """A child that falls writes its stack to standard error, and nothing into the record."""
    home.install("falling", SOURCE)
    async with open_server(home, "falling") as server:
        assert await server.get("/fork") == -signal.SIGSEGV
        (record,) = (home.state / "running").iterdir()
        assert "Fatal" not in record.read_text()
        assert await server.stop() == 0

    assert "Fatal Python error: Segmentation fault" in server.log


async def test_a_running_server_is_not_reported(home: Home) -> None:
    """Another server with the same state folder leaves its record alone."""
    other = Home(home.folder / "other")
    environ = {"XDG_STATE_HOME": str(home.folder / "xdg_state_home")}
    async with open_server(home, "tangram_e2e") as server:
        async with open_server(other, "tangram_e2e", environ=environ) as second:
            assert len(list((home.state / "running").iterdir())) == 2
            await second.stop()
        assert second.events("last exit") == []
        assert len(list((home.state / "running").iterdir())) == 1
        await server.stop()
