"""Connections to Redis that outlived their owners, over a real broker."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tangram.broker.connections import close_foreign_connections, find_connections
from tangram.broker.external import ExternalBroker
from tangram.broker.ping import open_probe
from tangram.bus import Bus
from tangram.redis_url import local_redis_url, parse_redis_url
from tangram.testing import RealBroker, open_broker

pytestmark = pytest.mark.slow


def leak(url: str) -> int:
    """Subscribe on a connection without a Python object, as an extension would."""
    address = parse_redis_url(url)
    if address.path:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(address.path)
    else:
        sock = socket.create_connection((address.host, address.port))
    sock.sendall(b"SUBSCRIBE from:demo:click\r\n")
    sock.recv(1000)
    return sock.detach()


def close(descriptor: int) -> None:
    socket.socket(fileno=descriptor).close()


async def clients_of(url: str) -> int:
    """Return the number of subscribed clients, as Redis sees them."""
    async with open_probe(parse_redis_url(url)) as probe:
        answer = await probe.ask("PUBSUB", "NUMSUB", "from:demo:click")
    assert isinstance(answer, list)
    return int(answer[1])


async def test_a_leaked_connection_is_closed_and_its_reader_gets_the_end(
    nursery: trio.Nursery,
) -> None:
    """A thread that waits for the connection wakes up, and Redis has one client less."""
    with open_broker() as redis:
        ends: list[bytes] = []
        descriptor = leak(redis.url)

        def read() -> None:
            with socket.socket(fileno=descriptor) as sock:
                ends.append(sock.recv(1000))

        thread = threading.Thread(target=read)
        thread.start()
        assert await clients_of(redis.url) == 1

        closed = await close_foreign_connections(redis.url)

        await trio.to_thread.run_sync(thread.join, 5)
        assert [one.descriptor for one in closed] == [descriptor]
        assert ends == [b""]
        assert await clients_of(redis.url) == 0
        assert await close_foreign_connections(redis.url) == ()


async def test_the_servers_own_connections_stay(nursery: trio.Nursery) -> None:
    """Watch and bus are not closed, and neither are connections to other servers."""
    with open_broker() as redis, open_broker() as elsewhere:
        watch = ExternalBroker(redis.url)
        await nursery.start(watch.run)
        bus = await nursery.start(Bus(redis.url).run)
        with trio.fail_after(5):
            while not watch.statistics().up:  # noqa: ASYNC110 - no event tells
                await trio.sleep(0.01)
        other = leak(elsewhere.url)
        leaked = leak(redis.url)

        closed = await close_foreign_connections(redis.url)
        await trio.sleep(0.2)

        assert len(closed) == 1
        assert bus.outages.count == 0
        assert watch.statistics().up
        assert watch.statistics().starts == 1
        assert await clients_of(elsewhere.url) == 1
        close(other)
        close(leaked)
        nursery.cancel_scope.cancel()


async def test_connections_from_before_are_kept() -> None:
    """A program that embeds the server keeps its own connections."""
    with open_broker() as redis:
        mine = leak(redis.url)
        before = await find_connections(redis.url)
        leaked = [leak(redis.url) for _ in range(3)]

        closed = await close_foreign_connections(redis.url, keep=before)

        assert {one.descriptor for one in before} == {mine}
        assert sorted(one.descriptor for one in closed) == sorted(leaked)
        assert await clients_of(redis.url) == 1
        for descriptor in [mine, *leaked]:
            close(descriptor)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_the_host_may_be_a_name(host: str) -> None:
    """The addresses of the name are compared with that of the connection."""
    with open_broker() as redis:
        port = parse_redis_url(redis.url).port
        leaked = leak(local_redis_url(port))
        assert len(await find_connections(f"redis://{host}:{port}")) == 1
        close(leaked)


async def test_unix_sockets_are_found_by_their_path(tmp_path: Path) -> None:
    """The peer of a connection is the path of the listener."""
    path = tmp_path / "redis.sock"
    with open_broker("--unixsocket", str(path)) as redis:
        url = f"unix://{path}"
        leaked = leak(url)
        assert await find_connections(redis.url) == frozenset()
        assert len(await close_foreign_connections(url)) == 1
        assert await clients_of(url) == 0
        close(leaked)


async def test_a_reused_descriptor_is_left_alone(shared: RealBroker) -> None:
    """A descriptor that has become another socket in the meantime is not shut down."""
    from tangram.broker.connections import _shut_down

    leaked = leak(shared.url)
    (found,) = await find_connections(shared.url)
    close(leaked)
    one, two = socket.socketpair()
    with one, two:
        reused = found._replace(descriptor=one.fileno())
        assert not _shut_down(reused)
        one.sendall(b"x")
        assert two.recv(10) == b"x"


@pytest.fixture(name="shared")
def shared_broker() -> Iterator[RealBroker]:
    with open_broker() as redis:
        yield redis
