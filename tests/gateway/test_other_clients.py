"""Clients other than phoenix.js, unmodified: realtime-js from npm, and a client from PyPI."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

import msgspec
import pytest
import trio

from tangram.channels.tokens import Claims, mint
from tangram.testing.run.transport import SECRET, RunningTransport, open_transport
from tests.channels.fakes import Settings
from tests.e2e.prepare import find_node

pytestmark = pytest.mark.slow

DRIVERS: Final = Path(__file__).parent / "other_clients"


def token(topic: str) -> str:
    return mint(Claims("me", topic, 4_000_000_000), SECRET)


class Program:
    """A running program whose lines are read one by one."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._rest = b""

    async def line(self) -> str:
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            data = await self._process.stdout.receive_some()
            assert data, "the program has ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()


async def start(nursery: trio.Nursery, *command: str) -> Program:
    run: Any = partial(trio.run_process, stdin=subprocess.PIPE, stdout=subprocess.PIPE, check=False)
    return Program(await nursery.start(run, list(command)))


async def echo(server: RunningTransport, event: str) -> None:
    """Publish to the room everything that a client pushes with this event, as a plugin would."""
    seen = 0
    while True:
        payloads = server.bus.payloads(f"from:realtime:room:{event}")
        for payload in payloads[seen:]:
            server.publish(f"to:realtime:room:{event}", payload)
        seen = len(payloads)
        await trio.sleep(0.01)


@pytest.mark.parametrize("engine", ["native", "hypercorn"])
async def test_realtime_js_joins_and_exchanges_messages(engine: Literal["native", "hypercorn"]) -> None:
    """With vsn=1.0.0 it joins, its message is acknowledged, and the echo arrives.

    (Its vsn=2.0.0 has binary frames of its own, kinds 3 and 4, which Phoenix does not have.)
    """
    node, packages = find_node()
    observations: list[dict[str, Any]] = []
    with trio.fail_after(20):
        async with open_transport(engine=engine) as server, trio.open_nursery() as nursery:
            nursery.start_soon(echo, server, "broadcast")
            url = server.url.replace("http", "ws", 1)
            driver = str(DRIVERS / "realtime.mjs")
            program = await start(nursery, node, driver, str(packages), url, token("realtime:room"), "1.0.0")
            while not {"broadcast", "sent"} <= {one["kind"] for one in observations}:
                observations.append(json.loads(await program.line()))
            nursery.cancel_scope.cancel()

    assert {"kind": "status", "status": "SUBSCRIBED"} in observations
    assert {"kind": "sent", "result": "ok"} in observations
    assert {"kind": "broadcast", "payload": {"n": 1}} in observations


@pytest.mark.parametrize(
    ("version", "join_ref", "arrives"), [("1.0", False, True), ("2.0", False, False), ("2.0", True, True)]
)
async def test_a_python_client_joins_and_receives(version: str, join_ref: bool, arrives: bool) -> None:
    """With V2 it drops broadcasts without its own ref, which ``broadcast_join_ref`` sends."""
    lines: list[str] = []
    with trio.fail_after(20):
        settings = Settings(broadcast_join_ref=join_ref)
        async with open_transport(settings) as server, trio.open_nursery() as nursery:
            url = server.url.replace("http", "ws", 1) + f"/websocket?userToken={quote(token('room'))}"
            driver = str(DRIVERS / "phoenix_python.txt")
            program = await start(nursery, sys.executable, driver, url, version)
            lines.append(await program.line())
            server.publish("to:room:shout", msgspec.json.encode({"n": 1}))
            while lines[-1] != "left":
                lines.append(await program.line())
            nursery.cancel_scope.cancel()

    assert lines == ["joined", "received {'n': 1}" if arrives else "nothing", "left"]
