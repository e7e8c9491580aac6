"""A connected socket as a stream, for a connection that is read in a loop and written by one task.

``trio.SocketStream`` tries first and gives way afterwards, which is right for whoever may use it in any way,
and costs a vain read and a pass of the scheduler for each chunk. Here a read waits first, and so gives way
once; a write that the socket takes at once does not give way at all: whoever writes in a loop waits for
something to write.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Final

import trio

__all__ = ["PlainStream"]

READ_SIZE: Final = 65536
"""Bytes asked for where the reader does not say."""

_wait_readable = trio.lowlevel.wait_readable
_wait_writable = trio.lowlevel.wait_writable


class PlainStream(trio.abc.Stream):
    """Takes the socket of *stream* over, which is of no use afterwards."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._socket.setblocking(False)
        self._closed = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What has come; empty at the end.

        Raises:
            BrokenResourceError: the connection broke.
            ClosedResourceError: it was closed on this side.
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
        """Send all of it; without giving way if the socket takes it at once.

        Raises:
            BrokenResourceError: the connection broke.
            ClosedResourceError: it was closed on this side.
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
        """Return once the socket takes something."""
        if self._closed:
            raise trio.ClosedResourceError
        await _wait_writable(self._socket)

    def shut(self) -> None:
        """End the connection as the network does: whoever reads hears the end of the stream."""
        with contextlib.suppress(OSError):  # it is closed, or was never connected
            self._socket.shutdown(socket.SHUT_RDWR)

    async def aclose(self) -> None:
        """Close; whoever waits for the socket gets ClosedResourceError."""
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
        await trio.lowlevel.checkpoint()
