"""The web port of a server under test in memory, without a network.

It replaces the real port in two places: ``Boot.listen`` returns its listening sockets, and
`tangram.client` (`current_dial`) and an httpx transport connect to it. The sockets are Unix sockets
without a name in any folder, and not Python streams: the engine writes to sockets itself, the census
sees open descriptors, and written bytes can be read at once. Over TCP the kernel of a busy machine may
deliver later, and an autojump clock that jumps meanwhile makes two runs differ.
"""

from __future__ import annotations

import itertools
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final
from weakref import WeakSet

import trio

from tangram.client.dial import Stream, current_dial
from tangram.config import Config
from tangram.http.listeners import HeldSocket

if TYPE_CHECKING:
    import httpx

__all__ = ["MemoryPort"]

HOST: Final = "127.0.0.1"
PORT: Final = 1
"""Port in the server's URLs, at which no server may be reached by mistake.

On today's machines nothing listens on TCP port 1 (tcpmux), and only privileged programs may. A free
port could be taken a moment later, and would differ between two runs of one seed.
"""

LISTEN_QUEUE: Final = 4096
"""Connections that may wait while everything restarts."""

FIRST_PEER_PORT: Final = 40_000


class _MemoryConnection(socket.socket):
    """The server's end, which reports addresses as a TCP socket does."""

    made: ClassVar[WeakSet[_MemoryConnection]] = WeakSet()

    def getsockname(self) -> Any:
        return (HOST, PORT)

    def break_at(self, address: str) -> bool:
        """End the connection both ways if it was accepted at ``address``; return if it was open."""
        if self.fileno() < 0 or super().getsockname() != address.encode():
            return False
        with suppress(OSError):  # the other end has just closed
            super().shutdown(socket.SHUT_RDWR)
        return True

    def setsockopt(self, *args: Any) -> None:
        if args[0] != socket.IPPROTO_TCP:
            super().setsockopt(*args)


class _Listener(socket.socket):
    """A listening socket whose peers seem to come from loopback."""

    ports = itertools.count(FIRST_PEER_PORT)

    def accept(self) -> tuple[socket.socket, Any]:
        accepted, _ = super().accept()
        connection = _MemoryConnection(
            accepted.family, accepted.type, accepted.proto, fileno=accepted.detach()
        )
        _MemoryConnection.made.add(connection)
        return connection, (HOST, next(self.ports))


class MemoryPort:
    """A port that only this process can reach."""

    def __init__(self) -> None:
        # An abstract name (unix(7)) is in no folder and ends with the socket.
        self._address = f"\0tangram-{secrets.token_hex(8)}"

    def listen(self, _config: Config) -> list[HeldSocket]:
        """Return one listening socket under any configuration: ``Boot.listen``."""
        listener = _Listener(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self._address)
        listener.listen(LISTEN_QUEUE)
        listener.setblocking(False)
        return [HeldSocket(listener, HOST, PORT)]

    def connect(self) -> socket.socket:
        """Return a connected non-blocking socket.

        Raises:
            ConnectionRefusedError: nothing listens.
        """
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            client.connect(self._address)
        except BaseException:
            client.close()
            raise
        client.setblocking(False)
        return client

    def reset(self) -> int:
        """Break every connection that the server has accepted, and return how many there were."""
        return sum(connection.break_at(self._address) for connection in list(_MemoryConnection.made))

    async def dial(self, _url: str) -> Stream:
        """Return a connection for `tangram.client`."""
        await trio.lowlevel.checkpoint()
        return trio.SocketStream(trio.socket.from_stdlib_socket(self.connect()))

    @contextmanager
    def dialled(self) -> Iterator[None]:
        """Let `tangram.client` connect to this port in the block."""
        token = current_dial.set(self.dial)
        try:
            yield
        finally:
            current_dial.reset(token)

    def transport(self) -> httpx.AsyncBaseTransport:
        """Return a transport for an httpx client."""
        import httpx

        return httpx.AsyncHTTPTransport(uds=self._address, verify=False)
