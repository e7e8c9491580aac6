"""A connection in memory with two ends, each of which buffers as much as a socket."""

from __future__ import annotations

from collections.abc import Callable
from operator import index
from typing import Final

import trio

__all__ = ["PipeEnd", "open_pipe"]

KEPT: Final = 212_992
"""Bytes buffered in one direction, as Linux does for a Unix socket (net.core.wmem_default).

A writer with more waits for the reader.
"""

READ_SIZE: Final = 65536
"""Bytes that a read returns at most where it names no size."""


class _Way:
    """One direction of a connection."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = False
        """Whether no more bytes will come, so that a reader gets the end of the stream."""
        self.broken = False
        """Whether the reader is gone, so that a writer gets an error."""
        self.changed = trio.lowlevel.ParkingLot()


class _OneTask:
    """An operation for one task at a time; a second one is an error, as with a socket."""

    def __init__(self, what: str) -> None:
        self._what, self._held = what, False

    def __enter__(self) -> None:
        if self._held:
            raise trio.BusyResourceError(f"another task {self._what} already")
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False


class PipeEnd(trio.abc.Stream):
    """One end of a connection; ``closed`` tells whether its owner has closed it."""

    def __init__(self, there: _Way, back: _Way, on_close: Callable[[PipeEnd], None] | None = None) -> None:
        self.closed = False
        self._out, self._in = there, back
        self._on_close = on_close
        self._reading, self._writing = _OneTask("reads"), _OneTask("writes")

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return received bytes; none at the end of the stream.

        Raises:
            BusyResourceError: another task reads.
            ClosedResourceError: this end was closed.
        """
        size = READ_SIZE if max_bytes is None else index(max_bytes)
        if size < 1:
            raise ValueError(f"max_bytes must be 1 at least, got {max_bytes!r}")
        way = self._in
        with self._reading:
            if self.closed or way.data or way.ended:
                await trio.lowlevel.checkpoint()
            while not (self.closed or way.data or way.ended):
                await way.changed.park()
        if self.closed:
            raise trio.ClosedResourceError
        taken = bytes(memoryview(way.data)[:size])
        del way.data[:size]
        way.changed.unpark_all()
        return taken

    def receive_nowait(self) -> bytes | None:
        """Return received bytes; None if there are none, and empty bytes at the end.

        Raises:
            ClosedResourceError: this end was closed.
        """
        way = self._in
        if self.closed:
            raise trio.ClosedResourceError
        if not way.data:
            return b"" if way.ended else None
        taken = bytes(memoryview(way.data)[:READ_SIZE])
        del way.data[:READ_SIZE]
        way.changed.unpark_all()
        return taken

    def send_nowait(self, data: bytes) -> int:
        """Return how many of the bytes fit into the buffer; 0 also where the connection was cut."""
        way = self._out
        room = max(0, KEPT - len(way.data))
        if self.closed or way.broken or not room:
            return 0
        way.data += data[:room]
        way.changed.unpark_all()
        return min(room, len(data))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all bytes, and wait for the reader where the buffer is full.

        Raises:
            BrokenResourceError: the other end is gone, or the connection was cut.
            BusyResourceError: another task writes.
            ClosedResourceError: this end was closed.
        """
        rest = memoryview(data)
        with self._writing:
            await trio.lowlevel.checkpoint()
            await self._send(rest)

    async def _send(self, rest: memoryview) -> None:
        way = self._out
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
        """Wait until the buffer has room.

        Raises:
            BrokenResourceError: the other end is gone, or the connection was cut.
            BusyResourceError: another task writes.
            ClosedResourceError: this end was closed.
        """
        with self._writing:
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
        """Close this end without a checkpoint."""
        if self.closed:
            return
        self.closed = True
        self._out.ended = self._in.broken = True
        self._in.data.clear()
        self._wake()
        if self._on_close is not None:
            self._on_close(self)

    def cut(self) -> None:
        """End the connection as the network does: both ends get the end of the stream.

        Neither end is closed by that.
        """
        for way in (self._out, self._in):
            way.ended = way.broken = True
        self._wake()

    def _wake(self) -> None:
        self._out.changed.unpark_all()
        self._in.changed.unpark_all()


def open_pipe(on_close: Callable[[PipeEnd], None] | None = None) -> tuple[PipeEnd, PipeEnd]:
    """Return both ends of a connection.

    Args:
        on_close: called when the owner of the first end closes it.
    """
    there, back = _Way(), _Way()
    return PipeEnd(there, back, on_close), PipeEnd(back, there)
