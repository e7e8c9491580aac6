"""A connected socket as a stream, with one reading loop and one writing task.

``trio.SocketStream`` tries to read before it waits, and yields to the scheduler after each operation. This
suits every use, and costs a failed read and a pass of the scheduler for each chunk. Here a read waits
first, which yields once. A write that the socket accepts at once does not yield; the writing loop yields
when it waits for data.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Final

import trio

__all__ = ["PlainStream"]

READ_SIZE: Final = 65536
"""Bytes of one read if the caller does not name a number."""

_wait_readable = trio.lowlevel.wait_readable
_wait_writable = trio.lowlevel.wait_writable


class PlainStream(trio.abc.Stream):
    """A stream on the socket of a ``trio.SocketStream``, which must not be used afterwards."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._socket.setblocking(False)
        self._closed = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the next bytes; empty bytes mean the end of the stream.

        Raises:
            BrokenResourceError: the connection broke.
            ClosedResourceError: this stream is closed.
        """
        while not self._closed:
            await _wait_readable(self._socket)
            try:
                return self._socket.recv(max_bytes or READ_SIZE)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error
        raise trio.ClosedResourceError

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
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
        await trio.lowlevel.checkpoint()
