"""Measure a stop with clients and plugins that do not end, and a blocked event loop."""

from __future__ import annotations

import http.client
import json
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import trio
from benchmarks.figures.common import Figure, at_most, none_of
from benchmarks.figures.process import ServerProcess, open_process
from benchmarks.figures.sockets import join_frame, upgrade

from tangram import Plugin
from tangram.testing import open_tangram
from tangram.testing.checks.census import start_time

CLIENTS = 100
SHUTDOWN_TIMEOUT = 2.0

STUBBORN = """
import trio, tangram

router = tangram.APIRouter(prefix="/bench")
plugin = tangram.Plugin(routers=[router])

@router.get("/large")
async def large() -> tangram.Response:
    return tangram.Response(bytes(16 * 1024 * 1024))

@plugin.register_service()
async def flood(state: tangram.BackendState) -> None:
    payload = b"[" + b"1," * 30_000 + b"1]"
    while True:
        await state.redis_client.publish("to:bench:beat", payload)
        await trio.sleep(0.02)

@plugin.register_service(stop_timeout=0.5)
async def stubborn(state: tangram.BackendState) -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()
"""

BLOCKED_FOR = 1.6
"""Seconds for which the plugin blocks the loop."""


@contextmanager
def deaf_clients(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Open clients that never read: half request 16 MiB, half join a flooded topic."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(
        "POST", "/token", json.dumps({"channel": "bench"}), {"content-type": "application/json"}
    )
    token = json.loads(connection.getresponse().read())["token"]
    connection.close()
    clients = []
    for number in range(count):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        clients.append(sock)
        if number % 2:
            sock.sendall(f"GET /bench/large HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        else:
            sock.sendall(upgrade(port))
            sock.recv(65536)
            sock.sendall(join_frame("bench", token))
    try:
        yield clients
    finally:
        for sock in clients:
            sock.close()


async def stop_once() -> tuple[float, int, int]:
    """Return the seconds of a stop, the exit status, and the processes that are left."""
    config = f"[supervisor]\nshutdown_timeout = {SHUTDOWN_TIMEOUT}\n"
    async with open_process(STUBBORN, config) as server:
        below = psutil.Process(server.process.pid).children(recursive=True)
        with deaf_clients(server.port, CLIENTS):
            await trio.sleep(0.5)
            took, status = await server.end()
        await trio.sleep(0.1)
        left = [one for one in below if one.is_running() and start_time(one.pid)]
    return took, status, len(left)


async def measure_stop(rounds: int) -> list[Figure]:
    """Measure the whole stop, from SIGTERM to the end of the process."""
    results = [await stop_once() for _ in range(rounds)]
    limit = SHUTDOWN_TIMEOUT + 1.0
    worst = max(took for took, _, _ in results)
    return [
        Figure(
            f"stop with {CLIENTS} deaf clients and a stubborn plugin, longest",
            f"{worst:.2f} s (n={rounds})",
            f"<= {limit:g} s",
            worst <= limit,
        ),
        none_of("  exit statuses other than 0", sum(status != 0 for _, status, _ in results)),
        none_of("  child processes left", sum(left for _, _, left in results)),
    ]


async def measure_blocked(rounds: int) -> list[Figure]:
    """Block the loop in a service; measure the time until the watchdog names it."""
    begins: list[float] = []
    block = trio.Event()
    plugin = Plugin()

    @plugin.register_service()
    async def blocks(_state: object) -> None:
        nonlocal block
        while True:
            await block.wait()
            block = trio.Event()
            begins.append(time.time())
            time.sleep(BLOCKED_FOR)  # noqa: ASYNC251 - that is what is measured

    seen: list[float] = []
    named = 0
    async with open_tangram([plugin], {"core": {"log_level": "CRITICAL"}}, checks=()) as running:
        watchdog = running.server.watchdog
        assert watchdog is not None
        for _ in range(rounds):
            await trio.sleep(random.uniform(0.3, 0.6))
            block.set()
            await trio.sleep(0.01)
            stalls = watchdog.statistics().last
            if stalls and stalls[-1].at > begins[-1]:
                seen.append(stalls[-1].at - begins[-1])
                named += any("blocks" in line for line in stalls[-1].stack)
    missing = rounds - named
    return [
        at_most("blocked loop named with its stack", seen or [BLOCKED_FOR], 1.0, 1.0),
        none_of("  blocks that were not named", missing),
    ]


__all__ = ["ServerProcess", "measure_blocked", "measure_stop"]
