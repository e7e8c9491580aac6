"""A loop that is blocked: the plugin is named, and systemd hears no sign of life."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from .harness import Home, open_process, open_server, write_plugin

BLOCKS = """
import time, trio, tangram
router = tangram.APIRouter(prefix="/blocks")
plugin = tangram.Plugin(routers=[router])

@router.get("/for")
async def block_for(seconds: float) -> dict[str, float]:
    began = time.time()
    time.sleep(seconds)
    return {"began": began}
"""


async def test_the_plugin_that_blocks_the_loop_is_named_within_a_second(home: Home) -> None:
    """Log and ``/-/supervision`` tell the plugin, the line it stands on, and how long it took."""
    write_plugin(home.site, "blocks", BLOCKS)
    async with open_server(home, "blocks", "tangram_e2e") as server:
        began = (await server.get("/blocks/for?seconds=1.5"))["began"]
        await server.wait_line("the event loop goes on")
        (told,) = server.events("the event loop is blocked")
        (stall,) = (await server.get("/-/supervision"))["watchdog"]["last"]

        assert told["owner"] == stall["owner"] == "blocks"
        assert any("block_for" in frame for frame in told["frames"])
        assert any("block_for" in frame for frame in stall["stack"])
        # It is looked at a fifth of the limit before the block at most, so that a busy machine may be late.
        assert stall["at"] - began <= 1.1
        assert 1.3 <= stall["seconds"] <= 3.0


@contextmanager
def open_systemd(folder: Path) -> Iterator[tuple[str, socket.socket]]:
    """The socket on which systemd listens to its services."""
    path = str(folder / "notify.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.setblocking(False)
        yield path, listener


def drain(listener: socket.socket) -> list[str]:
    heard = []
    while True:
        try:
            heard.append(listener.recv(4096).decode())
        except BlockingIOError:
            return heard


async def test_systemd_hears_ready_signs_of_life_and_stopping(
    home: Home, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """READY once everything is up, WATCHDOG twice in the allowed time from the loop itself, none while that
    is blocked, STOPPING at the end.
    """
    write_plugin(home.site, "blocks", BLOCKS)
    home.configure(["blocks"])
    heard: list[tuple[float, str]] = []
    with open_systemd(tmp_path) as (path, listener):
        nursery.start_soon(listen, listener, heard)
        environ = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "400000"}
        async with open_process(home, environ=environ) as server:
            await server.wait_ready()
            await trio.sleep(1.0)
            before = len(heard)
            await server.get("/blocks/for?seconds=1.2")
            await trio.sleep(0.5)
            assert await server.stop() == 0
            await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    told = [text.partition("\n")[0] for _, text in heard]
    signs = [at for at, text in heard if text == "WATCHDOG=1"]

    assert told.count("READY=1") == 1
    assert told[:before].count("WATCHDOG=1") >= 3
    # Between two signs 0.2 s pass; while the loop was blocked there was none.
    assert max(later - earlier for earlier, later in itertools.pairwise(signs)) >= 1.0
    assert "STOPPING=1" in told


async def listen(listener: socket.socket, heard: list[tuple[float, str]]) -> None:
    while True:
        await trio.lowlevel.wait_readable(listener)
        heard += [(time.monotonic(), text) for text in drain(listener)]


@pytest.mark.parametrize("usec", ["400000"])
async def test_the_watchdog_of_another_process_is_none_of_ours(home: Home, tmp_path: Path, usec: str) -> None:
    """With another WATCHDOG_PID nothing but READY and STOPPING is told."""
    home.configure([])
    with open_systemd(tmp_path) as (path, listener):
        environ = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": usec, "WATCHDOG_PID": "1"}
        async with open_process(home, environ=environ) as server:
            await server.wait_ready()
            began = time.monotonic()
            await trio.sleep(0.6)
            heard = drain(listener)

    assert time.monotonic() - began >= 0.6
    assert "WATCHDOG=1" not in heard
    assert any(it.startswith("READY=1") for it in heard)
