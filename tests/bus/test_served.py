"""Connections to Redis that are read while Trio is idle, on the system's clock.

Each test ends by an event, and its deadline only ends a failure.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio

from tangram.bus.listener import Listener
from tangram.bus.publisher import SEND_LIMIT, Publisher
from tangram.bus.sockets import PlainStream
from tangram.readiness import Readiness
from tangram.redis_url import RedisAddress, parse_redis_url
from tests.bus.fakes import URL, Connection, FakeRedis, until
from tests.idle_runs import open_pairs, run_idle

PATIENCE = 20.0
"""Seconds after which a test fails."""


class SocketConnection(Connection):
    """A connection of the fake that a test may end at once."""

    def end(self) -> None:
        """Close the socket."""
        assert isinstance(self.stream, trio.SocketStream)
        self.stream.socket.close()


class SocketRedis(FakeRedis):
    """A fake on sockets, whose other ends are plain streams."""

    async def dial(self, address: RedisAddress) -> trio.abc.Stream:
        self.dials.append(trio.current_time())
        if self.refuse:
            raise ConnectionRefusedError(111, "Connection refused")
        ours, theirs = trio.socket.socketpair()
        connection = SocketConnection(trio.SocketStream(theirs))
        self.connections.append(connection)
        self.nursery.start_soon(self._serve, connection)
        await trio.lowlevel.checkpoint()
        return PlainStream(trio.SocketStream(ours))

    def end(self) -> None:
        """Close every connection at once."""
        for connection in self.connections:
            assert isinstance(connection, SocketConnection)
            connection.end()


class Client:
    """A socket whose bytes are handled in a pass, as those of a browser."""

    def __init__(self, shared: Readiness, pair: tuple[socket.socket, socket.socket]) -> None:
        self.shared = shared
        self._ours, self._theirs = pair

    async def run(self, step: Callable[[], None]) -> None:
        """Call ``step`` in the next pass."""

        def read() -> bool:
            self._ours.recv(1)
            step()
            return True

        self._theirs.send(b"x")
        await self.shared.serve(self._ours, read)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with open_pairs(1) as (made,):
        yield made


Test = Callable[[SocketRedis, Readiness, trio.Nursery], Awaitable[None]]


def run(test: Test) -> None:
    async def main(shared: Readiness, nursery: trio.Nursery) -> None:
        redis = SocketRedis(nursery)
        try:
            await test(redis, shared, nursery)
        finally:
            redis.end()

    run_idle(main)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of writes without waiting."""
    sizes: list[int] = []
    send = PlainStream.send_nowait

    def send_nowait(stream: PlainStream, data: bytes) -> int:
        sizes.append(len(data))
        return send(stream, data)

    monkeypatch.setattr(PlainStream, "send_nowait", send_nowait)
    return sizes


async def start_publisher(redis: SocketRedis, nursery: trio.Nursery) -> Publisher:
    publisher = Publisher(parse_redis_url(URL), dial=redis.dial)
    nursery.start_soon(publisher.run)
    await publisher.publish("to:a:first", b"x")
    return publisher


def test_pushes_of_one_pass_are_one_write(
    pair: tuple[socket.socket, socket.socket], writes: list[int]
) -> None:
    """They leave at the end of the pass, in the order of the calls, and each gets its answer."""
    answers: list[int] = []
    answered = trio.Event()

    async def test(redis: SocketRedis, shared: Readiness, nursery: trio.Nursery) -> None:
        publisher = await start_publisher(redis, nursery)

        def push() -> None:
            for number in range(10):
                publisher.publish_nowait("to:a:b", b"%d" % number, answers.append)
            publisher.publish_all_nowait([("to:a:b", b"last")], lambda _: answered.set())
            assert not writes

        await Client(shared, pair).run(push)
        await answered.wait()
        data = [payload for _, payload in redis.published[1:]]
        assert data == [*(b"%d" % number for number in range(10)), b"last"]

    run(test)

    assert len(writes) == 1
    assert answers == [0] * 10


