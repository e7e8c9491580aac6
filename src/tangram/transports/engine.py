"""What both HTTP engines share: a server's life on held sockets, from accept to the last connection's end.

1. An engine accepts on ``dup()``s of the root's sockets, and closes only those.
2. Whatever one connection raises ends that connection only.
3. Cancelled, it stops accepting at once, lets the connections finish what they have begun for ``grace()``
   seconds, and then closes their sockets under them. The shield around them therefore always has an end.
4. Bounds on connections are kept here, before a byte is read: a refusal must be cheap.

What is decided elsewhere: what a connection does with its bytes (``hypercorn``, ``native``).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import attrs
import structlog
import trio

from tangram.transports.listeners import HeldSocket

__all__ = [
    "ASGIApp",
    "ClientGone",
    "Engine",
    "EngineSettings",
    "EngineStatistics",
    "Message",
    "Scope",
    "failures_of",
]

log = structlog.get_logger("tangram.transports")

Message = dict[str, Any]
Scope = dict[str, Any]
Address = tuple[Any, ...]
"""What accept() tells of a peer: host and port first."""
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

ACCEPT_BATCH = 64
"""Connections taken from the kernel's queue before other tasks get their turn."""

TICK = 0.5
"""Seconds between two looks at the deadlines of all connections: how late a deadline may be kept."""

ACCEPT_PAUSE = 0.1
"""Seconds to wait when the process has no file descriptor left: trying at once again would spin."""

LAST_REQUEST_TIME = 0.05
"""Seconds that a kept connection may take to begin its last request when a stop has begun."""

CLOSE_BATCH = 50
"""WebSockets told to go at once. Each comes back after 10 ms without jitter (phoenix.js), so that spacing the
good-byes is what spaces the returns."""

CLOSE_PAUSE = 0.02
"""Seconds between two such batches: 1,000 clients are gone within 0.4 s."""

_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_OVERLOADED = (
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 21\r\n\r\ntoo many connections\n"
)


class ClientGone(OSError):  # named like the event it tells
    """Raised by an application's ``send`` when the client has gone, as ASGI asks for: nobody's fault."""


class EngineSettings(Protocol):
    """The part of ``[server]`` that an engine reads. Times in seconds, sizes in bytes."""

    @property
    def max_header_bytes(self) -> int: ...
    @property
    def max_headers(self) -> int: ...
    @property
    def max_body(self) -> int: ...
    @property
    def header_timeout(self) -> float: ...
    @property
    def idle_timeout(self) -> float: ...
    @property
    def write_timeout(self) -> float: ...
    @property
    def max_connections(self) -> int: ...
    @property
    def max_connections_per_address(self) -> int: ...
    @property
    def access_log(self) -> bool: ...


@attrs.frozen
class EngineStatistics:
    """What an engine did since it started, and what it has open."""

    connections: int
    """Open now, of all kinds."""
    websockets: int
    """Of those, upgraded ones."""
    accepted: int
    """Connections taken from the kernel."""
    refused: int
    """Connections answered 503 because a bound was reached."""
    requests: int
    """Requests handed to the application."""
    rejected: int
    """Requests answered by the engine itself because they broke the protocol or a bound."""
    failed: int
    """Requests whose application raised."""
    crashed: int
    """Connections ended by an exception of the engine's own."""
    stalled: int
    """Connections closed because the client did not read in time."""
    forced: int
    """Connections closed under their users at the end of a stop's grace."""


class Connection(Protocol):
    """What an engine keeps of each connection."""

    def drain(self) -> None:
        """From now on, end after the request in hand, or after one that comes at once. Must not block."""

    def close_idle(self) -> None:
        """End now if no request is in hand. Must not block."""

    def say_goodbye(self, code: int) -> None:
        """Begin the closing handshake, where this is a WebSocket. Must not block."""

    def abort(self) -> None:
        """Close the socket now: whoever waits on it is woken by an error."""


def failures_of(error: BaseException) -> BaseException | None:
    """The part of an error that is not cancellation, or None."""
    if isinstance(error, trio.Cancelled):
        return None
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1]
    return error


