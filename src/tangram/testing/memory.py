"""A broker in memory: enough of Redis for the bus, subscribers and small plugins, and it breaks on command.

It stands behind two seams of the real one. It *is* an ``EmbeddedBroker`` to the tree (``Boot.embedded``): it
is started, restarted and missed like the process. And it is dialled without a socket
(``bus.resp.current_dial``); redis-py, which knows sockets only, reaches it on a real port of loopback.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import hiredis
import trio
from trio.testing import memory_stream_pair

from tangram.broker import BrokerStatistics, EmbeddedBroker
from tangram.bus.resp import dial_socket
from tangram.config import BrokerConfig
from tangram.errors import BrokerUnavailable
from tangram.testing.ports import free_port

if TYPE_CHECKING:
    from tangram.bus.urls import Address

__all__ = ["MemoryBroker"]

HOST = "127.0.0.1"
LISTEN_QUEUE = 32
"""Connections of redis-py that may wait in the kernel: a test has a handful."""


def _bulk(part: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(part), part)


def _array(*parts: bytes) -> bytes:
    return b"*%d\r\n" % len(parts) + b"".join(map(_bulk, parts))


class _Client:
    """One connection, seen from the broker."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.patterns: dict[bytes, bytes] = {}
        """What is subscribed to, and by which of the two commands."""
        self.scope = trio.CancelScope()
        self.outbox, self._inbox = trio.open_memory_channel[bytes](float("inf"))

    async def write(self) -> None:
        async for data in self._inbox:
            await self.stream.send_all(data)


