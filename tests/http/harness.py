"""Run either engine, and speak HTTP to it through h11, an independent implementation."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import attrs
import h11
import trio
import trio.testing

from tangram.asgi import ASGIApp
from tangram.http.engine import Engine
from tangram.http.listeners import HeldSocket
from tangram.testing.run.transport import RunningEngine, open_engine

Json = Any


@attrs.frozen
class Settings:
    """The part of ``[server]`` that the engines read, with the defaults of the configuration."""

    max_header_bytes: int = 32768
    max_headers: int = 100
    max_body: int = 2 * 1024 * 1024
    max_pending_bytes: int = 128 * 1024 * 1024
    body_timeout: float = 120.0
    header_timeout: float = 10.0
    idle_timeout: float = 75.0
    write_timeout: float = 10.0
    max_connections: int = 10000
    max_connections_per_address: int = 0
    access_log: bool = False


@attrs.define
class Server:
    """The kit's running engine, and the clients of one test."""

    running: RunningEngine
    connected: int = 0
    """Connections made by this test."""

    @property
    def held(self) -> list[HeldSocket]:
        return self.running.held

    @property
    def engine(self) -> Engine:
        return self.running.engine

    @property
    def port(self) -> int:
        return self.running.port

    async def connect(self) -> Client:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        self.connected += 1
        return Client(stream)

    async def wait_closed(self, limit: float = 5.0) -> None:
        """Wait until no connection is open.

        A connection that still waits in the kernel to be accepted counts as open.
        """
        with trio.move_on_after(1.0):
            while self.engine.statistics().accepted < self.connected:  # noqa: ASYNC110 - as below
                await trio.sleep(0.1)
        await self.running.wait_closed(limit)

    async def wait_requests(self, count: int = 1, limit: float = 60.0) -> None:
        """Wait until ``count`` requests have reached the application and its tasks have settled.

        A test cannot know when the kernel hands over the bytes of a client, and a connection that is still
        idle for the engine is closed at a stop.
        """
        with trio.fail_after(limit):
            while self.engine.statistics().requests < count:  # noqa: ASYNC110 - statistics have no event
                await trio.sleep(0.01)
        await trio.testing.wait_all_tasks_blocked(0.02)

    async def stop(self) -> float:
        """Cancel the engine and wait for its end; return the seconds that took."""
        return await self.running.stop()


ENGINE_OPTIONS = (
    "certfile",
    "keyfile",
    "close_code",
    "max_message",
    "channels",
    "compression",
    "forwarded",
    "ping_interval",
    "held",
    "crashes",
    "body_limit",
    "error_headers",
    "is_proxy",
    "takes_waiting",
)


@asynccontextmanager
async def serving(name: str, app: ASGIApp, *, grace: float = 5.0, **options: Any) -> AsyncIterator[Server]:
    """Run the engine ``name`` for the block.

    Options that the engine does not know are fields of ``Settings``.
    """
    arguments = {key: options.pop(key) for key in ENGINE_OPTIONS if key in options}
    async with open_engine(name, app, settings=Settings(**options), grace=grace, **arguments) as running:
        yield Server(running)


@attrs.frozen
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    keep: bool
    """Whether the connection can be used again."""

    def json(self) -> Json:
        return json.loads(self.body)


@attrs.define
class Client:
    """One connection whose bytes the test sends itself."""

    stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]
    http: h11.Connection = attrs.field(factory=lambda: h11.Connection(h11.CLIENT))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await trio.aclose_forcefully(self.stream)

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def get(self, target: str = "/", *headers: tuple[str, str], method: str = "GET") -> Answer:
        """Send one request without a body, and return its answer."""
        event = h11.Request(method=method, target=target, headers=[("host", "test"), *headers])
        data = self.http.send(event)
        end = self.http.send(h11.EndOfMessage())
        assert data is not None
        await self.send(data + (end or b""))
        return await self.answer()

    async def post(self, target: str, body: bytes, *headers: tuple[str, str]) -> Answer:
        """Send one request with a body of known length, and return its answer."""
        head = [("host", "test"), ("content-length", str(len(body))), *headers]
        parts = [self.http.send(h11.Request(method="POST", target=target, headers=head))]
        parts += [self.http.send(h11.Data(data=body)), self.http.send(h11.EndOfMessage())]
        await self.send(b"".join(part for part in parts if part))
        return await self.answer()

    async def answer_to(self, method: str) -> Answer:
        """Return the answer to a request that the test has sent as bytes."""
        self.http.send(h11.Request(method=method, target="/", headers=[("host", "test")]))
        self.http.send(h11.EndOfMessage())
        return await self.answer()

    def reset(self) -> None:
        """Make the next close a reset."""
        plain = self.stream
        assert isinstance(plain, trio.SocketStream)
        plain.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def answer(self) -> Answer:
        """Read one answer by h11; 1xx responses are skipped."""
        status, headers, body = 0, {}, b""
        while True:
            event = self.http.next_event()
            if event is h11.NEED_DATA:
                self.http.receive_data(bytes(await self.stream.receive_some(65536)))
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode(): value.decode("latin1") for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            elif isinstance(event, h11.ConnectionClosed):
                raise ConnectionResetError("the server closed without an answer")
        keep = self.http.our_state is h11.DONE and self.http.their_state is h11.DONE
        if keep:
            self.http.start_next_cycle()
        return Answer(status, headers, body, keep)

    async def rest(self, limit: float = 30.0) -> bytes:
        """Return all bytes until the server closes, within ``limit`` seconds."""
        data = b""
        with trio.fail_after(limit):
            while True:
                try:
                    chunk = await self.stream.receive_some(65536)
                except trio.BrokenResourceError:
                    return data
                if not chunk:
                    return data
                data += chunk


async def hello(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer with the request as JSON."""
    body = b""
    while scope["type"] == "http":
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    answer = json.dumps(
        {
            "method": scope["method"],
            "path": scope["path"],
            "raw_path": scope["raw_path"].decode("latin1"),
            "query": scope["query_string"].decode("latin1"),
            "version": scope["http_version"],
            "scheme": scope["scheme"],
            "headers": [[name.decode("latin1"), value.decode("latin1")] for name, value in scope["headers"]],
            "client": list(scope["client"]),
            "body": body.decode("latin1"),
        }
    ).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": answer})
