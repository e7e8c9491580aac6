"""Connections to the internal listeners of other nodes.

1. A connection is a socket that the task of a request reads and writes itself: an idle one has neither a task
   nor a timer. Before it is used again, one system call looks whether the other side has closed it.
2. The first connection to a node opens a session: see ``keys``. All connections to that node share it.
3. Waits are bounded: dialling and greeting by `CONNECT_TIME`, an unreachable machine by the keep-alive of
   TCP, and a node that has left the cluster by ``drop``, which closes its connections in use, too.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Final, Protocol

import attrs
import trio

from tangram.http.forward.heads import GREETING, AnswerHead, BadHead, parse_answer
from tangram.http.forward.keys import NONCE_BYTES, Keyring, NodeSession
from tangram.http.listeners import HeldSocket

__all__ = ["Network", "NodeConnection", "NodeUnreachable", "Peer", "Pool", "current_network"]

CONNECT_TIME: Final = 1.0
"""Seconds to connect to a node and to open a session there: half of the time for which a request waits."""

MAX_IDLE: Final = 64
"""Idle connections that are kept to each node: as many requests at once need no new connection."""

MAX_HEAD: Final = 256 * 1024
"""Bytes of the head of an answer."""

READ_SIZE: Final = 65536
"""Bytes that are taken from a socket at once."""

DEAD_AFTER: Final = 10
"""Seconds after which a machine that acknowledges nothing counts as gone."""


class Network(Protocol):
    """A network in memory, in place of the machine's."""

    def listen(self) -> Sequence[HeldSocket]:
        """Return the sockets of one node's internal listener."""

    async def dial(self, address: str) -> socket.socket:
        """Return a connected, non-blocking socket; raises OSError."""


current_network: ContextVar[Network | None] = ContextVar("tangram_forward_network", default=None)
"""The network between nodes in this context; None for the machine's."""

_wait_readable = trio.lowlevel.wait_readable
_wait_writable = trio.lowlevel.wait_writable


class NodeUnreachable(Exception):
    """There is no connection to a node, or the node has not proved itself."""


class Peer(Protocol):
    """Another node."""

    @property
    def id(self) -> str: ...
    @property
    def address(self) -> str | None: ...


