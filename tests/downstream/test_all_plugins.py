"""Every published plugin, alone and together, comes back after interruptions.

``TANGRAM_ROUNDS`` is the number of interruptions, 20 in ``make test-downstream``. Nothing may be left over.
Without it all plugins are tried together, twice.
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import trio

from tangram.testing import open_broker
from tests.downstream.harness import Environment, restart
from tests.downstream.prepare import python_of
from tests.e2e.harness import Server, open_server, wait_gone, wait_until

Home = tuple[Environment, str]
"""An environment, and tables for the plugin that downloads at its start."""

ROUNDS = int(os.environ.get("TANGRAM_ROUNDS", "2"))
NAMES = (
    "system",
    "weather",
    "globe",
    "airports",
    "explore",
    "jet1090",
    "ship162",
    "datalink",
    "history",
    "navaid",
)
BUDGETS = "[supervisor]\nroot_restarts = 1000\nplugin_restarts = 1000\n"
"""A broker that is killed more than three times a minute would end the server, as it should."""
SPARE = 6
"""Descriptors and connections that come and go: requests of this test, retries of a plugin."""


def is_installed(name: str) -> bool:
    command = f"import importlib.util as u, sys; sys.exit(u.find_spec('tangram_{name}') is None)"
    python = python_of("ten")
    return python.exists() and subprocess.run([python, "-c", command], check=False).returncode == 0


@pytest.fixture
def plugins(name: str) -> list[str]:
    """Return the plugins to enable; skip the test where one is not installed.

    A skip inside an asynchronous test would lose its reason on the way through the nursery.
    """
    if name != "all" and "TANGRAM_ROUNDS" not in os.environ:
        pytest.skip("each plugin alone is tried by make test-downstream")
    if name == "all":
        return [f"tangram_{one}" for one in NAMES if is_installed(one)]
    if not is_installed(name):
        pytest.skip(f"tangram-{name} is not installed: it may need a newer Python")
    return [f"tangram_{name}"]


def aircraft_database(folder: Path) -> bytes:
    """Return a zip file with the database that ``tangram_jet1090`` downloads at its start."""
    file = folder / "basestation.sqb"
    with sqlite3.connect(file) as database:
        database.execute(
            "create table Aircraft(AircraftID integer primary key, ModeS text, ModeSCountry text, "
            "Registration text, ICAOTypeCode text, OperatorFlagCode text, Type text, Manufacturer text, "
            "RegisteredOwners text, SerialNo text)"
        )
    database.close()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(file, file.name)
    return packed.getvalue()


@asynccontextmanager
async def open_download(content: bytes) -> AsyncIterator[str]:
    """Serve one file over HTTP; yield its URL."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(65536)
            head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(content)}\r\nconnection: close\r\n\r\n"
            await stream.send_all(head.encode() + content)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}/basestation.zip"
        nursery.cancel_scope.cancel()


async def states(server: Server) -> dict[str, tuple[str, int]]:
    return {one["name"]: (one["state"], one.get("incarnation", 0)) for one in await server.get("/-/plugins")}


async def wait_running(server: Server) -> None:
    """Wait until every plugin runs, and none has just been called again."""

    async def running() -> bool:
        return all(state == "running" for state, _ in (await states(server)).values())

    try:
        await wait_until(running, within=60)
    except AssertionError as error:
        raise AssertionError(f"{await states(server)}\n{server.log[-4000:]}") from error


def clients_of(url: str) -> int:
    """Return the number of connections that Redis has, this one left out."""
    with socket.create_connection(("127.0.0.1", urlsplit(url).port)) as connection:
        connection.sendall(b"INFO clients\r\n")
        answer = connection.recv(65536).decode()
    (line,) = [line for line in answer.splitlines() if line.startswith("connected_clients:")]
    return int(line.partition(":")[2]) - 1


async def settle(server: Server, count: Callable[[], int], at_most: float) -> int:
    """Return a count once it is small enough, or after ten seconds."""
    with trio.move_on_after(60):
        while count() > at_most:  # noqa: ASYNC110 - another process closes them
            await trio.sleep(0.1)
    return count()


async def at_rest(count: Callable[[], int]) -> int:
    """Return a count once it has been the same for a second: plugins connect when they run already."""
    seen = [count()]
    with trio.move_on_after(60):
        while len(seen) < 11 or len(set(seen[-11:])) > 1:
            await trio.sleep(0.1)
            seen.append(count())
    return seen[-1]


async def run_rounds(server: Server, plugins: list[str], interrupt: Callable[[], Awaitable[None]]) -> None:
    """Interrupt the server repeatedly; it has no more descriptors afterwards."""
    process = psutil.Process(server.process.pid)
    await interrupt()
    await wait_running(server)
    before = await at_rest(process.num_fds)
    for _ in range(ROUNDS):
        await interrupt()
        await wait_running(server)
    after = await settle(server, process.num_fds, before + SPARE)

    assert after <= before + SPARE, f"{before} descriptors before, {after} after {ROUNDS} rounds"


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    environment = Environment(tmp_path / "home", name="ten")
    async with open_download(aircraft_database(tmp_path)) as url:
        tables = {"aircraft_db_url": url, "path_cache": str(tmp_path / "jet1090")}
        lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in tables.items())
        yield environment, f"[plugins.tangram_jet1090]\n{lines}\n"


@pytest.mark.parametrize("name", [*NAMES, "all"])
async def test_it_comes_back_with_the_embedded_broker(
    home: tuple[Environment, str], plugins: list[str]
) -> None:
    """After a killed broker, a restart by request and SIGHUP; a stop leaves no process."""
    environment, tables = home
    extra = BUDGETS + (tables if "jet1090" in str(plugins) else "")
    async with open_server(environment, *plugins, extra=extra) as server:
        await wait_running(server)

        async def interrupt() -> None:
            before = len(server.events("tangram ready"))
            server.broker().kill()
            await server.wait_line("tangram ready", times=before + 1)
            await trio.sleep(1)
            await wait_running(server)
            for plugin in plugins:
                await restart(server, plugin)
            server.send(signal.SIGHUP)
            await trio.sleep(1)

        await run_rounds(server, plugins, interrupt)
        below = server.children()
        assert await server.stop() == 0
        await wait_gone(below)


@pytest.mark.parametrize("name", [*NAMES, "all"])
async def test_it_comes_back_with_an_external_redis(
    home: tuple[Environment, str], plugins: list[str]
) -> None:
    """After Redis was restarted; it has no more connections than before."""
    environment, tables = home
    with open_broker() as broker:
        extra = tables if "jet1090" in str(plugins) else ""
        core = f'redis_url = "{broker.url}"'
        async with open_server(environment, *plugins, extra=extra, core=core) as server:
            await wait_running(server)
            await trio.sleep(1)

            async def interrupt() -> None:
                lost = len(server.events("redis lost"))
                broker.kill()
                await server.wait_line("redis lost", times=lost + 1)
                await trio.sleep(0.5)
                broker.start()
                await trio.sleep(1)
                await wait_running(server)
                for plugin in plugins:
                    await restart(server, plugin)

            await interrupt()
            await wait_running(server)
            clients = await at_rest(partial(clients_of, broker.url))
            await run_rounds(server, plugins, interrupt)
            now = await settle(server, partial(clients_of, broker.url), clients + SPARE)

            assert now <= clients + SPARE
            assert await server.stop() == 0


def test_which_plugins_are_there() -> None:
    """All ten with Python 3.12 or newer, nine without."""
    installed: list[Any] = [name for name in NAMES if is_installed(name)]

    assert set(NAMES) - set(installed) <= {"navaid"}
