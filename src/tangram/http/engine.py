"""What both HTTP engines share: a server's life on held sockets, from accept to the last connection's end.

1. An engine accepts on ``dup()``s of the root's sockets, and closes only those.
2. Whatever one connection raises ends that connection only.
3. Cancelled, it stops accepting at once, lets the connections finish what they have begun for ``grace()``
   seconds, and then closes their sockets under them. The shield around them therefore always has an end.
4. A connection in which nothing of the incarnation runs any more (a channel's WebSocket) may be ``adopted``:
   its task lives in a nursery beyond the incarnation, which can so begin anew at once, while those who are
   still connected to the old one are told to come back, batch by batch. Tearing down 1,000 of them first
   costs 150 ms, in which nobody would be served.
5. Bounds on connections are kept here, before a byte is read: a refusal must be cheap.

What is decided elsewhere: what a connection does with its bytes (``hypercorn``, ``native``).
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import attrs
import structlog
import trio

from tangram.asgi import Scope
from tangram.http.listeners import HeldSocket

__all__ = [
    "ClientGone",
    "Engine",
    "EngineSettings",
    "EngineStatistics",
    "PeerAddress",
    "failures_of",
    "has_hung_up",
]

log = structlog.get_logger("tangram.http")

PeerAddress = tuple[Any, ...]
"""What accept() tells of a peer: host and port first."""

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

PARTING_PAUSE = 0.05
"""Seconds that adopted connections wait for their good-bye, so that the next incarnation's start goes first:
it takes 10-20 ms, and who comes back before that would wait as long."""

PARTING_TIME = 3.0
"""Seconds for adopted connections to be told, and to close, after their engine has ended."""

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


_HUNG_UP = getattr(select, "POLLRDHUP", select.POLLHUP)


def has_hung_up(sock: socket.socket) -> bool:
    """Whether the client sends no more, also behind bytes that nobody has read yet."""
    if sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock, _HUNG_UP)
    return bool(poll.poll(0))


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
    handle: Callable[[socket.socket, PeerAddress, Callable[[Connection], None]], Awaitable[None]]
    """Carries one connection: its socket (non-blocking), its peer's address, and where to report itself."""
    close_code: Callable[[], int] = lambda: 1012
    """With which code WebSockets are told to go: 1012 for a restart, 1001 for good."""
    tick: Callable[[], None] | None = None
    """Called every TICK seconds while connections are open: deadlines are kept by looking, not by a timer
    each.
    """
    secure: bool = False
    """With TLS a refusal cannot be told in plain text."""
    body_limit: Callable[[Scope], int] | None = None
    """Returns the largest body in bytes of the request with this scope (0 is no limit), asked before the body
    is read; without it the limit is ``settings.max_body`` for all requests.
    """
    keep_adopted: Callable[[], bool] = lambda: False
    """Asked at the stop: may adopted connections outlive this engine? Not when the whole server ends."""
    draining: bool = False
    nursery: trio.Nursery | None = None
    """Where connections live that have not been adopted."""
    sockets: trio.Nursery | None = None
    """Where adopted connections live, and what they leave behind to be written."""
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
    _adopted: set[Connection] = attrs.field(factory=set)
    _per_address: dict[str, int] = attrs.field(factory=dict)
    _parting: trio.Event = attrs.field(factory=trio.Event)
    _drain: trio.Event = attrs.field(factory=trio.Event)
    _gone: trio.Event = attrs.field(factory=trio.Event)

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
        outer_nursery: trio.Nursery | None = None,
        task_status: trio.TaskStatus[Engine] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept until cancelled, then drain for ``grace()`` seconds, then close the rest forcefully.

        Adopted connections live in ``outer_nursery``, which outlives the incarnation. If ``keep_adopted()``
        is true at the stop, they also end there.
        """
        async with trio.open_nursery() as parent:
            try:
                # Inside: cancelled in this very step, a start raises although what it started goes on.
                await (outer_nursery or parent).start(self._hold_sockets, outer_nursery is None)
                nursery: trio.Nursery = await parent.start(
                    self._hold_connections,
                    grace,
                    self.keep_adopted if outer_nursery is not None else lambda: False,
                )
                async with trio.open_nursery() as acceptors:
                    for held in listeners:
                        acceptors.start_soon(self._accept, held, nursery)
                    task_status.started(self)
            finally:
                self.draining = True
                self._drain.set()
                if self.nursery is None:
                    self._parting.set()  # it never came to hold connections, whose end would tell this

    async def _hold_connections(
        self,
        grace: Callable[[], float],
        keep_adopted: Callable[[], bool],
        *,
        task_status: trio.TaskStatus[trio.Nursery],
    ) -> None:
        assert self.sockets is not None
        # Cancelled before it has begun, `start` would keep the task where nobody ends the shield below.
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            async with trio.open_nursery() as nursery:
                self.nursery = nursery
                # Bounded: the drain below ends with a cancel of this very scope.
                nursery.cancel_scope.shield = True
                task_status.started(nursery)
                await self._drain.wait()
                seconds = max(0.0, grace())
                left = self._adopted if keep_adopted() else set[Connection]()
                with trio.move_on_after(seconds):
                    await self._finish(left, seconds)
                self._force(left)
                nursery.cancel_scope.cancel()
                if left is not self._adopted:
                    self.sockets.cancel_scope.cancel()
        finally:
            self._parting.set()

    async def _hold_sockets(self, shielded: bool, *, task_status: trio.TaskStatus[None]) -> None:
        """The life of adopted connections, and of the look at deadlines."""
        await trio.lowlevel.checkpoint_if_cancelled()  # as above
        async with trio.open_nursery() as nursery:
            self.sockets = nursery
            # Bounded: by the drain of the engine, or by PARTING_TIME after it.
            nursery.cancel_scope.shield = shielded
            if self.tick is not None:
                nursery.start_soon(self._watch, self.tick)
            task_status.started()
            await self._parting.wait()
            with trio.move_on_after(PARTING_TIME):
                await trio.sleep(PARTING_PAUSE)
                await self._part(set())
            self._force(set())
            nursery.cancel_scope.cancel()

    def _force(self, left: set[Connection]) -> None:
        for connection in list(self.connections):
            if connection not in left:
                self.forced += 1
                connection.abort()

    async def _watch(self, tick: Callable[[], None]) -> None:
        while True:
            await trio.sleep(TICK)
            tick()

    async def _finish(self, left: set[Connection], seconds: float) -> None:
        """End all connections but those in ``left``."""
        for connection in list(self.connections):
            connection.drain()
        if len(self.connections) > len(left) and seconds > LAST_REQUEST_TIME:
            # A request may be on its way on a connection that is still open: it is answered, not cut.
            await trio.sleep(LAST_REQUEST_TIME)
        for connection in list(self.connections):
            connection.close_idle()
        await self._part(left)

    async def _part(self, left: set[Connection]) -> None:
        """Tell WebSockets to go, in batches, and wait until all have gone but those in ``left``."""
        code = self.close_code()
        going = [connection for connection in self.connections if connection not in left]
        for number, connection in enumerate(going, 1):
            connection.say_goodbye(code)
            if number % CLOSE_BATCH == 0:
                await trio.sleep(CLOSE_PAUSE)
        while self._open > len(left):
            self._gone = trio.Event()
            await self._gone.wait()

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

    def _admit(self, client: socket.socket, address: PeerAddress, nursery: trio.Nursery) -> None:
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

    async def _carry(self, client: socket.socket, address: PeerAddress) -> None:
        """One connection, from the first byte to the last; what it raises goes no further."""
        mine: list[Connection] = []

        def report(connection: Connection) -> None:
            mine.append(connection)
            self.connections[connection] = None
            if self.draining:
                connection.drain()

        try:
            await self.handle(client, address, report)
        except BaseException as error:  # noqa: BLE001 - raised again but for what the connection raised
            self._contain(error, address)
        finally:
            # An adopted one is carried on by another task, which sees to its end.
            if self._adopted.isdisjoint(mine):
                for connection in mine:
                    del self.connections[connection]
                self._close(client)
                self._release(address[0])

    def adopt(
        self,
        connection: Connection,
        client: socket.socket,
        address: PeerAddress,
        run: Callable[[], Awaitable[None]],
    ) -> None:
        """Carry ``connection`` on in a task that may outlive this engine: ``run`` must use nothing of the
        incarnation. Called by ``handle``, which then returns.
        """
        assert self.sockets is not None
        self._adopted.add(connection)
        self.sockets.start_soon(self._carry_on, connection, client, address, run)

    async def _carry_on(
        self,
        connection: Connection,
        client: socket.socket,
        address: PeerAddress,
        run: Callable[[], Awaitable[None]],
    ) -> None:
        try:
            await run()
        except BaseException as error:  # noqa: BLE001 - the same
            self._contain(error, address)
        finally:
            del self.connections[connection]
            self._adopted.discard(connection)
            self._close(client)
            self._release(address[0])

    def _tell(self, error: Exception, address: PeerAddress) -> None:
        """Once a second at most: whoever can make a connection fail must not be able to fill the log."""
        now = trio.current_time()
        if now - self._told >= 1.0:
            self._told = now
            log.error("a connection failed", address=address[0], crashed=self.crashed, exc_info=error)

    def _contain(self, error: BaseException, address: PeerAddress) -> None:
        rest = failures_of(error)
        if not isinstance(rest, Exception):
            raise error
        self.crashed += 1
        self._tell(rest, address)

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
        self._gone.set()