class MemoryBroker(EmbeddedBroker):
    """A small Redis in the test's own loop. One object for all its lives, as the process has."""

    def __init__(self, config: BrokerConfig | None = None) -> None:
        super().__init__(config or BrokerConfig(port=0))
        self.published: list[tuple[bytes, bytes]] = []
        """Every message that it has taken: channel and payload."""
        self._data: dict[bytes, bytes] = {}
        self._clients: dict[_Client, None] = {}
        self._killed = trio.Event()
        self._thawed = trio.Event()
        self._thawed.set()
        self._nursery: trio.Nursery | None = None
        self._readonly = False

    # -- as the tree sees it ---------------------------------------------------------------------------------

    def statistics(self) -> BrokerStatistics:
        """A record of this moment; there is no process, and so no process id."""
        return BrokerStatistics(
            kind="embedded",
            url=None if self._port is None else f"redis://{HOST}:{self._port}",
            up=self._up,
            version="memory",
            starts=self._starts,
            last_error=self._last_error,
        )

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """One life: ``started(url)`` at once; ``BrokerUnavailable`` when it is killed."""
        self._killed = trio.Event()
        self._data.clear()  # nothing is kept on disk by the real one either
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

    # -- as the bus sees it ----------------------------------------------------------------------------------

    async def dial(self, address: Address) -> trio.abc.Stream:
        """A connection without a socket; addresses of others are dialled as ever."""
        if (address.host, address.port) != (HOST, self._port):
            return await dial_socket(address)
        await trio.lowlevel.checkpoint()
        if self._nursery is None or self._killed.is_set():
            raise ConnectionRefusedError(111, "Connection refused")
        ours, theirs = memory_stream_pair()
        self._nursery.start_soon(self._serve, theirs)
        return ours

    # -- as the test sees it ---------------------------------------------------------------------------------

    @property
    def clients(self) -> int:
        """Connections that are open now."""
        return len(self._clients)

    def kill(self) -> None:
        """End it, as SIGKILL ends the process."""
        self._killed.set()

    def drop(self) -> None:
        """Break every connection; new ones are accepted."""
        for client in list(self._clients):
            client.scope.cancel()

    def freeze(self) -> None:
        """Answer nothing any more, as under SIGSTOP: connections stay open and stay silent."""
        self._thawed = trio.Event()

    def thaw(self) -> None:
        """Answer again, beginning with what has come meanwhile."""
        self._thawed.set()

    def make_readonly(self, readonly: bool = True) -> None:
        """Refuse writes, as a replica does; messages are none."""
        self._readonly = readonly

    # -- connections -----------------------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> None:
        assert self._nursery is not None
        while True:
            await trio.lowlevel.wait_readable(listener)
            connection, _ = listener.accept()
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(connection))
            self._nursery.start_soon(self._serve, stream)

    async def _serve(self, stream: trio.abc.Stream) -> None:
        client = _Client(stream)
        self._clients[client] = None
        try:
            with client.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_until_lost, client.write, client)
                    nursery.start_soon(_until_lost, lambda: self._read(client), client)
        finally:
            del self._clients[client]
            await trio.aclose_forcefully(stream)

    async def _read(self, client: _Client) -> None:
        reader = hiredis.Reader()
        while chunk := await client.stream.receive_some(65536):
            reader.feed(bytes(chunk))
            while (words := reader.gets()) is not False:
                await self._thawed.wait()
                self._answer(client, list(words))

    def _answer(self, client: _Client, words: list[bytes]) -> None:
        name = words[0].upper().decode()
        if self._readonly and name in {"SET", "DEL", "INCR"}:
            client.outbox.send_nowait(b"-READONLY You can't write against a read only replica.\r\n")
            return
        if name in {"SUBSCRIBE", "PSUBSCRIBE"}:
            for pattern in words[1:]:
                client.patterns[pattern] = words[0].upper()
                self._confirm(client, name.lower(), pattern)
        elif name in {"UNSUBSCRIBE", "PUNSUBSCRIBE"}:
            for pattern in words[1:] or list(client.patterns):
                client.patterns.pop(pattern, None)
                self._confirm(client, name.lower(), pattern)
        else:
            client.outbox.send_nowait(self._reply(client, name, words[1:]))

    def _confirm(self, client: _Client, word: str, pattern: bytes) -> None:
        answer = b"*3\r\n" + _bulk(word.encode()) + _bulk(pattern) + b":%d\r\n" % len(client.patterns)
        client.outbox.send_nowait(answer)

    def _reply(self, client: _Client, name: str, words: list[bytes]) -> bytes:
        data = self._data
        match name, words:
            case "PING", _:
                answer = _array(b"pong", b"") if client.patterns else b"+PONG\r\n"
            case "PUBLISH", [channel, payload]:
                answer = b":%d\r\n" % self.publish(channel, payload)
            case "GET", [key]:
                answer = _bulk(data[key]) if key in data else b"$-1\r\n"
            case "SET", [key, value, *_]:
                data[key] = value
                answer = b"+OK\r\n"
            case "DEL", keys:
                answer = b":%d\r\n" % sum(data.pop(key, None) is not None for key in keys)
            case "INCR", [key]:
                data[key] = b"%d" % (int(data.get(key, b"0")) + 1)
                answer = b":%b\r\n" % data[key]
            case (("AUTH" | "SELECT" | "CLIENT"), _):
                answer = b"+OK\r\n"
            case _:
                answer = f"-ERR unknown command '{name}' for the broker in memory\r\n".encode()
        return answer

    def publish(self, channel: bytes, payload: bytes) -> int:
        """Deliver a message; how many connections get it."""
        self.published.append((channel, payload))
        receivers = 0
        for client in self._clients:
            for pattern, command in client.patterns.items():
                if command == b"SUBSCRIBE" and pattern == channel:
                    client.outbox.send_nowait(_array(b"message", channel, payload))
                    receivers += 1
                elif command == b"PSUBSCRIBE" and fnmatchcase(
                    channel.decode("latin-1"), pattern.decode("latin-1")
                ):
                    client.outbox.send_nowait(_array(b"pmessage", pattern, channel, payload))
                    receivers += 1
        return receivers


async def _until_lost(run: Callable[[], Awaitable[None]], client: _Client) -> None:
    with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        await run()
    client.scope.cancel()
