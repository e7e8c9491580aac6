"""A connected socket as a stream, with one reading loop and one writing task.

``trio.SocketStream`` tries to read before it waits, and yields to the scheduler after each operation. This
suits every use, and costs a failed read and a pass of the scheduler for each chunk. Here a read waits
first, which yields once. A write that the socket accepts at once does not yield; the writing loop yields
when it waits for data.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from mmap import mmap
from typing import Final, Protocol, TypeVar, runtime_checkable

import trio

from tangram.readiness import Readiness

__all__ = ["NowaitStream", "PlainStream"]

T = TypeVar("T")

READ_SIZE: Final = 65536
"""Bytes of one read if the caller does not name a number."""

MAX_AT_ONCE: Final = 8
"""Full reads that follow each other without waiting: half a megabyte, which takes a millisecond."""

_wait_readable = trio.lowlevel.wait_readable
_wait_writable = trio.lowlevel.wait_writable


@runtime_checkable
class NowaitStream(Protocol):
    """A stream that can also be read and written without waiting, beside waiting tasks."""

    def receive_nowait(self) -> bytes | None:
        """Return the bytes that have arrived; None if there are none, and empty bytes at the end."""

    def send_nowait(self, data: bytes) -> int:
        """Return how many of the bytes were accepted at once; 0 also if the connection broke."""


class PlainStream(trio.abc.Stream):
    """A stream on the socket of a ``trio.SocketStream``, which must not be used afterwards."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._socket.setblocking(False)
        self._closed = False
        self._full_reads = 0
        """Reads in a row that were full: more bytes probably wait."""
        self._served_by: Readiness | None = None

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the next bytes; empty bytes mean the end of the stream.

        After a full read the next one does not wait, and other tasks do not run in between, a few times.

        Raises:
            BrokenResourceError: the connection broke.
            ClosedResourceError: this stream is closed.
        """
        size = max_bytes or READ_SIZE
        while not self._closed:
            if not 0 < self._full_reads < MAX_AT_ONCE:
                self._full_reads = 0
                await _wait_readable(self._socket)
            try:
                data = self._socket.recv(size)
            except BlockingIOError:
                self._full_reads = 0
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error
            self._full_reads = self._full_reads + 1 if len(data) == size else 0
            return data
        raise trio.ClosedResourceError

    async def receive_into(self, buffer: bytearray | mmap) -> int:
        """Read the next bytes to the begin of a buffer, and return their number.

        0 is the end of the stream. A read takes ``READ_SIZE`` bytes. If it is full, one read of the whole
        buffer follows without waiting, so that a large message costs few reads.

        Args:
            buffer: at least ``READ_SIZE`` bytes.

        Raises:
            BrokenResourceError: the connection broke.
            ClosedResourceError: this stream is closed.
        """
        while not self._closed:
            if not self._full_reads:
                await _wait_readable(self._socket)
            if (size := self._read_into(buffer)) >= 0:
                return size
        raise trio.ClosedResourceError

    def _read_into(self, buffer: bytearray | mmap) -> int:
        """Read without waiting; return the number of bytes, or -1 if there are none."""
        full, self._full_reads = self._full_reads, 0
        try:
            size = self._socket.recv_into(buffer, 0 if full else READ_SIZE)
        except BlockingIOError:
            return -1
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error
        self._full_reads = int(not full and size == READ_SIZE)
        return size

    async def serve(
        self, readiness: Readiness, buffer: bytearray | mmap, handle: Callable[[int], T | None]
    ) -> T:
        """Read as ``receive_into`` does, and call ``handle`` after each read.

        ``handle`` gets the number of bytes.

        Returns:
            The first result of ``handle`` that is not None. It must not block.

        Raises:
            BrokenResourceError: the connection broke.
            ClosedResourceError: this stream is closed.
        """
        if self._closed:
            raise trio.ClosedResourceError
        read = self._socket.recv_into

        def step() -> T | None:
            # As ``_read_into``, without a call of Python for each message.
            while True:
                full, self._full_reads = self._full_reads, 0
                try:
                    size = read(buffer, 0 if full else READ_SIZE)
                except BlockingIOError:
                    return None
                except OSError as error:
                    raise trio.BrokenResourceError(str(error)) from error
                if size == READ_SIZE and not full:
                    self._full_reads = 1
                result = handle(size)
                if result is not None or not self._full_reads:
                    return result

        self._served_by = readiness
        try:
            return await readiness.serve(self._socket, step, gathers=False)
        finally:
            self._served_by = None

    def receive_nowait(self) -> bytes | None:
        """Return the bytes that have arrived; None if there are none, and empty bytes at the end.

        Raises:
            BrokenResourceError: the connection broke.
            ClosedResourceError: this stream is closed.
        """
        if self._closed:
            raise trio.ClosedResourceError
        try:
            return self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return None
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error

    def send_nowait(self, data: bytes) -> int:
        """Send bytes at once, and return how many; 0 also if the connection broke.

        The next ``send_all`` raises the error then. No other task may be in ``send_all``.
        """
        try:
            return self._socket.send(data)
        except OSError:
            return 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all bytes, without a checkpoint if the socket accepts them at once.

        Raises:
            BrokenResourceError: the connection broke.
            ClosedResourceError: this stream is closed.
        """
        rest = memoryview(data)
        while not self._closed:
            try:
                sent = self._socket.send(rest)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error
            if sent == len(rest):
                return
            rest = rest[sent:]
            await _wait_writable(self._socket)
        raise trio.ClosedResourceError

    async def wait_send_all_might_not_block(self) -> None:
        """Return once the socket accepts data."""
        if self._closed:
            raise trio.ClosedResourceError
        await _wait_writable(self._socket)

    def shut(self) -> None:
        """End the connection as the network would: the reader gets the end of the stream."""
        with contextlib.suppress(OSError):  # it is closed or was never connected
            self._socket.shutdown(socket.SHUT_RDWR)

    async def aclose(self) -> None:
        """Close the stream; a task that waits for it gets ``ClosedResourceError``."""
        if not self._closed:
            self._closed = True
            if self._served_by is not None:
                self._served_by.forget(self._socket)
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
        await trio.lowlevel.checkpoint()
