"""As process 1 of a container the server reaps orphans and stops as usual."""

from __future__ import annotations

import signal
import subprocess

import psutil
import pytest
import trio

from tests.e2e.harness import LONG, Home, Server, open_server, wait_until

UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def may_unshare() -> bool:
    try:
        tried = subprocess.run([*UNSHARE, "true"], capture_output=True, timeout=LONG, check=False)
    except OSError:
        return False
    return tried.returncode == 0


pytestmark = pytest.mark.skipif(not may_unshare(), reason="this account may not make a process namespace")

SOURCE = """
import os, signal, subprocess
from pathlib import Path
import trio
import tangram

router = tangram.APIRouter()
plugin = tangram.Plugin(routers=[router])


@router.get("/orphan")
async def orphan() -> bool:
    # The shell ends at once, and its child is an orphan that ends a moment later.
    subprocess.run(["sh", "-c", "sleep 0.1 & exit 0"], check=True)
    return True


@router.get("/own")
async def own() -> int:
    child = subprocess.Popen(["sh", "-c", "exit 7"])
    await trio.sleep(0.3)  # init must not take the status away
    return child.wait()


@router.get("/zombies")
async def zombies() -> list[str]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        name, _, rest = stat.read_text().rpartition(")")
        if rest.split()[0] == "Z":
            found.append(name)
    return found


@router.get("/fall")
async def fall() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
"""


class Container(Home):
    """Starts the server as process 1 of a process namespace."""

    def command(self, *arguments: str) -> list[str]:
        return [*UNSHARE, *super().command(*arguments)]


@pytest.fixture
def container(home: Home) -> Container:
    home.install("orphans", SOURCE)
    return Container(home.folder, port=home.port)


def init_of(server: Server) -> psutil.Process:
    (init,) = psutil.Process(server.process.pid).children()
    return init


async def test_orphans_are_reaped_and_own_children_are_not(container: Container) -> None:
    """No zombie is left, and a plugin reads the exit status of its own child."""
    async with open_server(container, "orphans") as server:
        for _ in range(3):
            await server.get("/orphan")
        await trio.sleep(0.3)

        async def clean() -> bool:
            return bool(await server.get("/zombies") == [])

        await wait_until(clean)
        assert await server.get("/own") == 7
        init_of(server).send_signal(signal.SIGTERM)
        assert await server.wait_end() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signals_reach_the_server(container: Container, number: signal.Signals) -> None:
    """INT and TERM to process 1 stop the server in order, HUP restarts it cleanly."""
    async with open_server(container, "orphans") as server:
        init = init_of(server)
        init.send_signal(signal.SIGHUP)
        await server.wait_ready(times=2)
        init.send_signal(number)
        assert await server.wait_end() == 0

    assert server.events("tangram stopped", status=0)


async def test_the_end_of_the_server_by_a_signal_is_reported(container: Container) -> None:
    """Process 1 ends with 128 plus the number of the signal, and names it."""
    async with open_server(container, "orphans") as server:
        with pytest.raises(Exception):  # noqa: B017 - the connection breaks, whichever way
            await server.get("/fall")
        status = await server.wait_end()

    assert status == 128 + signal.SIGSEGV
    assert "the server was ended by SIGSEGV" in server.log
