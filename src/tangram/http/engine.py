"""The common part of both HTTP engines: accepting, bounds, and the stop.

1. An engine accepts on ``dup()``s of the root's sockets, and closes only those.
2. An exception of one connection ends that connection only.
3. A cancelled engine stops accepting at once; if the server ends, it first takes the connections that wait in
   the kernel's queue, because no later incarnation will. Its connections have ``grace()`` seconds to finish
   the requests in hand; then their sockets are closed. The shield around them therefore always has an end.
4. A connection that uses nothing of the incarnation any more (a channel's WebSocket) may be ``adopted``: its
   task lives in a nursery outside the incarnation. The next incarnation then starts at once, while the
   clients of the old one are closed in batches beside it. Closing 1,000 of them first would take 150 ms,
   during which no request is served.
5. A server that ends waits a moment for clients that are about to join, closes its WebSockets at a pace that
   the other nodes can follow, and leaves upgrades to them that a proxy still sends here (``closing``).
6. The bounds on connections are checked before a byte is read, so that a refusal is cheap. At the bound the
   oldest connection that has not sent a request yet is closed for a newcomer. The bound never exceeds the
   process's limit on descriptors, less a reserve for plugins and Redis.

How a connection handles its bytes is decided in ``hypercorn`` and ``native``.
"""

from __future__ import annotations

import ipaddress
import select
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, Protocol

import attrs
import structlog
import trio

from tangram.asgi import RawHeaders, Scope
from tangram.descriptors import EXHAUSTED, connection_limit
from tangram.http.closing import CLOSE_AGAIN, CLOSE_PAUSE, ClosePace, Closing
from tangram.http.listeners import HeldSocket
from tangram.http.pending import PendingBytes
from tangram.log_limit import LogLimit
from tangram.ticks import next_tick
from tangram.turns import Turns

__all__ = [
    "UNIX_PEER",
    "ClientGone",
    "Connection",
    "Engine",
    "EngineSettings",
    "EngineStatistics",
    "PeerAddress",
    "failures_of",
    "has_hung_up",
    "network_of",
]

log = structlog.get_logger("tangram.http")

PeerAddress = tuple[Any, ...]
"""A peer's address as ``accept()`` returns it: host and port come first."""

ACCEPT_BATCH: Final = 8
"""Connections accepted from the kernel's queue before other tasks run: the first request of each takes half a
millisecond or more in the next pass of the loop.
"""

SHARED_BATCH: Final = 1
"""The same where several processes accept on one socket: the next connection may be for another one."""

TICK: Final = 0.5
"""Seconds between two checks of all connections' deadlines: a deadline may be this late."""

ACCEPT_PAUSE: Final = 0.1
"""Seconds to wait when the process has no file descriptor left: retrying at once would spin."""

ADOPTED_CLOSE_DELAY: Final = 0.05
"""Seconds before adopted connections are closed, so that the next incarnation starts first: its start takes
10 to 20 ms, and a client that came back earlier would wait for it.
"""

ADOPTED_CLOSE_TIME: Final = 3.0
"""Seconds in which adopted connections are closed, counted from the end of their engine."""

UNIX_PEER: Final[PeerAddress] = ("unix", 0)
"""The address of every client of a Unix socket."""


_OVERLOADED: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 21\r\n\r\ntoo many connections\n"
)


class ClientGone(OSError):
    """Raised by an application's ``send`` when the client has closed its connection.

    ASGI asks for an ``OSError`` here. It is not a failure of the application.
    """


class EngineSettings(Protocol):
    """The part of ``[server]`` that an engine reads: times in seconds, sizes in bytes."""

    @property
    def max_header_bytes(self) -> int: ...
    @property
    def max_headers(self) -> int: ...
    @property
    def max_body(self) -> int: ...
    @property
    def header_timeout(self) -> float: ...
    @property
    def max_pending_bytes(self) -> int: ...
    @property
    def body_timeout(self) -> float: ...
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
    """Counters of an engine since its start, and its open connections."""

    connections: int
    """Open connections of all kinds."""
    websockets: int
    """Open connections that are WebSockets."""
    accepted: int
    """Connections accepted from the kernel."""
    refused: int
    """Connections answered with 503 because a bound was reached."""
    requests: int
    """Requests passed to the application."""
    rejected: int
    """Requests answered by the engine itself because they broke the protocol or a bound."""
    failed: int
    """Requests whose application raised an exception."""
    crashed: int
    """Connections ended by an exception of the engine's own code."""
    stalled: int
    """Connections closed because the client did not read in time."""
    pending: int
    """Bytes of unfinished messages and bodies that are held now."""
    dropped: int
    """Connections closed because those of all clients together passed ``max_pending_bytes``."""
    forced: int
    """Connections whose sockets were closed at the end of a stop's grace."""
    evicted: int = 0
    """Connections without a request that were closed for another client at the bound."""


