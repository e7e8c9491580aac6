"""A loop that is blocked: the plugin is named, and systemd hears no sign of life."""

from __future__ import annotations

import itertools
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.e2e.harness import LONG, Home, Server, open_process, open_server, wait_until, write_plugin
from tests.machine_slack import open_lateness

BLOCKS = """
import time, trio, tangram
router = tangram.APIRouter(prefix="/blocks")
plugin = tangram.Plugin(routers=[router])

@router.get("/for")
async def block_for(seconds: float) -> dict[str, float]:
    began = time.time()
    time.sleep(seconds)
    return {"began": began, "ended": time.time()}
"""

ROUNDS = 3
"""A thread that is due may have to wait for a processor. Not that long three times in a row, if the server is
as fast as it says."""


async def test_the_plugin_that_blocks_the_loop_is_named_within_a_second(home: Home) -> None:
    """Log and ``/-/supervision`` tell the plugin, the line it stands on, and how long it took."""
    write_plugin(home.site, "blocks", BLOCKS)
    async with open_server(home, "blocks", "tangram_e2e") as server:
        named: list[float] = []
        for count in range(1, ROUNDS + 1):
            block = await server.get("/blocks/for?seconds=1.5")
            await wait_until(partial(are_over, server, count))
            *_, told = server.events("event loop blocked", owner="blocks")
            stalls = (await server.get("/-/supervision"))["watchdog"]["last"]
            *_, stall = [one for one in stalls if one["owner"] == "blocks"]

            assert any("block_for" in frame for frame in told["frames"])
            assert any("block_for" in frame for frame in stall["stack"])
            # The loop was last seen alive a fifth of the limit before, and a moment after it goes on again.
            assert 0.0 <= stall["seconds"] - (block["ended"] - block["began"]) <= 5.0
            named.append(stall["at"] - block["began"])
            if named[-1] <= 1.0:
                break
        assert min(named) <= 1.0, named


async def are_over(server: Server, count: int) -> bool:
    """Return whether that many stalls of the plugin are over; a machine that stands still has no owner."""
    return len(server.events("event loop unblocked", owner="blocks")) == count


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


async def test_systemd_gets_ready_watchdog_and_stopping(
    home: Home, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """systemd gets READY, WATCHDOG and STOPPING at the right moments.

    READY is sent once everything is up, WATCHDOG twice in the allowed time by the event loop itself, so none
    is sent while the loop is blocked, and STOPPING at the end.
    """
    write_plugin(home.site, "blocks", BLOCKS)
    home.configure(["blocks"])
    heard: list[tuple[float, str]] = []
    with open_systemd(tmp_path) as (path, listener):
        nursery.start_soon(listen, listener, heard)
        environ = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "400000"}
        async with open_process(home, environ=environ) as server:
            await server.wait_ready()
            with open_lateness(server.process.pid) as late:
                await heard_signs(heard, 6)
                await server.get("/blocks/for?seconds=1.5")
                await heard_signs(heard, len(heard) + 2)
            assert await server.stop() == 0
        nursery.cancel_scope.cancel()
        heard += [(time.monotonic(), text) for text in drain(listener)]  # it has ended: nothing more comes
    told = [text.partition("\n")[0] for _, text in heard]
    signs = [at for at, text in heard if text == "WATCHDOG=1"]
    waits = [later - earlier for earlier, later in itertools.pairwise(signs)]

    assert told.count("READY=1") == 1
    # Between two signs 0.2 s pass; while the loop was blocked there was none.
    assert statistics.median(waits) <= 0.3 + late.longest
    assert max(waits) >= 1.0
    assert "STOPPING=1" in told


async def heard_signs(heard: list[tuple[float, str]], count: int) -> None:
    """Until so much was heard."""
    with trio.fail_after(LONG):
        while len(heard) < count:  # noqa: ASYNC110 - nobody tells it
            await trio.sleep(0.02)


async def listen(listener: socket.socket, heard: list[tuple[float, str]]) -> None:
    while True:
        await trio.lowlevel.wait_readable(listener)
        heard += [(time.monotonic(), text) for text in drain(listener)]


@pytest.mark.parametrize("usec", ["400000"])
async def test_the_watchdog_of_another_process_is_ignored(home: Home, tmp_path: Path, usec: str) -> None:
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
