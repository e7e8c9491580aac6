"""Clients of several workers: rolling restarts, long records of the log, other sockets, and the operator."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tangram.client import fetch_token, open_socket
from tangram.client.channel import Channel
from tangram.client.socket import ClientSocket
from tests.e2e.harness import LONG, Home, open_process, wait_until
from tests.e2e.prepare import ROOT

pytestmark = pytest.mark.slow

TLS = ROOT / "tests" / "http" / "tls"
TOPIC = "numbers:ours"
HISTORY = '[[channel.history]]\ntopics = "numbers:*"\nsize = 5000\n'
MEMBERS = 6

COUNTER = """
import json
import os

import structlog
import tangram
import trio

router = tangram.APIRouter()
plugin = tangram.Plugin(instances="one", routers=[router])


@router.get("/counter/pid")
async def pid():
    return {"pid": os.getpid()}


@plugin.register_service()
async def count(state):
    # The last number is in the history itself, so that a new start goes on behind it.
    page = await state.history("numbers:ours", limit=1)
    number = json.loads(page.events[-1][1])["n"] if page.events else 0
    while True:
        number += 1
        await state.publish("to:numbers:ours:n", {"n": number})
        await trio.sleep(0.01)
"""

WORDY = """
import structlog
import tangram
import trio

plugin = tangram.Plugin()


@plugin.register_service()
async def talk(state):
    while True:
        structlog.get_logger("wordy").info("long", text="x" * 20_000)
        await trio.sleep(0.02)