class Connection(Protocol):
    """One open connection as the engine sees it. No method may block."""

    def drain(self) -> None:
        """End after the request in hand, or after one that arrives at once."""

    def close_idle(self) -> None:
        """Close now if no request is in hand."""

    def start_close(self, code: int) -> bool:
        """Begin the closing handshake with ``code`` if the connection is a WebSocket.

        Returns:
            ``False`` if it is to be called again later, because the connection may still become one.
        """

    def has_requested(self) -> bool:
        """Return whether the client has sent at least one whole request."""

    def abort(self) -> None:
        """Close the socket now; a task that waits for it gets an error."""


_HUNG_UP: Final = getattr(select, "POLLRDHUP", select.POLLHUP)


def has_hung_up(sock: socket.socket) -> bool:
    """Return whether the client has closed its side, even if unread bytes are still queued."""
    if sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock, _HUNG_UP)
    return bool(poll.poll(0))


def network_of(address: str) -> str:
    """Return the network whose connections are counted together.

    That is an IPv4 address, or 64 bits of IPv6: each IPv6 customer gets a network of at least that size.
    """
    if ":" not in address:
        return address
    parsed = ipaddress.IPv6Address(address.partition("%")[0])
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(parsed) if parsed.is_loopback else str(ipaddress.IPv6Address(int(parsed) >> 64 << 64))


def failures_of(error: BaseException) -> BaseException | None:
    """Return the part of an exception that is not a cancellation, or None if there is none."""
    if isinstance(error, trio.Cancelled):
        return None
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1]
    return error


