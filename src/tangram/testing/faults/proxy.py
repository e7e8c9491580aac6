"""A proxy that spoils connections on purpose: put it before Redis or before the web port of a server.

    async with open_proxy(host, port) as proxy:
        proxy.latency = 0.05
        ...  # connect to proxy.host, proxy.port

Settings may be changed at any time and hold for what passes from then on, in both directions.
"""

from __future__ import annotations

import random
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

__all__ = ["Proxy", "open_proxy"]

CHUNK = 65536
CONNECT_SECONDS = 10.0
"""For the target to take a connection, as a client would wait; then the client is reset."""

PIECES = 10_000
"""Of so many pieces the sizes are kept: some kB of seven bytes each."""

RESET = b"\x01\x00\x00\x00\x00\x00\x00\x00"
"""SO_LINGER on, zero seconds: close() sends a reset."""


class Proxy:
    """Passes bytes on; made by `open_proxy`."""

    def __init__(self, host: str, port: int, seed: int) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.latency = 0.0
        """Seconds before each piece is passed on."""
        self.jitter = 0.0
        """Seconds more, at most, drawn from the seed."""
        self.bandwidth = 0.0
        """Bytes a second; 0 is no bound."""
        self.slice = 0
        """Bytes that are passed on at once; 0 is as they come."""
        self.black_hole = False
        """Nothing is passed on, and nobody is told."""
        self.refuse = False
        """New connections are reset."""
        self.connections = 0
        """So many were made so far."""
        self.pieces: deque[int] = deque(maxlen=PIECES)
        """The sizes in bytes of what was passed on, or swallowed, at once; the last ones."""
        self._target = (host, port)
        self._rng = random.Random(seed)  # noqa: S311 - reproducible
        self._pairs: set[tuple[trio.SocketStream, trio.SocketStream]] = set()

    def reset_all(self) -> None:
        """Reset every connection, on both sides."""
        for pair in list(self._pairs):
            for stream in pair:
                _reset(stream)

    def half_close_all(self) -> None:
        """Send both sides the end of the stream, whatever is on its way to them."""
        for pair in list(self._pairs):
            for stream in pair:
                # Not send_eof: a task of ours may be sending on it just now.
                with suppress(OSError):
                    stream.socket.shutdown(socket.SHUT_WR)

    async def carry(self, client: trio.SocketStream) -> None:
        """One connection, from accept to its end."""
        self.connections += 1
        if self.refuse:
            _reset(client)
            return
        try:
            with trio.fail_after(CONNECT_SECONDS):
                server = await trio.open_tcp_stream(*self._target)
        except (OSError, trio.TooSlowError):
            _reset(client)
            return
        pair = (client, server)
        self._pairs.add(pair)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pass_on, client, server, nursery.cancel_scope)
                nursery.start_soon(self._pass_on, server, client, nursery.cancel_scope)
        finally:
            self._pairs.discard(pair)
            for stream in pair:
                # Not aclose: under cancellation its checkpoint would leave the second one open.
                stream.socket.close()

    async def _pass_on(
        self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        try:
            while data := await source.receive_some(CHUNK):
                pieces = self._slices(bytes(data))
                # Noted when they are cut: who changes a setting can tell what was cut under it.
                self.pieces.extend(map(len, pieces))
                for piece in pieces:
                    await self._wait(len(piece))
                    if not self.black_hole:
                        await sink.send_all(piece)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            scope.cancel()

    def _slices(self, data: bytes) -> list[bytes]:
        size = self.slice or len(data)
        return [data[at : at + size] for at in range(0, len(data), size)]

    async def _wait(self, size: int) -> None:
        seconds = self.latency + self._rng.uniform(0, self.jitter)
        if self.bandwidth:
            seconds += size / self.bandwidth
        if seconds:
            await trio.sleep(seconds)


def _reset(stream: trio.SocketStream) -> None:
    if stream.socket.fileno() >= 0:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        stream.socket.close()


@asynccontextmanager
async def open_proxy(host: str, port: int, *, seed: int = 0) -> AsyncIterator[Proxy]:
    """A proxy on a free port of loopback before ``host`` and ``port``."""
    proxy = Proxy(host, port, seed)
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host=proxy.host)
        proxy.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, proxy.carry, [listener])
        try:
            yield proxy
        finally:
            nursery.cancel_scope.cancel()
