"""A WebSocket client for tests: the protocol of the package websockets over a Trio stream."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

__all__ = ["Closed", "WebSocket", "open_websocket"]

SECONDS = 5.0
"""Seconds for each answer of the server."""


class Closed(Exception):
    """The server has closed the connection; its code and reason."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class WebSocket:
    """One open connection; whole messages alone."""

    def __init__(self, stream: trio.SocketStream, protocol: ClientProtocol) -> None:
        self.stream = stream
        self.protocol = protocol
        self._events: deque[Frame | Response] = deque()
        self._parts: list[bytes] = []

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that the server has chosen."""
        return self.protocol.subprotocol

    async def send(self, message: str | bytes) -> None:
        """Send one message."""
        if isinstance(message, str):
            self.protocol.send_text(message.encode())
        else:
            self.protocol.send_binary(message)
        await self.flush()

    async def receive(self) -> str | bytes:
        """Return the next message.

        Raises:
            Closed: The server has closed the connection.
        """
        opcode = Opcode.TEXT
        while True:
            frame = await self.event()
            assert isinstance(frame, Frame)
            if frame.opcode in {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}:
                opcode = opcode if frame.opcode is Opcode.CONT else frame.opcode
                self._parts.append(bytes(frame.data))
                if frame.fin:
                    data, self._parts = b"".join(self._parts), []
                    return data.decode() if opcode is Opcode.TEXT else data

    async def close(self, code: int) -> None:
        """Send a close frame."""
        self.protocol.send_close(code)
        await self.flush()

    async def event(self) -> Frame | Response:
        """Return the next frame, or the response of the handshake."""
        with trio.fail_after(SECONDS):
            while not self._events:
                data = await self.stream.receive_some(65536)
                if data:
                    self.protocol.receive_data(bytes(data))
                else:
                    self.protocol.receive_eof()
                await self.flush()
                self._events.extend(
                    event for event in self.protocol.events_received() if isinstance(event, Frame | Response)
                )
                if self.protocol.close_rcvd is not None or not data:
                    self._raise_closed()
        return self._events.popleft()

    def _raise_closed(self) -> None:
        if any(isinstance(event, Frame) and event.opcode is not Opcode.CLOSE for event in self._events):
            return
        close = self.protocol.close_rcvd
        raise Closed(None if close is None else close.code, "" if close is None else close.reason)

    async def flush(self) -> None:
        """Send everything that the protocol has to say."""
        for data in self.protocol.data_to_send():
            if data:
                await self.stream.send_all(data)


@asynccontextmanager
async def open_websocket(url: str, subprotocols: Sequence[str] = ()) -> AsyncIterator[WebSocket]:
    """Connect to a ``ws`` URL for the length of a block."""
    uri = parse_uri(url)
    protocol = ClientProtocol(uri, subprotocols=[Subprotocol(name) for name in subprotocols] or None)
    async with await trio.open_tcp_stream(uri.host, uri.port) as stream:
        socket = WebSocket(stream, protocol)
        request = protocol.connect()
        assert isinstance(request.headers, Headers)
        protocol.send_request(request)
        await socket.flush()
        response = await socket.event()
        assert isinstance(response, Response)
        assert response.status_code == 101
        yield socket
