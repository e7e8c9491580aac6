"""Servers on one Redis run an unmodified plugin for ``tangram_core`` once, whatever happens to its node."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest
import trio
from benchmarks.lib.witness import Witness
from trio_websocket import open_websocket_url

from tangram.testing import RealBroker, RunningProcess, open_broker, open_process
from tests.downstream.harness import Environment

pytestmark = pytest.mark.slow

LEASE: Final = 2.0
"""Seconds of a lease; half a second of it passes between two renewals."""
AWAY: Final = float(os.environ.get("TANGRAM_AWAY", "5"))
"""Seconds for which a process is stopped, or cut off: longer than its lease."""
TAKE_OVER: Final = LEASE + 1
"""Seconds within which another node must publish after the holder has died."""
BUSY: Final = 10.0
"""Further seconds on a machine that does other work besides."""

PLUGIN: Final = """
import asyncio
import json
import os

import tangram_core
from fastapi import APIRouter, WebSocket
from fastapi.responses import StreamingResponse

router = APIRouter(prefix="/counter")
plugin = tangram_core.Plugin(routers=[router])
state_of_process = {"count": 0}


@plugin.register_service()
async def count(state):
    state_of_process["count"] = 0
    while True:
        state_of_process["count"] += 1
        word = {"node": os.environ["NODE"], "count": state_of_process["count"]}
        await state.redis_client.publish("to:counter:n", json.dumps(word))
        await asyncio.sleep(0.02)


@router.get("/node")
async def node():
    return {"node": os.environ["NODE"]}


@router.get("/lines")
async def lines():
    async def produce():
        for number in range(3):
            yield f"{os.environ['NODE']} {number}\\n"
            await asyncio.sleep(0.01)

    return StreamingResponse(produce(), media_type="text/plain")


@router.websocket("/echo")
async def echo(websocket: WebSocket):
    await websocket.accept()
    while True:
        await websocket.send_text(os.environ["NODE"] + " " + await websocket.receive_text())
"""


class Nodes:
    """The servers by their names."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.servers: dict[str, RunningProcess] = {}

    def home(self, name: str, host: str = "127.0.0.1") -> Environment:
        home = Environment(self.folder / name)
        (home.site / "counter.py").write_text(PLUGIN)
        home.announce("counter", "counter:plugin", group="tangram_core.plugins")
        settings = f'[channel]\njwt_secret = "{"x" * 40}"\n[cluster]\nnode = "{name}"\nlease_ttl = {LEASE}\n'
        home.configure(["counter"], extra=settings, core=f'redis_url = "redis://{host}:{self.port}"')
        return home

    async def start(self, stack: AsyncExitStack, name: str) -> RunningProcess:
        server = await stack.enter_async_context(open_process(self.home(name), environ={"NODE": name}))
        self.servers[name] = server
        await server.wait_ready()
        return server

    async def ask(self, name: str, path: str) -> str:
        async with httpx.AsyncClient(base_url=self.servers[name].home.url, timeout=60) as client:
            answer = await client.get(path)
            assert answer.status_code == 200, answer.text
            return answer.text


@asynccontextmanager
async def open_nodes(tmp_path: Path, *names: str) -> AsyncIterator[tuple[Nodes, Witness]]:
    with open_broker() as broker, Witness(broker.port, "to:counter:n") as witness:
        async with AsyncExitStack() as stack:
            nodes = Nodes(tmp_path, broker.port)
            for name in names:
                await nodes.start(stack, name)
            yield nodes, witness


async def test_the_plugin_runs_once_and_answers_from_every_node(tmp_path: Path) -> None:
    """Its route, its stream and its WebSocket answer alike from all three nodes."""
    async with open_nodes(tmp_path, "a", "b", "c") as (nodes, witness):
        holder = (await witness.wait_other(within=BUSY)).node
        answers = {json.loads(await nodes.ask(name, "/counter/node"))["node"] for name in nodes.servers}
        streams = {await nodes.ask(name, "/counter/lines") for name in nodes.servers}
        echoes = set()
        for server in nodes.servers.values():
            url = server.home.url.replace("http", "ws") + "/counter/echo"
            async with open_websocket_url(url) as websocket:
                await websocket.send_message("hello")
                echoes.add(await websocket.get_message())

        assert answers == {holder}
        assert streams == {"".join(f"{holder} {number}\n" for number in range(3))}
        assert echoes == {f"{holder} hello"}
        assert witness.turns() == [holder]


