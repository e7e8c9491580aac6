"""A broker in memory: enough of Valkey for the bus, subscribers and small plugins.

It stands in two places of the real one. It *is* an ``EmbeddedBroker`` to the tree (``Boot.embedded``),
which starts and restarts it like the process. And it is dialled without a socket
(``bus.resp.current_dial``); redis-py, which needs sockets, reaches it on a real port of loopback.

`tangram.testing.fakes.valkey` decides its answers; this module has its incarnations and connections.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

from tangram.broker import BrokerStatistics, EmbeddedBroker
from tangram.bus.resp import dial_socket
from tangram.config import BrokerConfig
from tangram.errors import BrokerUnavailable
from tangram.testing.fakes.memory_stream import PipeEnd, open_pipe
from tangram.testing.fakes.ports import free_port
from tangram.testing.fakes.valkey import ClientState, ProtocolFault, Requests, Valkey
from tangram.testing.fakes.valkey.wire import ReplyError

if TYPE_CHECKING:
    from tangram.redis_url import RedisAddress

__all__ = ["MemoryBroker"]

HOST: Final = "127.0.0.1"
LISTEN_QUEUE: Final = 32
"""Connections of redis-py that may wait in the kernel: a test has a handful."""

ACCEPT_AGAIN: Final = 0.05
"""Seconds until the next accept where the kernel gives no connection, for example without descriptors."""

FLUSH_SECONDS: Final = 1.0
"""Seconds for sending pending answers to a client that has finished: a reading client has them at once."""


class _Freezer:
    """Whether the broker answers; a look at ``frozen`` costs no step of the loop."""

    def __init__(self) -> None:
        self.frozen = False
        self._thawed = trio.Event()

    def freeze(self) -> None:
        self.frozen, self._thawed = True, trio.Event()

    def thaw(self) -> None:
        self.frozen = False
        self._thawed.set()

    async def wait_thawed(self) -> None:
        await self._thawed.wait()


class _Client:
    """One connection, as the broker sees it."""

    def __init__(self, stream: trio.abc.Stream, server: Valkey) -> None:
        self.stream = stream
        self.server = server
        self.scope = trio.CancelScope()
        self._lot = trio.lowlevel.ParkingLot()
        self.session: ClientState = server.connect(self._lot.unpark_all, self.scope.cancel)

    async def write(self, freezer: _Freezer) -> None:
        """Send the session's output until it closes."""
        session = self.session
        while True:
            data = session.take()
            if data:
                if freezer.frozen:
                    await freezer.wait_thawed()
                await self.stream.send_all(data)
                session.sent(len(data))
            elif session.closing:
                return
            else:
                await self._lot.park()

    async def read(self, freezer: _Freezer) -> None:
        """Execute requests until the stream ends or is invalid."""
        requests = Requests()
        try:
            while chunk := await self.stream.receive_some(65536):
                requests.feed(bytes(chunk))
                for words in requests:
                    if freezer.frozen:
                        await freezer.wait_thawed()
                    self.server.execute(self.session, words)
                    if self.session.closing:
                        return
        except ProtocolFault as fault:
            self.session.emit(ReplyError(f"ERR Protocol error: {fault}"))
        finally:
            self.scope.deadline = trio.current_time() + FLUSH_SECONDS
            self.session.close()