@attrs.define(eq=False)
class Engine:
    """The counters, the bounds and the connections of one engine. ``serve`` runs it."""

    settings: EngineSettings
    handle: Callable[[socket.socket, Address, Callable[[Connection], None]], Awaitable[None]]
    """Carries one connection: its socket (non-blocking), its peer's address, and where to report itself."""
    close_code: Callable[[], int] = lambda: 1012
    """With which code WebSockets are told to go: 1012 for a restart, 1001 for good."""
    tick: Callable[[], None] | None = None
    """Called every TICK seconds while connections are open: deadlines are kept by looking, not by a timer
    each.
    """
    secure: bool = False
    """With TLS a refusal cannot be told in plain text."""
    draining: bool = False
    nursery: trio.Nursery | None = None
    """Where connections live, and what they leave behind to be written."""
    accepted: int = 0
    refused: int = 0
    requests: int = 0
    rejected: int = 0
    failed: int = 0
    crashed: int = 0
    stalled: int = 0
    forced: int = 0
    websockets: int = 0
    _told: float = float("-inf")
    _open: int = 0
    connections: dict[Connection, None] = attrs.field(factory=dict)
    _per_address: dict[str, int] = attrs.field(factory=dict)
    _drain: trio.Event = attrs.field(factory=trio.Event)
    _empty: trio.Event = attrs.field(factory=trio.Event)

    def statistics(self) -> EngineStatistics:
        """Counters since the start."""
        return EngineStatistics(
            connections=self._open,
            websockets=self.websockets,
            accepted=self.accepted,
            refused=self.refused,
            requests=self.requests,
            rejected=self.rejected,
            failed=self.failed,
            crashed=self.crashed,
            stalled=self.stalled,
            forced=self.forced,
        )

    async def serve(
        self,
        listeners: Sequence[HeldSocket],
        *,
        grace: Callable[[], float],
        task_status: trio.TaskStatus[Engine] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept until cancelled, then drain for ``grace()`` seconds, then close the rest forcefully."""
        async with trio.open_nursery() as parent:
            nursery: trio.Nursery = await parent.start(self._hold_connections, grace)
            try:
                async with trio.open_nursery() as acceptors:
                    for held in listeners:
                        acceptors.start_soon(self._accept, held, nursery)
                    task_status.started(self)
            finally:
                self.draining = True
                self._drain.set()

    async def _hold_connections(
        self, grace: Callable[[], float], *, task_status: trio.TaskStatus[trio.Nursery]
    ) -> None:
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            # Bounded: the drain below ends with a cancel of this very scope.
            nursery.cancel_scope.shield = True
            if self.tick is not None:
                nursery.start_soon(self._watch, self.tick)
            task_status.started(nursery)
            await self._drain.wait()
            with trio.move_on_after(max(0.0, grace())):
                await self._finish()
            for connection in list(self.connections):
                self.forced += 1
                connection.abort()
            nursery.cancel_scope.cancel()

    async def _watch(self, tick: Callable[[], None]) -> None:
        while True:
            await trio.sleep(TICK)
            tick()

    async def _finish(self) -> None:
        for connection in list(self.connections):
            connection.drain()
        if self._open:
            # A request may be on its way on a connection that is still open: it is answered, not cut.
            await trio.sleep(LAST_REQUEST_TIME)
        for connection in list(self.connections):
            connection.close_idle()
        code = self.close_code()
        for number, connection in enumerate(list(self.connections), 1):
            connection.say_goodbye(code)
            if number % CLOSE_BATCH == 0:
                await trio.sleep(CLOSE_PAUSE)
        while self._open:
            self._empty = trio.Event()
            await self._empty.wait()

    async def _accept(self, held: HeldSocket, nursery: trio.Nursery) -> None:
        listener = held.dup()
        try:
            while True:
                await trio.lowlevel.wait_readable(listener)
                for _ in range(ACCEPT_BATCH):
                    try:
                        client, address = listener.accept()
                    except BlockingIOError:
                        break
                    except OSError as error:
                        if error.errno not in _NO_DESCRIPTORS:
                            continue  # that client went away while it waited; the next one is no worse for it
                        log.warning("no file descriptor for another connection", open=self._open)
                        await trio.sleep(ACCEPT_PAUSE)
                        break
                    self._admit(client, address, nursery)
        finally:
            trio.lowlevel.notify_closing(listener)
            listener.close()

    def _admit(self, client: socket.socket, address: Address, nursery: trio.Nursery) -> None:
        self.accepted += 1
        client.setblocking(False)
        bound = self.settings.max_connections_per_address
        host = address[0]
        here = self._per_address.get(host, 0)
        if (bound and here >= bound) or (
            self.settings.max_connections and self._open >= self.settings.max_connections
        ):
            self.refused += 1
            self._refuse(client)
            return
        self._per_address[host] = here + 1
        self._open += 1
        nursery.start_soon(self._carry, client, address)

    def _refuse(self, client: socket.socket) -> None:
        try:
            if not self.secure:
                client.send(_OVERLOADED)
                client.shutdown(socket.SHUT_WR)
                client.recv(65536)  # a request left unread would turn our answer into a reset
        except OSError:
            pass
        finally:
            client.close()

    async def _carry(self, client: socket.socket, address: Address) -> None:
        """One connection, from the first byte to the last; what it raises goes no further."""
        mine: list[Connection] = []

        def report(connection: Connection) -> None:
            mine.append(connection)
            self.connections[connection] = None
            if self.draining:
                connection.drain()

        try:
            await self.handle(client, address, report)
        except BaseException as error:
            rest = failures_of(error)
            if not isinstance(rest, Exception):
                raise
            self.crashed += 1
            self._tell(rest, address)
        finally:
            for connection in mine:
                del self.connections[connection]
            self._close(client)
            self._release(address[0])

    def _tell(self, error: Exception, address: Address) -> None:
        """Once a second at most: whoever can make a connection fail must not be able to fill the log."""
        now = trio.current_time()
        if now - self._told >= 1.0:
            self._told = now
            log.error("a connection failed", address=address[0], crashed=self.crashed, exc_info=error)

    def _close(self, client: socket.socket) -> None:
        if client.fileno() >= 0:
            trio.lowlevel.notify_closing(client)
            client.close()

    def _release(self, address: str) -> None:
        self._open -= 1
        left = self._per_address.get(address, 1) - 1
        if left > 0:
            self._per_address[address] = left
        else:
            self._per_address.pop(address, None)
        if not self._open:
            self._empty.set()
