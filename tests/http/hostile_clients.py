"""A server for tests with hostile clients, and a good client that must not notice them."""

from __future__ import annotations

import json
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

import attrs
import trio

from tangram.asgi import ASGIApp
from tangram.channels.policy import Authorizer
from tangram.gateway.channels import Channels
from tangram.http.hypercorn.channels import with_channels
from tests.channels.fakes import FakeBus, Settings
from tests.http.harness import Server, hello, serving
from tests.http.native.sockets import Socket, open_socket
from tests.http.serving import make_app, make_channels

MIB = 1024 * 1024

UPGRADE = (
    b"GET /websocket?vsn=2.0.0 HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def pages(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Serve routes that wait for ever, stream for ever, or answer with the request."""
    if scope["path"] == "/wait":
        while (await receive())["type"] != "http.disconnect":
            pass
    elif scope["path"] == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
    else:
        await hello(scope, receive, send)


@attrs.define
class Site:
    """A running server, the channels behind it, and a good client."""

    engine: str
    server: Server
    channels: Channels
    bus: FakeBus
    good_client: Socket
    told: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    async def open(self, *args: Any, **options: Any) -> Socket:
        return await open_socket(self.server, *args, **options)

    def publish(self, channel: str, payload: bytes) -> None:
        self.channels.deliver([(channel.encode(), payload)])

    async def check_serves(self) -> None:
        """Check that the good client gets events and replies, and that a new one is served."""
        self.told += 1
        self.publish("to:town:news", b'{"n":%d}' % self.told)
        assert (await self.good_client.event("news"))["n"] == self.told
        await self.good_client.push("1", f"p{self.told}", "town", "wave", {})
        assert (await self.good_client.event("phx_reply"))["status"] == "ok"
        async with await self.server.connect() as client:
            assert (await client.get("/hello")).status == 200

    async def wait_cleaned_up(self, limit: float = 20.0) -> None:
        """Wait until engine, hub and outboxes hold nothing but the good client."""
        with trio.fail_after(limit):
            while self._left() != (1, 1, 1, 0):  # noqa: ASYNC110 - statistics have no event
                await trio.sleep(0.05)
        assert self.server.engine.statistics().crashed == 0

    def _left(self) -> tuple[int, ...]:
        channels = self.channels.statistics()
        connections = self.server.engine.statistics().connections
        return connections, channels.connections, channels.hub.members, channels.pending


@asynccontextmanager
async def open_site(
    engine: str,
    settings: Settings | None = None,
    *,
    address: str | None = None,
    grace: float = 2.0,
    authorizers: Sequence[Authorizer] = (),
    **options: Any,
) -> AsyncIterator[Site]:
    """Serve channels and routes for the block.

    ``address`` is the apparent address of clients whose query is ``?from=elsewhere``: it is not loopback, so
    that the rate limits apply to them.
    """
    bus = FakeBus()
    channels = make_channels(bus, settings, authorizers=authorizers, wall_clock=lambda: 1_000_000.0)
    websockets: Any = with_channels(cast("ASGIApp", make_app(channels)), lambda: channels)

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await websockets(elsewhere(scope), receive, send)
        else:
            await pages(scope, receive, send)

    def elsewhere(scope: dict[str, Any]) -> dict[str, Any]:
        if address is not None and b"from=elsewhere" in scope["query_string"]:
            return {**scope, "client": (address, 1)}
        return scope

    if engine == "native":
        options.update(channels=channels, forwarded=elsewhere)
    elif settings is not None:
        options["max_message"] = settings.max_message
    async with trio.open_nursery() as nursery:
        await nursery.start(channels.run)
        async with serving(engine, app, grace=grace, **options) as server:
            good_client = await open_socket(server)
            await good_client.join("town", "good")
            yield Site(engine, server, channels, bus, good_client)
            await good_client.aclose()
        nursery.cancel_scope.cancel()


def reset(client: Any) -> None:
    """Close a connection by RST."""
    plain = client.stream
    plain.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    plain.socket.close()


@contextmanager
def bounded_memory(limit: int) -> Iterator[None]:
    """Check that Python never holds ``limit`` bytes more than before the block.

    Both ends of each connection count (``tracemalloc``); the kernel's socket buffers do not.
    """
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < limit, f"{peak - before} bytes at the peak, expected less than {limit}"


async def flood(stream: trio.abc.SendStream, piece: bytes, total: int) -> int:
    """Send ``piece`` repeatedly until ``total`` bytes are sent or the server closes.

    Return the number of bytes that were sent.
    """
    sent = 0
    try:
        while sent < total:
            await stream.send_all(piece)
            sent += len(piece)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    return sent


async def drain(stream: trio.abc.ReceiveStream) -> bytes:
    """Return the bytes that the server sends until it closes, for 30 s at most."""
    data = b""
    with trio.move_on_after(30):
        while True:
            try:
                chunk = bytes(await stream.receive_some(65536))
            except trio.BrokenResourceError:
                break
            if not chunk:
                break
            data += chunk
    return data


def message(*parts: Any) -> bytes:
    return json.dumps(parts).encode()
