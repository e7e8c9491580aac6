"""A Redis in memory: enough RESP2 for the bus, and the faults of networks and servers."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

import hiredis
import trio
from trio.testing import memory_stream_pair

from tangram.redis_url import RedisAddress
from tangram.testing.fakes.memory_stream import open_pipe

URL = "redis://fake"


def bulk(*parts: bytes) -> bytes:
    """Return an array of bulk strings, as Redis writes it."""
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def pmessage(pattern: bytes, channel: bytes, payload: bytes) -> bytes:
    return bulk(b"pmessage", pattern, channel, payload)


async def until(condition: Callable[[], object]) -> None:
    """Return once a condition holds; it is checked every millisecond of Trio's clock."""
    while not condition():  # noqa: ASYNC110 - what is waited for has no event, on purpose
        await trio.sleep(0.001)


class Connection:
    """One client of the fake, as the server sees it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.patterns: list[bytes] = []
        self.channels: set[bytes] = set()
        self.commands: list[list[bytes]] = []
        self.turn = trio.Lock()
        self.writes = 0
        """Calls of `send_all` on the client's side."""

    async def send(self, data: bytes) -> None:
        """Send to the client, after the messages that are being sent."""
        async with self.turn:
            await self.stream.send_all(data)

    async def close(self) -> None:
        await trio.aclose_forcefully(self.stream)


class FakeRedis:
    """A Redis in memory: tests pass on ``dial``, and set attributes to cause faults."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.connections: list[Connection] = []
        self.dials: list[float] = []
        self.refuse = False
        """Dials meet a closed port."""
        self.hang = False
        """Dials never end."""
        self.mute: set[bytes] = set()
        """Commands that get no answer; b"*" is all of them."""
        self.errors: dict[bytes, str] = {}
        """Commands, or "COMMAND argument", that are answered by this error."""
        self.lost: set[bytes] = set()
        """Messages on channels that begin like this reach no subscriber."""
        self.pipes = False
        """Connections can also be read and written without waiting, like sockets. Writes are not counted."""
        self.deaf = False
        """The server reads nothing that clients send."""
        self.on_command: Callable[[Connection, list[bytes]], None] = lambda _connection, _words: None
        self.role = [b"master"]
        """The answer to ROLE."""
        self.published: list[tuple[bytes, bytes]] = []

    async def dial(self, address: RedisAddress) -> trio.abc.Stream:
        self.dials.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.hang:
            await trio.sleep_forever()
        if self.refuse:
            raise ConnectionRefusedError(111, "Connection refused")
        if self.pipes:
            end, other = open_pipe()
            self._accept(Connection(other))
            return end
        ours, theirs = memory_stream_pair()
        connection = Connection(theirs)

        pump = ours.send_stream.send_all_hook

        async def written() -> None:
            connection.writes += 1
            assert pump is not None
            await pump()

        ours.send_stream.send_all_hook = written
        self._accept(connection)
        return ours

    def _accept(self, connection: Connection) -> None:
        self.connections.append(connection)
        self.nursery.start_soon(self._serve, connection)

    @property
    def subscriber(self) -> Connection:
        """The newest connection that has subscribed."""
        return [connection for connection in self.connections if connection.patterns][-1]

    @property
    def publisher(self) -> Connection:
        """The newest connection that has not subscribed."""
        return [connection for connection in self.connections if not connection.patterns][-1]

    async def drop(self) -> None:
        """Close every connection."""
        for connection in self.connections:
            await connection.close()

    async def push(self, channel: bytes, payload: bytes) -> int:
        """Deliver a message to each matching pattern of each subscriber."""
        receivers = 0
        if channel.startswith(tuple(self.lost)):
            return 0
        for connection in self.connections:
            if channel in connection.channels:
                receivers += 1
                await connection.send(bulk(b"message", channel, payload))
            matches = [
                one for one in connection.patterns if fnmatchcase(channel.decode("latin-1"), one.decode())
            ]
            if matches:
                receivers += 1
                try:
                    await connection.send(b"".join(pmessage(one, channel, payload) for one in matches))
                except trio.BrokenResourceError:
                    connection.patterns.clear()
        return receivers

    async def _serve(self, connection: Connection) -> None:
        reader = hiredis.Reader()
        try:
            while True:
                await until(lambda: not self.deaf)
                chunk = await connection.stream.receive_some(1 << 20)
                if not chunk:
                    return
                reader.feed(bytes(chunk))
                while (words := reader.gets()) is not False:
                    await self._answer(connection, words)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            connection.patterns.clear()
            connection.channels.clear()

    async def _answer(self, connection: Connection, words: list[bytes]) -> None:
        connection.commands.append(words)
        self.on_command(connection, words)
        name = words[0]
        if name in self.mute or b"*" in self.mute:
            return
        error = self.errors.get(name) or self.errors.get(b" ".join(words[:2]))
        await connection.send(f"-{error}\r\n".encode() if error else await self._reply(connection, words))

    async def _reply(self, connection: Connection, words: list[bytes]) -> bytes:
        match words:
            case [b"PING"]:
                return bulk(b"pong", b"") if connection.patterns else b"+PONG\r\n"
            case [b"PSUBSCRIBE", pattern]:
                connection.patterns.append(pattern)
                return b"*3\r\n$10\r\npsubscribe\r\n$%d\r\n%b\r\n:%d\r\n" % (
                    len(pattern),
                    pattern,
                    len(connection.patterns),
                )
            case [b"PUNSUBSCRIBE", pattern]:
                connection.patterns = [one for one in connection.patterns if one != pattern]
                return b"*3\r\n$12\r\npunsubscribe\r\n$%d\r\n%b\r\n:%d\r\n" % (
                    len(pattern),
                    pattern,
                    len(connection.patterns),
                )
            case [b"SUBSCRIBE", channel]:
                connection.channels.add(channel)
                return b"*3\r\n$9\r\nsubscribe\r\n$%d\r\n%b\r\n:1\r\n" % (len(channel), channel)
            case [b"PUBLISH", channel, payload]:
                self.published.append((channel, payload))
                return b":%d\r\n" % await self.push(channel, payload)
            case _:
                return bulk(*self.role) if words == [b"ROLE"] else b"+OK\r\n"
