"""Two whole servers on one Redis: one holds a plugin, the other one forwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio

from tangram.cluster import NodeRecord
from tangram.plugins.plugin import Plugin
from tangram.routing import APIRouter, Request, StreamingResponse, WebSocket
from tangram.testing import MemoryBroker, RunningTangram, open_tangram
from tests.http.serving import open_raw

ENGINES = pytest.mark.parametrize("engine", ["native", "hypercorn"])
NAME = "placed"


def placed_plugin(node: str) -> Plugin:
    """Return a plugin whose routes name the node on which they run."""
    router = APIRouter(prefix="/placed")

    @router.get("/who/{word}")
    async def who(word: str, request: Request) -> dict[str, Any]:
        assert request.client is not None
        return {"node": node, "word": word, "client": request.client.host, "host": request.headers["host"]}

    @router.post("/upload", max_body=4_000_000)
    async def upload(request: Request) -> dict[str, Any]:
        return {"node": node, "bytes": len(await request.body())}

    @router.get("/stream")
    async def stream() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            for number in range(3):
                yield b"%d\n" % number
                await trio.lowlevel.checkpoint()

        return StreamingResponse(pieces(), media_type="text/plain")

    @router.websocket("/echo")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(f"{node} {await websocket.receive_text()}")

    plugin = Plugin(routers=[router])
    plugin.name = NAME
    return plugin


@attrs.define
class Placement:
    """A placement that the test decides."""

    where: NodeRecord | None = None

    def holder(self, plugin: str) -> NodeRecord | None:
        assert plugin == NAME
        return self.where


@asynccontextmanager
async def open_node(broker: MemoryBroker, node: str, **server: Any) -> AsyncIterator[RunningTangram]:
    config = {
        "core": {"redis_url": f"redis://127.0.0.1:{broker._port}"},
        "cluster": {"node": node},
        "channel": {"jwt_secret": "the same secret on every node of this cluster"},
        "server": {"port": 0, **server},
    }

    def place(running: RunningTangram) -> None:
        running.planned = True

    # The census of one server would count the other one.
    async with open_tangram([placed_plugin(node)], config, on_server=place, checks=()) as running:
        yield running


@asynccontextmanager
async def two_servers(**first: Any) -> AsyncIterator[tuple[RunningTangram, RunningTangram]]:
    """Run two nodes, of which the second one holds the plugin."""
    broker = MemoryBroker()
    async with trio.open_nursery() as nursery:
        await nursery.start(broker.run)
        async with open_node(broker, "a", **first) as a, open_node(broker, "b") as b:
            tree = a.server.tree
            assert tree is not None
            assert tree.nodes is not None
            while "b" not in tree.nodes.alive():
                await tree.nodes.wait_change()
            yield a, b
        nursery.cancel_scope.cancel()


@ENGINES
async def test_a_placed_plugin_answers_from_every_node(engine: str) -> None:
    """Routes, bodies, streams and WebSockets are those of the node that holds the plugin."""
    async with two_servers(engine=engine) as (a, b):
        await hold(a, b)
        answer = await a.http.get("/placed/who/me", headers={"origin": a.url})
        assert answer.json() == {
            "node": "b",
            "word": "me",
            "client": "127.0.0.1",
            "host": a.url.removeprefix("http://"),
        }
        assert answer.headers["server-timing"] == 'node;desc="b"'
        assert answer.headers["access-control-allow-origin"] == a.url
        assert (await a.http.post("/placed/upload", content=b"x" * 1_000_000)).json() == {
            "node": "b",
            "bytes": 1_000_000,
        }
        assert (await a.http.get("/placed/stream")).text == "0\n1\n2\n"
        assert (await a.http.get("/placed/who/")).status_code == (
            await b.http.get("/placed/who/")
        ).status_code
        async with open_raw(a.url + "/placed/echo") as client:
            await client.send_message("hello")
            assert await client.get_message() == "b hello"


async def hold(a: RunningTangram, b: RunningTangram) -> Placement:
    """Let ``b`` hold the plugin, and put it into standby on ``a``."""
    placement = Placement()
    for running in (a, b):
        tree = running.server.tree
        assert tree is not None
        assert tree.nodes is not None
        tree.placement.holder = placement.holder  # type: ignore[method-assign]
        tree.placement._placed = lambda: (NAME,)
        placement.where = tree.nodes.alive()["b"]
    assert a.server.tree is not None
    assert a.server.tree.operator is not None
    await a.server.tree.operator.stop_plugin(NAME)  # type: ignore[attr-defined]
    return placement
