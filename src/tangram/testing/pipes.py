"""Two ends of a connection in memory, of which each keeps as much as a socket would and no more."""

from __future__ import annotations

from collections.abc import Callable

import trio

__all__ = ["PipeEnd", "open_pipe"]

KEPT = 212_992
"""Bytes that wait in one direction until they are read: what Linux keeps for a Unix socket
(net.core.wmem_default). Who writes more waits for the reader.
"""

READ_SIZE = 65536
"""Bytes given at once where the reader does not say."""


class _Way:
    """One direction."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = False
        """Nothing more will come: who reads hears the end."""
        self.broken = False
        """Nobody will read: who writes is told."""
        self.changed = trio.lowlevel.ParkingLot()


class PipeEnd(trio.abc.Stream):
    """One end. ``closed`` tells whether whoever holds it has closed it."""

    def __init__(self, there: _Way, back: _Way, on_close: Callable[[PipeEnd], None] | None = None) -> None:
        self.closed = False
        self._out, self._in = there, back
        self._on_close = on_close

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What has come; empty at the end.

        Raises:
            ClosedResourceError: it was closed on this side.
        """
        way = self._in
        if self.closed or way.data or way.ended:
            await trio.lowlevel.checkpoint()
        while not (self.closed or way.data or way.ended):
            await way.changed.park()
        if self.closed:
            raise trio.ClosedResourceError
        size = max_bytes or READ_SIZE
        taken = bytes(memoryview(way.data)[:size])
        del way.data[:size]
        way.changed.unpark_all()
        return taken

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it, waiting for the reader where it is more than fits.

        Raises:
            BrokenResourceError: the other end is gone, or the connection was cut.
            ClosedResourceError: it was closed on this side.
        """
        way = self._out
        rest = memoryview(data)
        await trio.lowlevel.checkpoint()
        while True:
            self._must_be_open()
            room = KEPT - len(way.data)
            if room > 0 and rest:
                way.data += rest[:room]
                rest = rest[room:]
                way.changed.unpark_all()
            if not rest:
                return
            await way.changed.park()

    async def wait_send_all_might_not_block(self) -> None:
        """Return once there is room.

        Raises:
            BrokenResourceError: the other end is gone, or the connection was cut.
            ClosedResourceError: it was closed on this side.
        """
        await trio.lowlevel.checkpoint()
        self._must_be_open()
        while len(self._out.data) >= KEPT:
            await self._out.changed.park()
            self._must_be_open()

    def _must_be_open(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError
        if self._out.broken:
            raise trio.BrokenResourceError("the other end is gone")

    async def aclose(self) -> None:
        """Close this end."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close this end without giving way."""
        if self.closed:
            return
        self.closed = True
        self._out.ended = self._in.broken = True
        self._in.data.clear()
        self._wake()
        if self._on_close is not None:
            self._on_close(self)

    def cut(self) -> None:
        """End the connection as the network does: both ends hear the end of the stream, neither is closed."""
        for way in (self._out, self._in):
            way.ended = way.broken = True
        self._wake()

    def _wake(self) -> None:
        self._out.changed.unpark_all()
        self._in.changed.unpark_all()


def open_pipe(on_close: Callable[[PipeEnd], None] | None = None) -> tuple[PipeEnd, PipeEnd]:
    """Both ends; ``on_close`` is called when the first of them is closed by whoever holds it."""
    there, back = _Way(), _Way()
    return PipeEnd(there, back, on_close), PipeEnd(back, there)