async def test_another_node_takes_over_from_a_killed_one(tmp_path: Path) -> None:
    """After SIGKILL the plugin publishes from another node within a lease and a second, and answers."""
    async with open_nodes(tmp_path, "a", "b", "c") as (nodes, witness):
        holder = (await witness.wait_other(within=BUSY)).node
        nodes.servers[holder].process.kill()
        killed = time.monotonic()
        first_word = await witness.wait_other(holder, within=TAKE_OVER + BUSY)
        second = first_word.node
        await nodes.servers.pop(holder).wait_end()
        answers = {json.loads(await nodes.ask(name, "/counter/node"))["node"] for name in nodes.servers}

        assert first_word.at - killed < TAKE_OVER + BUSY
        assert first_word.number == 1
        assert answers == {second}
        assert witness.turns() == [holder, second]


async def test_a_stopped_process_publishes_nothing_when_it_goes_on(tmp_path: Path) -> None:
    """A node that was stopped by SIGSTOP for longer than its lease finds it taken, and stands by."""
    async with open_nodes(tmp_path, "a", "b") as (nodes, witness):
        holder = (await witness.wait_other(within=BUSY)).node
        process = nodes.servers[holder].process
        process.send_signal(signal.SIGSTOP)
        try:
            second = (await witness.wait_other(holder, within=TAKE_OVER + BUSY)).node
            await trio.sleep(AWAY - LEASE)
        finally:
            process.send_signal(signal.SIGCONT)
        await witness.wait_more(100, within=BUSY)  # two seconds
        answers = {json.loads(await nodes.ask(name, "/counter/node"))["node"] for name in nodes.servers}

        assert witness.turns() == [holder, second]
        assert answers == {second}


@contextmanager
def open_namespace(name: str) -> Iterator[tuple[str, str]]:
    """Make a network namespace that is connected to this machine; yield this side's device and address."""
    device, address = f"{name}0", "10.213.77.1"
    steps = [
        f"ip netns add {name}",
        f"ip link add {device} type veth peer name {name}1 netns {name}",
        f"ip addr add {address}/24 dev {device}",
        f"ip link set {device} up",
        f"ip -n {name} addr add 10.213.77.2/24 dev {name}1",
        f"ip -n {name} link set {name}1 up",
        f"ip -n {name} link set lo up",
    ]
    try:
        for step in steps:
            subprocess.run(step.split(), check=True, capture_output=True, timeout=60)
        yield device, address
    finally:
        subprocess.run(["ip", "link", "del", device], check=False, capture_output=True, timeout=60)
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=60)


def set_link(device: str, state: str) -> None:
    """Cut a device off, or connect it again."""
    subprocess.run(["ip", "link", "set", device, state], check=True, timeout=60)


def may_make_namespaces() -> bool:
    """Return whether this process may make network namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "tgprobe"], check=False, capture_output=True, timeout=60)
    subprocess.run(["ip", "netns", "del", "tgprobe"], check=False, capture_output=True, timeout=60)
    return made.returncode == 0


def run_inside(home: Environment, namespace: str) -> None:
    """Let the processes of a home run inside of a namespace."""
    program = home.folder / "python"
    program.write_text(f'#!/bin/sh\nexec ip netns exec {namespace} "{home.python}" "$@"\n')
    program.chmod(0o755)
    home.python = program


def listen_everywhere() -> RealBroker:
    return RealBroker("--bind", "127.0.0.1", "10.213.77.1", "--protected-mode", "no")


async def test_a_node_that_is_cut_off_from_redis_stops_before_another_starts(tmp_path: Path) -> None:
    """Its own deadline ends the plugin; when the network is back, the node stands by."""
    if not may_make_namespaces():
        pytest.skip("network namespaces need root, the command ip, and a kernel that allows them")
    name = f"tg{os.getpid() % 10000}"
    async with AsyncExitStack() as stack:
        device, address = stack.enter_context(open_namespace(name))
        broker = listen_everywhere()
        stack.callback(broker.kill)
        await trio.to_thread.run_sync(broker.start)
        witness = stack.enter_context(Witness(broker.port, "to:counter:n"))
        nodes = Nodes(tmp_path, broker.port)
        far = nodes.home("far", address)
        run_inside(far, name)
        server = await stack.enter_async_context(open_process(far, environ={"NODE": "far"}))
        await server.wait_ready()
        await witness.wait_other(within=BUSY)
        await nodes.start(stack, "near")
        set_link(device, "down")
        assert (await witness.wait_other("far", within=TAKE_OVER + BUSY)).node == "near"
        await server.wait_line("plugin stopped: its lease is lost")
        await trio.sleep(AWAY - LEASE)
        set_link(device, "up")
        await witness.wait_more(100, within=BUSY)  # two seconds

        assert witness.turns() == ["far", "near"]