@attrs.define(eq=False)
class NodeConnection:
    """One connection to a node."""

    sock: socket.socket
    node: str
    buffer: bytes = b""
    """Bytes that were read and not used yet."""
    closed: bool = False

    def close(self) -> None:
        """Close the socket; a task that waits for it gets an error."""
        if not self.closed:
            self.closed = True
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()

    def is_fresh(self) -> bool:
        """Return whether an idle connection is still open, and nothing has arrived on it."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return not self.closed
        except OSError:
            return False
        return False

    async def read(self) -> bytes:
        """Return the next bytes, or ``b""`` at the end.

        Raises:
            OSError: the connection is broken, or was closed here.
        """
        while True:
            try:
                return self.sock.recv(READ_SIZE)
            except BlockingIOError:
                pass
            try:
                await _wait_readable(self.sock)
            except trio.ClosedResourceError:
                raise ConnectionAbortedError("the connection to the node was closed") from None

    async def write(self, data: bytes) -> None:
        """Send all of ``data``, as fast as the node takes it.

        Raises:
            OSError: the connection is broken, or was closed here.
        """
        rest: memoryview | bytes = data
        while rest:
            try:
                sent = self.sock.send(rest)
            except BlockingIOError:
                try:
                    await _wait_writable(self.sock)
                except trio.ClosedResourceError:
                    raise ConnectionAbortedError("the connection to the node was closed") from None
                continue
            if sent == len(rest):
                return
            rest = memoryview(rest)[sent:]

    async def read_head(self, read: Callable[[], Awaitable[bytes]], *, to_head: bool = False) -> AnswerHead:
        """Return the head of the next answer.

        Args:
            read: returns the next bytes; `read` itself, or a function that watches something meanwhile.
            to_head: the request was ``HEAD``.

        Raises:
            EOFError: the connection ended before the first byte.
            BadHead: it is malformed, or incomplete.
            OSError: the connection is broken.
        """
        while True:
            end = self.buffer.find(b"\r\n\r\n")
            if end >= 0:
                head, self.buffer = self.buffer[: end + 4], self.buffer[end + 4 :]
                return parse_answer(head, to_head=to_head)
            if len(self.buffer) > MAX_HEAD:
                raise BadHead(f"a head of more than {MAX_HEAD} bytes")
            data = await read()
            if not data:
                if self.buffer:
                    raise BadHead("the head of an answer breaks off")
                raise EOFError
            self.buffer = self.buffer + data if self.buffer else data


class Pool:
    """The connections and sessions of one incarnation.

    Args:
        me: the id of this node.
        secret: ``[channel] jwt_secret``.
    """

    def __init__(self, me: str, secret: str) -> None:
        self._me = me
        self._keyring = Keyring(secret)
        self._idle: dict[str, list[NodeConnection]] = {}
        self._all: dict[str, set[NodeConnection]] = {}
        self._sessions: dict[str, NodeSession] = {}
        self._opening: dict[str, trio.Lock] = {}
        self.opened = 0
        """Connections that were opened."""
        self.reused = 0
        """Requests that have found an idle one."""

    def close(self) -> None:
        """Close all connections."""
        for node in list(self._all):
            self.drop(node)

    def drop(self, node: str) -> None:
        """Close all connections to a node, those in use, too, and forget the session."""
        self._sessions.pop(node, None)
        self._opening.pop(node, None)
        self._idle.pop(node, None)
        for connection in self._all.pop(node, set()):
            connection.close()

    def forget_session(self, node: str, session: NodeSession) -> None:
        """Open another session for the next request; called where the node does not know this one."""
        if self._sessions.get(node) is session:
            del self._sessions[node]

    async def session(self, peer: Peer) -> NodeSession:
        """Return the session at a node; the first request opens it.

        Raises:
            NodeUnreachable: the node cannot be reached, or does not prove itself.
        """
        known = self._sessions.get(peer.id)
        if known is not None:
            return known
        with trio.move_on_after(CONNECT_TIME):
            async with self._opening.setdefault(peer.id, trio.Lock()):
                known = self._sessions.get(peer.id)
                if known is None:
                    known = self._sessions[peer.id] = await self._open_session(peer)
                return known
        raise NodeUnreachable(f"node {peer.id!r} has not answered within {CONNECT_TIME:g} s")

    async def take(self, peer: Peer, *, new: bool = False) -> NodeConnection:
        """Return an idle connection to a node, or a new one.

        Args:
            peer: the node.
            new: do not use an idle one.

        Raises:
            NodeUnreachable: the node cannot be reached.
        """
        idle = self._idle.get(peer.id)
        while idle and not new:
            connection = idle.pop()
            if connection.is_fresh():
                self.reused += 1
                return connection
            self.discard(connection)
        with trio.move_on_after(CONNECT_TIME):
            return await self._connect(peer)
        raise NodeUnreachable(f"node {peer.id!r} was not reached within {CONNECT_TIME:g} s")

    def give_back(self, connection: NodeConnection) -> None:
        """Keep a connection for another request; called between two answers."""
        idle = self._idle.setdefault(connection.node, [])
        if connection.closed or connection.buffer or len(idle) >= MAX_IDLE:
            self.discard(connection)
        else:
            idle.append(connection)

    def discard(self, connection: NodeConnection) -> None:
        """Close a connection."""
        connection.close()
        known = self._all.get(connection.node)
        if known is not None:
            known.discard(connection)

    async def _connect(self, peer: Peer) -> NodeConnection:
        if peer.address is None:
            raise NodeUnreachable(f"node {peer.id!r} has no internal listener")
        try:
            network = current_network.get()
            sock = await (_dial if network is None else network.dial)(peer.address)
        except OSError as error:
            raise NodeUnreachable(f"node {peer.id!r} cannot be reached at {peer.address}: {error}") from None
        connection = NodeConnection(sock, peer.id)
        self._all.setdefault(peer.id, set()).add(connection)
        self.opened += 1
        return connection

    async def _open_session(self, peer: Peer) -> NodeSession:
        """Greet a node, and check that it has the key, too."""
        nonce = os.urandom(NONCE_BYTES)
        connection = await self._connect(peer)
        proof = self._keyring.greet(self._me, peer.id, nonce)
        greeting = b"%b %b %b" % (self._me.encode(), nonce.hex().encode(), proof)
        try:
            await connection.write(
                b"POST / HTTP/1.1\r\nhost: tangram\r\n%b: %b\r\ncontent-length: 0\r\n\r\n"
                % (GREETING, greeting)
            )
            answer = await connection.read_head(connection.read)
            session = self._read_welcome(peer, nonce, answer)
        except (OSError, EOFError, BadHead) as error:
            self.discard(connection)
            raise NodeUnreachable(f"node {peer.id!r} broke off the greeting: {error!r}") from None
        except BaseException:
            self.discard(connection)
            raise
        self.give_back(connection)
        return session

    def _read_welcome(self, peer: Peer, nonce: bytes, answer: AnswerHead) -> NodeSession:
        name, _, proof = (answer.value(GREETING) or b"").partition(b" ")
        with suppress(ValueError):
            raw = bytes.fromhex(name.decode("latin-1"))
            expected = self._keyring.answer(self._me, peer.id, nonce, raw)
            # The proof of the other side is compared with one made here; no byte of it is secret.
            if answer.status == 204 and len(raw) == NONCE_BYTES and proof == expected:
                return NodeSession(name, self._keyring.session_key(nonce, raw))
        raise NodeUnreachable(
            f"node {peer.id!r} at {peer.address} answers the greeting with {answer.status}: expected a node "
            "with the same [channel] jwt_secret"
        )


async def _dial(address: str) -> socket.socket:
    """Return a connected, non-blocking socket; raises OSError."""
    host, _, port = address.rpartition(":")
    stream = await trio.open_tcp_stream(host.strip("[]"), int(port))
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", DEAD_AFTER // 2),
            ("TCP_KEEPINTVL", 2),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", DEAD_AFTER * 1000),
        ):
            if hasattr(socket, name):  # not every system has all of them
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return sock
