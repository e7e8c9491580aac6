"""Two nodes: one that takes requests from clients, and one that holds the plugin."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
import trio.testing

from tangram.asgi import ASGIApp, Receive, Scope, Send, send_json
from tangram.http.forward.forwarder import Forwarder
from tangram.http.forward.in_flight import InFlight
from tangram.http.forward.pool import Pool
from tangram.http.forward.receiver import Receiver
from tests.http.harness import Client, Server, serving

SECRET = "the secret of both nodes"
PLUGIN = "placed"


@attrs.define
class Node:
    """A record of a node, as the registry has it."""

    id: str
    address: str | None


@attrs.define
class Placement:
    """A placement that the test changes."""

    where: Node | None = None
    asked: int = 0
    on_asked: Callable[[int], None] = lambda _count: None
    """Called at each question, with the number of them."""

    def holder(self, plugin: str) -> Node | None:
        assert plugin == PLUGIN
        self.asked += 1
        self.on_asked(self.asked)
        return self.where


@attrs.define
class TwoNodes:
    """The first node with its clients, and the holder."""

    front: Server
    holder: Server
    receiver: Receiver
    forwarder: Forwarder
    placement: Placement
    here: list[bool]
    """Whether the plugin runs on the first node."""
    in_flight: InFlight
    """The requests of the first node."""

    async def wait_asked(self) -> None:
        """Return when a request waits for the plugin."""
        asked = trio.Event()
        self.placement.on_asked = lambda _count: asked.set()
        await asked.wait()
        await trio.testing.wait_all_tasks_blocked(0.01)

    async def connect(self) -> Client:
        return await self.front.connect()

    @property
    def peer(self) -> Node:
        return Node("holder", f"127.0.0.1:{self.holder.port}")


@asynccontextmanager
async def two_nodes(
    app: ASGIApp,
    *,
    engine: str = "native",
    local: ASGIApp | None = None,
    holder_options: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[TwoNodes]:
    """Run two nodes for the block.

    Args:
        app: the application of the plugin, on the holder.
        engine: the engine of the first node.
        local: the application of the plugin on the first node.
        holder_options: options of the holder's engine.
        options: options of the first node's engine.
    """
    placement, here, in_flight = Placement(), [False], InFlight()
    pool = Pool("front", SECRET)
    forwarder = Forwarder(
        "front",
        placement,
        pool,
        running=lambda _: here[0],
        placed=lambda name: name == PLUGIN,
        in_flight=in_flight,
    )
    receiver = Receiver("holder", SECRET, app)

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        served = await forwarder.forward(PLUGIN, scope, receive, send)
        if served is not None:
            await (local or _local)(scope, served, send)

    inner = {"body_limit": lambda _: 0, "forwarded": receiver.client_of, **(holder_options or {})}
    async with serving("native", receiver, **inner) as holder:
        placement.where = Node("holder", f"127.0.0.1:{holder.port}")
        async with serving(engine, front, **options) as server:
            try:
                yield TwoNodes(server, holder, receiver, forwarder, placement, here, in_flight)
            finally:
                pool.close()


async def _local(scope: Scope, _receive: Receive, send: Send) -> None:
    await send_json(scope, send, 200, {"node": "front"})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the request as the application has seen it."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body", False):
            break
    seen = {
        "method": scope["method"],
        "path": scope["path"],
        "query": scope["query_string"].decode(),
        "client": scope["client"],
        "scheme": scope["scheme"],
        "version": scope["http_version"],
        "headers": [[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]],
        "length": len(body),
        "body": body[:1000].decode("latin-1"),
    }
    await send_json(scope, send, 200, seen)
