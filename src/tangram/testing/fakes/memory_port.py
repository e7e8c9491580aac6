"""Sockets in memory: the web port of a server under test without a network.

They stand behind the seams of the real ones: ``Boot.listen`` gives the server its listening sockets, and
``tangram.client``'s `current_dial` and an httpx transport take clients there. They are Unix sockets without
a name in any folder, and not streams of Python's: the engine writes to sockets itself, a descriptor that is
left open is seen by the census, and what is written is there to be read in the same moment. Over TCP the
kernel may deliver later when the machine is busy, and a virtual clock that jumps meanwhile makes two runs
differ.
"""

from __future__ import annotations

import itertools
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

import trio

from tangram.client.dial import Stream, current_dial
from tangram.config import Config
from tangram.http.listeners import HeldSocket

if TYPE_CHECKING:
    import httpx

__all__ = ["MemoryPort"]

HOST = "127.0.0.1"
PORT = 1
"""What the server says in its URLs. Who takes it at its word and dials it must reach nobody, least of all a
server that a developer has running at the port of the defaults: TCP port 1 (tcpmux) is nobody's on a machine
of today, and no program without privileges may listen there. A free port would be somebody's a moment later,
and another one in each run of the same seed.
"""

LISTEN_QUEUE = 4096
"""Connections that may wait while everything restarts."""

FIRST_PEER_PORT = 40_000


class _MemoryConnection(socket.socket):
    """The server's end: it tells addresses as a TCP socket does."""

    made: ClassVar[WeakSet[_MemoryConnection]] = WeakSet()

    def getsockname(self) -> Any:
        return (HOST, PORT)

    def break_at(self, address: str) -> bool:
        """End it both ways, if it is open and was taken at ``address``; whether it was."""
        if self.fileno() < 0 or super().getsockname() != address.encode():
            return False
        with suppress(OSError):  # the other end has gone just now
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
        # Abstract (unix(7)): a name that is in no folder and goes with the socket.
        self._address = f"\0tangram-{secrets.token_hex(8)}"

    def listen(self, _config: Config) -> list[HeldSocket]:
        """``Boot.listen``: one listening socket, whatever the configuration says."""
        listener = _Listener(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self._address)
        listener.listen(LISTEN_QUEUE)
        listener.setblocking(False)
        return [HeldSocket(listener, HOST, PORT)]

    def connect(self) -> socket.socket:
        """A connected socket, non-blocking.

        Raises:
            ConnectionRefusedError: nobody listens.
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
        """Break every connection that the server has taken; how many there were."""
        return sum(connection.break_at(self._address) for connection in list(_MemoryConnection.made))

    async def dial(self, _url: str) -> Stream:
        """A connection for `tangram.client`."""
        await trio.lowlevel.checkpoint()
        return trio.SocketStream(trio.socket.from_stdlib_socket(self.connect()))

    @contextmanager
    def dialled(self) -> Iterator[None]:
        """In this block `tangram.client` comes here."""
        token = current_dial.set(self.dial)
        try:
            yield
        finally:
            current_dial.reset(token)

    def transport(self) -> httpx.AsyncBaseTransport:
        """For an httpx client."""
        import httpx

        return httpx.AsyncHTTPTransport(uds=self._address, verify=False)