class MemoryBroker(EmbeddedBroker):
    """A small Valkey in the test's own loop; one object for all its incarnations."""

    def __init__(self, config: BrokerConfig | None = None) -> None:
        super().__init__(config or BrokerConfig(port=0))
        self._port: int | None = None
        self.published: list[tuple[bytes, bytes]] = []
        """Every message that it has accepted: channel and payload."""
        self._clients: dict[_Client, None] = {}
        self._unclosed: dict[PipeEnd, None] = {}
        self._nursery: trio.Nursery | None = None
        self._begin()

    def _begin(self, before: Valkey | None = None) -> None:
        """Set the state of a process that has just started: running and writable.

        It is empty, unless it reads the append-only file of the process before.
        """
        self._valkey = Valkey(trio.current_time, self.publish)
        if before is not None:
            self._valkey.take_data(before)
        self._killed = trio.Event()
        self._freezer = _Freezer()

    # -- for the tree ---------------------------------------------------------------------------------

    @property
    def identity(self) -> str | None:
        """A name of the stored data: it survives a kill where a topic has a history."""
        return "memory" if self.keeps else None

    @property
    def server_url(self) -> str:
        """The URL of the server itself: the same as for all clients."""
        return "" if self._port is None else f"redis://{HOST}:{self._port}"

    def statistics(self) -> BrokerStatistics:
        """Return a record of this moment; without a process there is no process id."""
        return BrokerStatistics(
            kind="embedded",
            url=None if self._port is None else f"redis://{HOST}:{self._port}",
            up=self._up,
            version="memory",
            starts=self._starts,
            last_error=self._last_error,
        )

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Run one incarnation: ``started(url)`` at once, `BrokerUnavailable` when it is killed."""
        self._begin(self._valkey if self.keeps else None)
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((HOST, self._port or self._config.port or free_port()))
            listener.listen(LISTEN_QUEUE)
            listener.setblocking(False)
            self._port = listener.getsockname()[1]
            self._starts += 1
            try:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._accept, listener)
                    self._up = True
                    task_status.started(f"redis://{HOST}:{self._port}")
                    await self._killed.wait()
                    nursery.cancel_scope.cancel()
            finally:
                self._up, self._nursery = False, None
                trio.lowlevel.notify_closing(listener)
        self._last_error = "the broker in memory ended: it was killed"
        raise BrokerUnavailable(self._last_error)

    # -- for the bus ----------------------------------------------------------------------------------

    async def dial(self, address: RedisAddress) -> trio.abc.Stream:
        """Return a connection without a socket; dial other addresses as usual."""
        if (address.host, address.port) != (HOST, self._port):
            return await dial_socket(address)
        await trio.lowlevel.checkpoint()
        if self._nursery is None or self._killed.is_set():
            raise ConnectionRefusedError(111, "Connection refused")
        ours, theirs = open_pipe(self._unclosed.pop)
        self._unclosed[ours] = None
        self._nursery.start_soon(self._serve, theirs)
        return ours

    # -- for tests ---------------------------------------------------------------------------------

    @property
    def clients(self) -> int:
        """Return the number of open connections."""
        return len(self._clients)

    @property
    def unclosed(self) -> int:
        """Return the number of connections without a socket that the dialling side has not closed.

        All incarnations count. The census asks when everything has ended, the broker perhaps before its
        last client: the end of the broker closes nothing on the client's side. Connections with a
        socket are among the descriptors.
        """
        return len(self._unclosed)

    def kill(self) -> None:
        """End it, as SIGKILL ends a process."""
        self._killed.set()

    def drop(self) -> None:
        """Break every connection; new ones are accepted."""
        for client in list(self._clients):
            client.scope.cancel()

    def freeze(self) -> None:
        """Answer nothing, as under SIGSTOP: connections stay open and silent."""
        if not self._freezer.frozen:
            self._freezer.freeze()

    def thaw(self) -> None:
        """Answer again, beginning with the requests that came meanwhile."""
        self._freezer.thaw()

    def make_readonly(self, readonly: bool = True) -> None:
        """Refuse writes, as a replica does; publishing is no write."""
        self._valkey.readonly = readonly

    def publish(self, channel: bytes, payload: bytes) -> int:
        """Deliver a message, and return how many subscriptions receive it."""
        self.published.append((channel, payload))
        return self._valkey.deliver(channel, payload)

    # -- connections -----------------------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> None:
        assert self._nursery is not None
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                connection, _ = listener.accept()
            except OSError:  # the client is gone, or no descriptor is left: Valkey goes on as well
                await trio.sleep(ACCEPT_AGAIN)
                continue
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
            self._nursery.start_soon(self._serve, stream)

    async def _serve(self, stream: trio.abc.Stream) -> None:
        client = _Client(stream, self._valkey)
        self._clients[client] = None
        try:
            with client.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_until_lost, client.write, self._freezer, client)
                    nursery.start_soon(_until_lost, client.read, self._freezer, client)
        finally:
            del self._clients[client]
            client.server.disconnect(client.session)
            await trio.aclose_forcefully(stream)


async def _until_lost(run: Callable[[_Freezer], Awaitable[None]], freezer: _Freezer, client: _Client) -> None:
    try:
        await run(freezer)
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        client.scope.cancel()
