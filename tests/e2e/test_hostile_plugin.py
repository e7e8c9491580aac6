"""A plugin that damages the process: the server still ends, and never hangs."""

from __future__ import annotations

import pytest
import trio

from tests.e2e.harness import Home, open_server

SOURCE = """
import os, socket, sys, threading
import trio
import tangram

router = tangram.APIRouter()
plugin = tangram.Plugin(routers=[router])


@router.get("/no-sockets")
async def no_sockets() -> bool:
    socket.socket = None
    return True


@router.get("/closed-listener")
async def closed_listener(port: int) -> bool:
    for name in os.listdir("/proc/self/fd"):
        try:
            found = socket.socket(fileno=int(name))
        except OSError:
            continue
        try:
            listening = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            ours = found.family != socket.AF_UNIX and found.getsockname()[1] == port
        except OSError:
            listening = ours = False
        if not (listening and ours):
            found.detach()
        else:
            found.close()
    return True


@router.get("/closed-all")
async def closed_all() -> None:
    os.closerange(3, 4096)
"""


async def test_a_plugin_without_sockets_does_not_hang_the_stop(home: Home) -> None:
    """``socket.socket = None`` breaks new connections to Redis, and not the stop."""
    home.install("hostile", SOURCE)
    async with open_server(home, "hostile") as server:
        await server.get("/no-sockets")
        assert await server.stop() == 0


async def test_a_closed_listener_ends_the_server_or_is_stopped(home: Home) -> None:
    """The web cannot serve on a closed socket: the server ends with 70, and does not hang."""
    home.install("hostile", SOURCE)
    async with open_server(home, "hostile") as server:
        await server.get(f"/closed-listener?port={home.port}")
        with trio.move_on_after(5):  # an end by itself is not promised
            await server.wait_end()
        status = server.process.returncode
        status = await server.stop() if status is None else status

    assert status in {0, 70}


async def test_closed_descriptors_end_the_process(home: Home) -> None:
    """Without descriptors the event loop cannot go on; the process ends and leaves no child."""
    home.install("hostile", SOURCE)
    but = {"no_traceback": "the event loop itself fails"}
    async with open_server(home, "hostile", but=but) as server:
        with pytest.raises(Exception):  # noqa: B017 - the connection breaks, whichever way
            await server.get("/closed-all")
        status = await server.wait_end()

    assert status != 0