"""


def configure(home: Home, *plugins: str, server: str = "", extra: str = "") -> None:
    home.configure(plugins, extra=extra)
    text = home.config.read_text().replace("[server]\n", f"[server]\nworkers = 2\n{server}\n")
    home.config.write_text(text)


class Member:
    """A client that remembers what it heard, and the members that were missing in what it knew."""

    def __init__(self, socket: ClientSocket, channel: Channel) -> None:
        self.socket, self.channel = socket, channel
        self.numbers: list[int] = []
        self.missing: list[set[str]] = []
        self.expected: set[str] = set()

    async def listen(self) -> None:
        async for event in self.channel:
            self.numbers.append(event.payload["n"])

    async def watch(self) -> None:
        """Note each presence that lacks a member. While this client is away, it knows the last one."""

        def look(present: Mapping[str, Any]) -> bool:
            if self.expected - present.keys():
                self.missing.append(self.expected - present.keys())
            return False

        await self.channel.wait_presence(look)


@asynccontextmanager
async def open_members(url: str) -> AsyncIterator[list[Member]]:
    """Join clients, and wait until each knows all."""
    async with trio.open_nursery() as nursery:
        members: list[Member] = []

        async def live(task_status: trio.TaskStatus[None]) -> None:
            token = await fetch_token(url, TOPIC)
            async with open_socket(url) as socket:
                channel = await socket.join(TOPIC, token=token.token, recover=True)
                member = Member(socket, channel)
                members.append(member)
                task_status.started()
                await member.listen()

        for _ in range(MEMBERS):
            await nursery.start(live)
        with trio.fail_after(LONG):
            for member in members:
                await member.channel.wait_presence(lambda present: len(present) == MEMBERS)
                member.expected = set(member.channel.presence)
                nursery.start_soon(member.watch)
        yield members
        nursery.cancel_scope.cancel()


async def wait_numbers(members: list[Member], more: int) -> None:
    """Wait until each has heard a number that is well behind all of now."""
    wanted = max(max(member.numbers, default=0) for member in members) + more

    async def heard() -> bool:
        return all(max(member.numbers, default=0) >= wanted for member in members)

    await wait_until(heard)


async def all_moved(members: list[Member], times: int) -> bool:
    """Return whether each has been moved that often: an old worker hands its clients over at its end."""
    return all(member.socket.connections > times for member in members)


async def test_clients_miss_nothing_and_see_all_members_over_rolling_restarts(home: Home) -> None:
    """Each is closed with 1012 and comes back with its history; all always see all."""
    home.install("counter", COUNTER)
    home.install("wordy", WORDY)
    grace = "[cluster]\npresence_grace = 60.0\n"  # so long a slow machine may need for a member to come back
    configure(home, "counter", "wordy", extra=HISTORY + grace)
    async with open_process(home) as server:
        await server.wait_line("all workers ready")
        async with open_members(server.url) as members:
            await wait_numbers(members, 20)
            for times in (1, 2):
                server.send(signal.SIGHUP)
                await server.wait_line("rolling restart over", times=times)
                await wait_until(partial(all_moved, members, times))
                await wait_numbers(members, 20)

            for member in members:
                codes = set(member.socket.server_codes)
                assert (codes, member.socket.connections >= 3) == ({1012}, True)
                assert member.channel.recovered
                assert member.numbers == list(range(member.numbers[0], member.numbers[-1] + 1))
                assert member.missing == []
        assert await server.stop() == 0
        long = [json.loads(line) for line in server.err if "xxxx" in line]
        assert {len(record["text"]) for record in long} == {20_000}  # each line is whole
        assert len({record["worker"] for record in long}) >= 2


async def test_operator_reaches_the_worker_that_runs_a_plugin(home: Home) -> None:
    """`restart`, `status`, both health routes and `--plugin`, whichever worker answers."""
    home.install("counter", COUNTER)
    configure(home, extra=HISTORY)

    async def run(*words: str) -> tuple[int, str]:
        async with open_process(home, *words, "--config", str(home.config)) as command:
            return await command.wait_end(within=LONG), command.log

    serve = ("serve", "--config", str(home.config), "--log-format", "json", "--plugin", "counter")
    async with open_process(home, *serve) as server:
        await server.wait_line("all workers ready")
        pid = (await server.get("/counter/pid"))["pid"]
        results = [await run("restart", "counter") for _ in range(4)]
        status = await run("status")
        health = [
            await server.request("GET", f"/-/{name}") for name in ("readyz", "healthz") for _ in range(3)
        ]

        assert [result[0] for result in results] == [0] * 4, results
        assert status[0] == 0, status
        assert [answer.status_code for answer in health] == [200] * 6
        assert "counter" in status[1]
        assert (await server.get("/counter/pid"))["pid"] == pid
        restarts = server.events("planned restart", child="plugin:counter")
        assert len({record["worker"] for record in restarts}) == 1
        assert len(restarts) == 4


async def test_tls_over_hypercorn(home: Home) -> None:
    """Both workers answer over TLS on the sockets of the parent."""
    tls = f'engine = "hypercorn"\ntls_cert = "{TLS}/cert.pem"\ntls_key = "{TLS}/key.pem"'
    configure(home, "tangram_e2e", server=tls)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with open_process(home) as server:
        await server.wait_line("all workers ready")
        found: set[int] = set()
        url = f"https://127.0.0.1:{home.port}/e2e/ping"

        async def both() -> bool:
            async with httpx.AsyncClient(verify=context) as client:
                found.add((await client.get(url)).json()["pid"])
            return len(found) == 2

        await wait_until(both)
        assert await server.stop() == 0


async def ask_unix(path: Path | str) -> int:
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        return int((await client.get("/e2e/ping")).json()["pid"])


async def test_a_unix_socket_is_served_by_all_workers(home: Home) -> None:
    """The parent opens it, and removes it at the end."""
    path = home.folder / "socket"
    configure(home, "tangram_e2e")
    both_hosts = f'host = ["127.0.0.1", "unix:{path}"]'
    home.config.write_text(home.config.read_text().replace('host = "127.0.0.1"', both_hosts))
    async with open_process(home) as server:
        await server.wait_line("all workers ready")
        found: set[int] = set()

        async def both() -> bool:
            found.add(await ask_unix(path))
            return len(found) == 2

        await wait_until(both)
        assert await server.stop() == 0
        assert not path.exists()


ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3, inheritable=True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


async def test_a_socket_of_systemd_is_shared_by_all_workers(home: Home) -> None:
    """LISTEN_FDS is the parent's; connections that wait at the start are accepted."""
    configure(home, "tangram_e2e")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        home.port = listener.getsockname()[1]
        command = ["-m", "tangram", "serve", "--config", str(home.config), "--log-format", "json"]
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", ACTIVATE, str(listener.fileno()), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            env={**os.environ, **home.environ},
        )
        listener.close()
        try:
            found: set[int] = set()

            async def both() -> bool:
                async with httpx.AsyncClient(base_url=home.url) as client:
                    found.add((await client.get("/e2e/ping")).json()["pid"])
                return len(found) == 2

            await wait_until(both)
            process.terminate()
            with trio.fail_after(LONG):
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
