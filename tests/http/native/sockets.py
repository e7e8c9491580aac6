"""A WebSocket client on the I/O-free protocol of ``websockets``, and a native server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from tangram.channels.tokens import Claims, mint
from tangram.gateway.channels import Channels
from tangram.gateway.publishing import Backpressure
from tests.channels.fakes import FakeBus, Settings
from tests.http.harness import Server, hello, serving
from tests.http.serving import SECRET, make_channels


def token(topic: str, id_: str = "me") -> str:
    return mint(Claims(id_, topic, 4_000_000_000), SECRET)


@attrs.define
class Socket:
    """One WebSocket whose frames the test sends itself."""

    stream: trio.SocketStream
    protocol: ClientProtocol
    frames: list[Frame] = attrs.field(factory=list)

    async def flush(self) -> None:
        data = b"".join(self.protocol.data_to_send())
        if data:
            await self.stream.send_all(data)

    async def send(self, data: str | bytes) -> None:
        if isinstance(data, str):
            self.protocol.send_text(data.encode())
        else:
            self.protocol.send_binary(data)
        await self.flush()

    async def push(self, *message: Any) -> None:
        await self.send(json.dumps(message))

    async def join(self, topic: str, id_: str = "me") -> None:
        """Join a topic, and read up to the reply."""
        await self.push("1", "1", topic, "phx_join", {"token": token(topic, id_)})
        while True:
            message = json.loads(await self.receive())
            if message[3] == "phx_reply":
                assert message[4]["status"] == "ok", message
                return

    async def event(self, event: str) -> Any:
        """Return the payload of the next message with this event."""
        while True:
            message = json.loads(await self.receive())
            if message[3] == event:
                return message[4]

    async def reply(self, ref: str) -> Any:
        """Return the payload of the reply with this ref."""
        while True:
            message = json.loads(await self.receive())
            if message[3] == "phx_reply" and message[1] == ref:
                return message[4]

    async def receive(self) -> bytes:
        """Return the next message.

        Raises:
            EndOfChannel: the server has closed.
        """
        while True:
            frame = await self.frame()
            if frame.opcode in {Opcode.TEXT, Opcode.BINARY}:
                return bytes(frame.data)

    async def frame(self, limit: float = 30.0) -> Frame:
        """Return the next frame of any kind."""
        with trio.fail_after(limit):
            while not self.frames:
                try:
                    data = bytes(await self.stream.receive_some(65536))
                except trio.BrokenResourceError:
                    data = b""
                if not data:
                    raise trio.EndOfChannel
                self.protocol.receive_data(data)
                self.frames += [
                    event for event in self.protocol.events_received() if isinstance(event, Frame)
                ]
                await self.flush()
            return self.frames.pop(0)

    async def closed(self, limit: float = 30.0) -> int | None:
        """Read until the server has closed; return its close code, or None if it sent none."""
        with trio.fail_after(limit):
            try:
                while True:
                    await self.frame(limit)
            except trio.EndOfChannel:
                pass
        return self.protocol.close_rcvd.code if self.protocol.close_rcvd is not None else None

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.stream)


class Refusal(Exception):
    def __init__(self, response: Response) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self.body = response.body
        super().__init__(response)


async def open_socket(
    server: Server,
    path: str = "/websocket?vsn=2.0.0",
    *,
    headers: Sequence[tuple[str, str]] = (),
    subprotocols: Sequence[Any] = (),
    extensions: Sequence[Any] = (),
    behind: bytes = b"",
) -> Socket:
    """Connect a WebSocket.

    ``behind`` is sent in one write with the handshake.

    Raises:
        Refusal: the handshake was refused.
    """
    stream = await trio.open_tcp_stream("127.0.0.1", server.port)
    protocol = ClientProtocol(
        parse_uri(f"ws://127.0.0.1:{server.port}{path}"),
        subprotocols=subprotocols or None,
        extensions=list(extensions) or None,
        max_size=None,
    )
    request = protocol.connect()
    request.headers.update(Headers(headers))
    protocol.send_request(request)
    await stream.send_all(b"".join(protocol.data_to_send()) + behind)
    with trio.fail_after(10):
        while not (events := protocol.events_received()):
            data = bytes(await stream.receive_some(65536))
            if data:
                protocol.receive_data(data)
            else:
                protocol.receive_eof()
    response = events[0]
    assert isinstance(response, Response)
    if response.status_code != 101:
        await trio.aclose_forcefully(stream)
        raise Refusal(response)
    return Socket(stream, protocol, [event for event in events[1:] if isinstance(event, Frame)])


def masked(data: bytes, opcode: int = 1, *, fin: bool = True) -> bytes:
    """Return one frame as a client sends it."""
    return Frame(Opcode(opcode), data, fin).serialize(mask=True)


@attrs.define
class Served:
    """A native server with channels."""

    server: Server
    channels: Channels
    bus: FakeBus

    async def open(self, *args: Any, **options: Any) -> Socket:
        return await open_socket(self.server, *args, **options)

    def publish(self, channel: str, payload: bytes) -> None:
        self.channels.deliver([(channel.encode(), payload)])


@asynccontextmanager
async def serving_channels(
    settings: Settings | None = None,
    *,
    backpressure: Callable[[], Backpressure | None] = lambda: None,
    **options: Any,
) -> AsyncIterator[Served]:
    bus = FakeBus()
    channels = make_channels(bus, settings, backpressure=backpressure)
    async with trio.open_nursery() as nursery:
        await nursery.start(channels.run)
        async with serving("native", hello, channels=channels, **options) as server:
            yield Served(server, channels, bus)
        nursery.cancel_scope.cancel()