def test_the_rest_of_a_write_goes_out_before_later_messages(
    pair: tuple[socket.socket, socket.socket], writes: list[int]
) -> None:
    """The socket takes a part; the writer's task sends the rest, and everything arrives in order."""
    large = b"z" * (SEND_LIMIT + 1)
    answered = trio.Event()

    async def test(redis: SocketRedis, shared: Readiness, nursery: trio.Nursery) -> None:
        publisher = await start_publisher(redis, nursery)
        client = Client(shared, pair)

        def push() -> None:
            for number in range(6):
                publisher.publish_nowait("to:a:b", b"%d" % number + large)

        redis.deaf = True
        await client.run(push)
        await client.run(lambda: publisher.publish_nowait("to:a:b", b"behind"))
        publisher.publish_nowait("to:a:b", b"from a task", lambda _: answered.set())
        redis.deaf = False
        await answered.wait()
        assert [data[:11] for _, data in redis.published[1:]] == [
            *(b"%d" % number + b"z" * 10 for number in range(6)),
            b"behind",
            b"from a task",
        ]

    run(test)

    assert len(writes) == 1


def test_a_push_to_a_broken_connection_fails(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller learns that the message may have been delivered, and the publisher dials again."""
    errors: list[object] = []
    failed = trio.Event()

    async def test(redis: SocketRedis, shared: Readiness, nursery: trio.Nursery) -> None:
        publisher = await start_publisher(redis, nursery)

        def break_connection(_stream: PlainStream, _data: bytes) -> int:
            return 0

        def note(error: object) -> None:
            errors.append(error)
            failed.set()

        def push() -> None:
            publisher.publish_nowait("to:a:b", b"x", note)

        monkeypatch.setattr(PlainStream, "send_nowait", break_connection)
        broken = redis.publisher
        redis.mute.add(b"*")
        nursery.start_soon(Client(shared, pair).run, push)
        await until(lambda: shared.in_pass or publisher.open_bytes)
        await broken.close()
        await failed.wait()
        redis.mute.clear()
        await until(lambda: len(redis.dials) == 2)

    run(test)

    assert "may or may not have been delivered" in str(errors[0])


def test_a_listener_delivers_in_order_and_connects_again() -> None:
    """Messages reach the sink in the pass that reads them; a closed connection ends the session."""
    got: list[bytes] = []
    ups: list[bool] = []

    async def test(redis: SocketRedis, _shared: Readiness, nursery: trio.Nursery) -> None:
        listener = Listener(
            parse_redis_url(URL),
            pinned=b"to:*",
            sink=lambda batch: got.extend(payload for _, payload in batch),
            on_up=ups.append,
            dial=redis.dial,
        )
        nursery.start_soon(listener.run)
        await listener.wait_up()
        for number in range(100):
            await redis.push(b"to:a:b", b"%d" % number)
        await until(lambda: len(got) == 100)
        await redis.subscriber.close()
        await until(lambda: len(ups) == 3)
        await redis.push(b"to:a:b", b"after")
        await until(lambda: len(got) == 101)

    run(test)

    assert got == [*(b"%d" % number for number in range(100)), b"after"]
    assert ups[:3] == [True, False, True]


def test_a_stream_that_is_closed_ends_its_reader() -> None:
    """The task that serves it gets an error, and a later one as well."""

    async def test(redis: SocketRedis, shared: Readiness, nursery: trio.Nursery) -> None:
        stream = await redis.dial(RedisAddress(""))
        assert isinstance(stream, PlainStream)
        buffer = bytearray(65_536)
        nursery.start_soon(_close, stream)
        with pytest.raises(trio.ClosedResourceError):
            await stream.serve(shared, buffer, lambda _: None)
        with pytest.raises(trio.ClosedResourceError):
            await stream.serve(shared, buffer, lambda _: None)
        assert stream.send_nowait(b"x") == 0

    run(test)


async def _close(stream: PlainStream) -> None:
    await stream.aclose()
