"""A TCP proxy that spoils connections on purpose, before Redis or a web port.

    async with open_proxy(host, port) as proxy:
        proxy.latency = 0.05
        ...  # connect to proxy.host, proxy.port

Settings may be changed at any time and apply to the bytes that pass from then on, in both directions.
"""

from __future__ import annotations

import random
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import trio

__all__ = ["Proxy", "open_proxy"]

CHUNK: Final = 65536
CONNECT_SECONDS: Final = 10.0
"""Seconds for the target to accept a connection, as a client would wait; then the client is reset."""

PIECES: Final = 10_000
"""Sizes of pieces to remember: some kB of seven bytes each."""

RESET: Final = b"\x01\x00\x00\x00\x00\x00\x00\x00"
"""SO_LINGER on, zero seconds: close() sends a reset."""


class Proxy:
    """Passes bytes on between clients and one target; made by `open_proxy`."""

    def __init__(self, host: str, port: int, seed: int) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.latency = 0.0
        """Seconds before each piece is passed on."""
        self.jitter = 0.0
        """Further seconds before each piece, at most; drawn from the seed."""
        self.bandwidth = 0.0
        """Bytes a second; 0 for no bound."""
        self.slice = 0
        """Bytes that are passed on at once; 0 leaves pieces as they come."""
        self.black_hole = False
        """Whether bytes are swallowed instead of passed on; connections stay open."""
        self.refuse = False
        """Whether new connections are reset."""
        self.connections = 0
        """Connections accepted so far."""
        self.pieces: deque[int] = deque(maxlen=PIECES)
        """Sizes in bytes of the last pieces that were passed on or swallowed."""
        self._target = (host, port)
        self._rng = random.Random(seed)  # noqa: S311 - reproducible
        self._pairs: set[tuple[trio.SocketStream, trio.SocketStream]] = set()

    def restore(self) -> None:
        """Pass bytes on without delay, bound or cut, like a network that has recovered."""
        self.latency = self.jitter = self.bandwidth = 0.0
        self.slice = 0
        self.black_hole = self.refuse = False

    def reset_all(self) -> None:
        """Reset every connection, on both sides."""
        for pair in list(self._pairs):
            for stream in pair:
                _reset(stream)

    def half_close_all(self) -> None:
        """Send both sides of every connection the end of the stream.

        Bytes that are on their way to them are lost.
        """
        for pair in list(self._pairs):
            for stream in pair:
                # Not send_eof: another task may be sending on this stream.
                with suppress(OSError):
                    stream.socket.shutdown(socket.SHUT_WR)

    async def carry(self, client: trio.SocketStream) -> None:
        """Serve one connection, from accept to its end."""
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
                # Not aclose: under cancellation its checkpoint would leave the second stream open.
                stream.socket.close()

    async def _pass_on(
        self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        try:
            while data := await source.receive_some(CHUNK):
                pieces = self._slices(bytes(data))
                # Noted when they are cut, so that a test sees which pieces were cut under a new setting.
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
    """Open a proxy on a free port of 127.0.0.1 before ``host`` and ``port``.

    Args:
        host: of the target.
        port: of the target.
        seed: of the jitter.
    """
    proxy = Proxy(host, port, seed)
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host=proxy.host)
        proxy.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, proxy.carry, [listener])
        try:
            yield proxy
        finally:
            nursery.cancel_scope.cancel()