@attrs.define(eq=False)
class Engine:
    """The counters, bounds and open connections of one engine. ``serve`` runs it."""

    settings: EngineSettings
    handle: Callable[[socket.socket, PeerAddress, Callable[[Connection], None]], Awaitable[None]]
    """Serves one connection, given its non-blocking socket, its peer's address, and a function that registers
    its ``Connection``.
    """
    close_code: Callable[[], int] = lambda: 1012
    """Returns the code with which WebSockets are closed at a stop: 1012 for a restart, 1001 for good."""
    tick: Callable[[], None] | None = None
    """Called every ``TICK`` seconds to check deadlines: one check for all connections is cheaper than a
    timer for each.
    """
    secure: bool = False
    """Whether clients speak TLS, so that a refusal in plain text would not be understood."""
    body_limit: Callable[[Scope], int] | None = None
    """Returns the bytes that the body of the request with this scope may have, 0 for any number. It is called
    before the body is read. Default: ``settings.max_body``.
    """
    error_headers: Callable[[Scope], RawHeaders] | None = None
    """Returns the header fields of an answer that the engine gives in the application's place, for example
    those that let a page of another origin read it.
    """
    is_proxy: Callable[[str], bool] = lambda _: False
    """Returns whether an address is a proxy's, to which ``max_connections_per_address`` does not apply."""
    forwarded: Callable[[Scope], Scope] | None = None
    """Returns the scope with the client that a trusted proxy reports."""
    keep_adopted: Callable[[], bool] = lambda: False
    """Asked at the stop: may adopted connections outlive this engine? False when the whole server ends."""
    takes_waiting: Callable[[], bool] = lambda: False
    """Asked at the stop: does the server end, so that no later engine takes the connections in the kernel's
    queue?
    """
    closing: Closing = attrs.field(factory=Closing)
    """The last requests and the close of WebSockets at the stop."""
    draining: bool = False
    nursery: trio.Nursery | None = None
    """The nursery of connections that are not adopted."""
    adopted_nursery: trio.Nursery | None = None
    """The nursery of adopted connections and of the tasks that write for them."""
    pending: PendingBytes = attrs.field(init=False)
    """The unfinished messages and bodies of all clients."""
    accepted: int = 0
    refused: int = 0
    requests: int = 0
    rejected: int = 0
    failed: int = 0
    crashed: int = 0
    stalled: int = 0
    forced: int = 0
    websockets: int = 0
    evicted: int = 0
    turns: Turns = attrs.field(init=False)
    """The turns for work on bytes that takes more than one step."""
    _max_connections: int = 0
    _log_limit: LogLimit = attrs.field(factory=LogLimit)
    _open: int = 0
    connections: dict[Connection, None] = attrs.field(factory=dict)
    _without_request: dict[Connection, None] = attrs.field(factory=dict)
    _adopted: set[Connection] = attrs.field(factory=set)
    _per_address: dict[str, int] = attrs.field(factory=dict)
    _ended: trio.Event = attrs.field(factory=trio.Event)
    """Set when all connections that are not adopted have ended."""
    _drain: trio.Event = attrs.field(factory=trio.Event)
    _closed_one: trio.Event = attrs.field(factory=trio.Event)
    """Set, and replaced, whenever a connection has been closed."""

    def __attrs_post_init__(self) -> None:
        self.pending = PendingBytes(self.settings.max_pending_bytes, self.settings.body_timeout)
        self.turns = Turns(partial(self.log_client, "client slowed down"))

    def statistics(self) -> EngineStatistics:
        """Return the counters since the start."""
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
            pending=self.pending.total,
            dropped=self.pending.dropped,
            forced=self.forced,
            evicted=self.evicted,
        )

    def max_body(self, scope: Scope) -> int:
        """Return the bytes that the body of this request may have; 0 is any number."""
        return self.settings.max_body if self.body_limit is None else self.body_limit(scope)

    def headers_of_error(self, scope: Scope) -> RawHeaders:
        """Return the header fields of an answer to this request that the engine itself gives."""
        return [] if self.error_headers is None else self.error_headers(scope)

    def log_client(self, event: str, address: str, **fields: Any) -> None:
        """Log misbehaviour of a client, or its failure, once a minute for each event and address."""
        if self._log_limit.allows(event, address, trio.current_time()):
            log.warning(event, address=address, **fields)

    def address_of(self, scope: Scope) -> str:
        """Return the address of a request's client, also behind a trusted proxy."""
        client = (scope if self.forwarded is None else self.forwarded(scope)).get("client")
        return str(client[0]) if client else ""

    async def serve(
        self,
        listeners: Sequence[HeldSocket],
        *,
        grace: Callable[[], float],
        outer_nursery: trio.Nursery | None = None,
        task_status: trio.TaskStatus[Engine] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept connections until cancelled, then drain them and close the rest.

        Args:
            listeners: the root's listening sockets.
            grace: returns the seconds that connections have to finish after the cancellation.
            outer_nursery: outlives the incarnation. Adopted connections live there; if ``keep_adopted()`` is
                true at the stop, they are also closed there, after this method has returned.
            task_status: reports this engine once it accepts.
        """
        self._max_connections = connection_limit(self.settings.max_connections)
        async with trio.open_nursery() as parent:
            try:
                # Inside the try block: a `start` that is cancelled in this very step raises although the task
                # that it started goes on.
                await (outer_nursery or parent).start(self._run_adopted, outer_nursery is None)
                keep_adopted = self.keep_adopted if outer_nursery is not None else lambda: False
                nursery: trio.Nursery = await parent.start(self._run_connections, grace, keep_adopted)
                async with trio.open_nursery() as acceptors:
                    for held in listeners:
                        acceptors.start_soon(self._accept, held, nursery)
                    task_status.started(self)
            finally:
                self.draining = True
                self._drain.set()
                if self.nursery is None:
                    self._ended.set()  # `_run_connections`, which sets it otherwise, never ran

    async def _run_connections(
        self,
        grace: Callable[[], float],
        keep_adopted: Callable[[], bool],
        *,
        task_status: trio.TaskStatus[trio.Nursery],
    ) -> None:
        """Hold the nursery of all connections that are not adopted, and drain them at the stop."""
        assert self.adopted_nursery is not None
        # If this task were cancelled before its first step, `start` would keep it in a nursery in which
        # nothing ends the shield below.
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            async with trio.open_nursery() as nursery:
                self.nursery = nursery
                # Bounded: the drain below ends with a cancel of this very scope.
                nursery.cancel_scope.shield = True
                task_status.started(nursery)
                await self._drain.wait()
                seconds = max(0.0, grace())
                kept = self._adopted if keep_adopted() else set[Connection]()
                with trio.move_on_after(seconds):
                    await self._finish(kept, seconds)
                self._force(kept)
                nursery.cancel_scope.cancel()
                if kept is not self._adopted:
                    self.adopted_nursery.cancel_scope.cancel()
        finally:
            self._ended.set()

    async def _run_adopted(self, shielded: bool, *, task_status: trio.TaskStatus[None]) -> None:
        """Hold the nursery of adopted connections, check deadlines, and close them at the end."""
        await trio.lowlevel.checkpoint_if_cancelled()  # as in _run_connections
        async with trio.open_nursery() as nursery:
            self.adopted_nursery = nursery
            # Bounded: by the drain of the engine, or by ADOPTED_CLOSE_TIME after it.
            nursery.cancel_scope.shield = shielded
            if self.tick is not None:
                nursery.start_soon(self._check_deadlines, self.tick)
            task_status.started()
            await self._ended.wait()
            with trio.move_on_after(ADOPTED_CLOSE_TIME):
                await trio.sleep(ADOPTED_CLOSE_DELAY)
                await self._close_websockets(set(), ADOPTED_CLOSE_TIME)
            self._force(set())
            nursery.cancel_scope.cancel()

    def _force(self, kept: set[Connection]) -> None:
        """Close the sockets of all connections but those in ``kept``."""
        for connection in list(self.connections):
            if connection not in kept:
                self.forced += 1
                connection.abort()

    async def _check_deadlines(self, tick: Callable[[], None]) -> None:
        while True:
            await trio.sleep_until(next_tick(trio.current_time(), TICK))
            tick()

    async def _finish(self, kept: set[Connection], seconds: float) -> None:
        """Let all connections but those in ``kept`` finish their requests and close."""
        for connection in list(self.connections):
            connection.drain()
        until = trio.current_time() + seconds
        patience = self.closing.last_request_time()
        if len(self.connections) > len(kept) and seconds > patience:
            # A request may be on its way on a connection that is still open: it is answered, not cut.
            with trio.move_on_after(patience):
                while self._open > self.websockets:
                    self._closed_one = trio.Event()
                    await self._closed_one.wait()
        for connection in list(self.connections):
            connection.close_idle()
        if kept is not self._adopted:
            await self.closing.settle()
        await self._close_websockets(kept, until - trio.current_time())

    async def _close_websockets(self, kept: set[Connection], seconds: float) -> None:
        """Close WebSockets in batches; wait until only the connections in ``kept`` are left."""
        code = self.close_code()
        leaving = [connection for connection in self.connections if connection not in kept]
        told: set[Connection] = set()

        def tell(connections: Iterable[Connection]) -> None:
            told.update([one for one in connections if one not in told and one.start_close(code)])

        pace = ClosePace(self.closing.each(), seconds, trio.current_time())
        while leaving:
            batch = pace.next_batch(len(leaving), self.closing.away(), trio.current_time())
            tell(leaving[:batch])
            del leaving[:batch]
            if leaving:
                await trio.sleep(CLOSE_PAUSE)
        again = trio.current_time() + CLOSE_AGAIN
        while self._open > len(kept):
            self._closed_one = trio.Event()
            with trio.move_on_at(again):
                await self._closed_one.wait()
            if trio.current_time() >= again:
                again = trio.current_time() + CLOSE_AGAIN
                tell(self.connections.keys() - kept)  # requests that have become WebSockets meanwhile

    def leaves_upgrade(self, address: str) -> bool:
        """Return whether an upgrade from this address is to get no answer.

        A proxy sends a request again to another node if the first one closed the connection without any
        answer. The client then notices nothing of the stop, while a WebSocket here would be closed at once.
        """
        proxied = address == UNIX_PEER[0] or self.is_proxy(address)
        return proxied and self.draining and self.takes_waiting()

    async def _accept(self, held: HeldSocket, nursery: trio.Nursery) -> None:
        """Accept connections on one listening socket until cancelled."""
        if held.closed:
            return  # the stop has begun in the moment of the start
        listener = held.dup()
        try:
            while True:
                await trio.lowlevel.wait_readable(listener)
                if held.share is not None and (pause := held.share.pause(self._open)):
                    await trio.sleep(pause)
                batch = ACCEPT_BATCH if held.share is None else SHARED_BATCH
                if not self._accept_batch(listener, batch, nursery):
                    await trio.sleep(ACCEPT_PAUSE)
        finally:
            if held.share is not None:
                held.share.leave()
            trio.lowlevel.notify_closing(listener)
            if self.takes_waiting():
                # The close below resets connections that are still in the queue.
                self._accept_batch(listener, self._max_connections, nursery)
            listener.close()

    def _accept_batch(self, listener: socket.socket, count: int, nursery: trio.Nursery) -> bool:
        """Accept the waiting connections, ``count`` at most.

        Returns:
            ``False`` if there is no file descriptor left, not even that of a connection without a request.
        """
        for _ in range(count):
            try:
                client, address = listener.accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    continue  # this client left while it waited; the next one is unaffected
                evicted = self._evict()
                self._warn_of_bound("no file descriptor for another connection")
                return evicted
            self._admit(client, address or UNIX_PEER, nursery)
        return True

    def _admit(self, client: socket.socket, address: PeerAddress, nursery: trio.Nursery) -> None:
        """Start the task of a new connection, or refuse it if a bound is reached."""
        self.accepted += 1
        client.setblocking(False)
        network = network_of(address[0])
        here = self._per_address.get(network, 0)
        full = self._open >= self._max_connections
        if self._is_over(network, here) or (full and not self._evict()):
            self.refused += 1
            self._refuse(client)
            self._warn_of_bound("connection refused at its bound", address=address[0])
            return
        if full:
            self._warn_of_bound("connection without a request closed at the bound", address=address[0])
        self._per_address[network] = here + 1
        self._open += 1
        nursery.start_soon(self._serve_connection, client, address)

    def _is_over(self, network: str, here: int) -> bool:
        """Return whether an address has all the connections that it may have."""
        bound = self.settings.max_connections_per_address
        if not bound or network == UNIX_PEER[0]:  # a Unix socket has one client, the proxy
            return False
        # Half of all connections at most, where the limit on descriptors allows few.
        return here >= min(bound, max(1, self._max_connections // 2)) and not self.is_proxy(network)

    def _evict(self) -> bool:
        """Close the oldest connection without a request; return ``False`` if there is none.

        Each connection is examined once at most, so that the search is cheap for each newcomer.
        """
        while self._without_request:
            connection = next(iter(self._without_request))
            del self._without_request[connection]
            if not connection.has_requested():
                self.evicted += 1
                connection.abort()
                return True
        return False

    def _warn_of_bound(self, event: str, **fields: Any) -> None:
        """Log that a bound on connections was reached, once a minute for the busiest address."""
        busiest = max(self._per_address, key=self._per_address.__getitem__, default="")
        if self._log_limit.allows("bound", busiest, trio.current_time()):
            log.warning(
                event,
                busiest=busiest,
                connections_of_busiest=self._per_address.get(busiest, 0),
                open=self._open,
                max_connections=self._max_connections,
                evicted=self.evicted,
                refused=self.refused,
                **fields,
            )

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

    async def _serve_connection(self, client: socket.socket, address: PeerAddress) -> None:
        """Serve one connection from its first byte to its last; its exceptions stop here."""
        registered: list[Connection] = []

        def register(connection: Connection) -> None:
            registered.append(connection)
            self.connections[connection] = self._without_request[connection] = None
            if self.draining:
                connection.drain()

        try:
            await self.handle(client, address, register)
        except BaseException as error:  # noqa: BLE001 - raised again unless the connection itself raised it
            self._contain(error, address)
        finally:
            # The task of an adopted connection does this at its own end.
            if self._adopted.isdisjoint(registered):
                for connection in registered:
                    del self.connections[connection]
                    self._without_request.pop(connection, None)
                self._close(client)
                self._release(address[0])

    def adopt(
        self,
        connection: Connection,
        client: socket.socket,
        address: PeerAddress,
        run: Callable[[], Awaitable[None]],
    ) -> None:
        """Continue ``connection`` in a task that may outlive this engine.

        Called within ``handle``, which then returns.

        Args:
            connection: the registered connection.
            client: its socket.
            address: its peer's address.
            run: serves the connection to its end; it must use nothing of the incarnation.
        """
        assert self.adopted_nursery is not None
        self._adopted.add(connection)
        self.adopted_nursery.start_soon(self._serve_adopted, connection, client, address, run)

    async def _serve_adopted(
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
            self._without_request.pop(connection, None)
            self._adopted.discard(connection)
            self._close(client)
            self._release(address[0])

    def _contain(self, error: BaseException, address: PeerAddress) -> None:
        """Log and count the failure of one connection; raise anything that must go further."""
        rest = failures_of(error)
        if not isinstance(rest, Exception):
            raise error
        self.crashed += 1
        if self._log_limit.allows("failed", address[0], trio.current_time()):
            log.error("connection failed", address=address[0], crashed=self.crashed, exc_info=rest)

    def _close(self, client: socket.socket) -> None:
        if client.fileno() >= 0:
            trio.lowlevel.notify_closing(client)
            client.close()

    def _release(self, address: str) -> None:
        """Count one connection less, in all and from ``address``."""
        address = network_of(address)
        self._open -= 1
        left = self._per_address.get(address, 1) - 1
        if left > 0:
            self._per_address[address] = left
        else:
            self._per_address.pop(address, None)
        self._closed_one.set()
