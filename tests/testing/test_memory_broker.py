"""The broker in memory: its incarnations, its connections, and connections left open."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace

import hiredis
import pytest
import redis
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tangram.broker import ExternalBroker
from tangram.bus import resp
from tangram.chaos.conformance.answers import Talk
from tangram.config import BrokerConfig
from tangram.errors import BrokerUnavailable
from tangram.redis_url import parse_redis_url
from tangram.testing import InvariantBroken, MemoryBroker, open_tangram
from tangram.testing.fakes.redis_route import RedisRoute


@asynccontextmanager
async def living(broker: MemoryBroker) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        url = await nursery.start(broker.run)
        yield url
        nursery.cancel_scope.cancel()


async def talk_to(broker: MemoryBroker) -> Talk:
    url = broker.statistics().url
    assert url is not None
    return Talk(await broker.dial(parse_redis_url(url)))


async def one_life(broker: MemoryBroker, *, task_status: trio.TaskStatus[str]) -> None:
    with suppress(BrokerUnavailable):
        await broker.run(task_status=task_status)


async def test_a_restarted_broker_is_thawed_and_writable(autojump_clock: MockClock) -> None:
    """After a kill the next incarnation answers and accepts writes."""
    broker = MemoryBroker()
    async with trio.open_nursery() as nursery:
        await nursery.start(one_life, broker)
        broker.freeze()
        broker.make_readonly()
        broker.kill()
        await wait_all_tasks_blocked()
        await nursery.start(one_life, broker)
        talk = await talk_to(broker)
        async with talk.stream:
            assert await talk.ask("SET", "a", "b") == b"OK"
        broker.kill()


async def test_a_frozen_broker_neither_answers_nor_delivers(autojump_clock: MockClock) -> None:
    """Frozen, even twice, it is silent; thawed, it does both in order."""
    broker = MemoryBroker()
    async with living(broker):
        one, other = await talk_to(broker), await talk_to(broker)
        async with one.stream, other.stream:
            await other.ask("SUBSCRIBE", "n")
            broker.freeze()
            await one.stream.send_all(resp.pack(("PING", "first")) + resp.pack(("PING", "second")))
            await wait_all_tasks_blocked()
            broker.freeze()
            broker.publish(b"n", b"x")
            with pytest.raises(trio.TooSlowError):
                await one.read()
            with pytest.raises(trio.TooSlowError):
                await other.read()
            broker.thaw()

            assert [await one.read(), await one.read()] == [b"first", b"second"]
            assert await other.read() == [b"message", b"n", b"x"]


async def test_expiry_follows_the_virtual_clock(autojump_clock: MockClock) -> None:
    """A lock of a minute exists after 59 s, and is gone after 60."""
    broker = MemoryBroker()
    async with living(broker):
        talk = await talk_to(broker)
        async with talk.stream:
            await talk.ask("SET", "lock", "mine", "NX", "EX", "60")
            await trio.sleep(59)
            before = await talk.ask("GET", "lock")
            left = await talk.ask("TTL", "lock")
            await trio.sleep(1)
            after = await talk.ask("GET", "lock")

    assert (before, left, after) == (b"mine", 1, None)


async def test_a_replica_refuses_writes_only() -> None:
    """Reading and publishing go on; every write is refused."""
    broker = MemoryBroker()
    async with living(broker):
        talk = await talk_to(broker)
        async with talk.stream:
            broker.make_readonly()
            for write in ("SET a b", "HSET h a b", "EXPIRE a 5", "FLUSHALL", "SETEX a 5 b"):
                answer = await talk.ask(*write.split())
                assert isinstance(answer, hiredis.ReplyError), write
                assert str(answer).startswith("READONLY"), write

            assert await talk.ask("GET", "a") is None
            assert await talk.ask("PUBLISH", "a", "b") == 0


async def test_a_client_that_hangs_up_is_forgotten() -> None:
    """In every way of ending, nothing is left at the broker."""
    broker = MemoryBroker()
    async with living(broker):
        first, second, third = [await talk_to(broker) for _ in range(3)]
        await second.ask("SUBSCRIBE", "n")
        await third.ask("QUIT")
        await first.stream.aclose()
        await second.stream.aclose()
        await wait_all_tasks_blocked()

        assert broker.clients == 0
        assert broker.unclosed == 1
        assert broker.publish(b"n", b"x") == 0
        await third.stream.aclose()
        assert broker.unclosed == 0


async def test_a_client_that_quits_and_does_not_read_is_dropped(autojump_clock: MockClock) -> None:
    """Pending output is sent for a second, not for ever."""
    broker = MemoryBroker()
    async with living(broker):
        talk = await talk_to(broker)
        async with talk.stream:
            await talk.ask("SET", "a", b"x" * 500_000)
            await talk.stream.send_all(resp.pack(("GET", "a")) + resp.pack(("QUIT",)))
            await wait_all_tasks_blocked()
            before = broker.clients
            await trio.sleep(1.5)

            assert before == 1
            assert broker.clients == 0


async def test_a_slow_subscriber_is_disconnected_after_a_minute(autojump_clock: MockClock) -> None:
    """Between 8 and 32 MB may wait for it for a minute and no longer."""
    broker = MemoryBroker()
    async with living(broker):
        talk = await talk_to(broker)
        async with talk.stream:
            await talk.ask("SUBSCRIBE", "n")
            got = []
            for _ in range(10):
                got.append(broker.publish(b"n", b"x" * 1_000_000))
                await trio.sleep(15)

    assert sum(got) == 10
    broker = MemoryBroker()
    async with living(broker):
        talk = await talk_to(broker)
        async with talk.stream:
            await talk.ask("SUBSCRIBE", "n")
            broker.publish(b"n", b"x" * 10_000_000)
            await trio.sleep(59)
            at_59 = broker.publish(b"n", b"x")
            await trio.sleep(2)
            broker.publish(b"n", b"x")
            await wait_all_tasks_blocked()

            assert at_59 == 1
            assert broker.clients == 0


async def test_the_route_cuts_a_connection_in_memory(autojump_clock: MockClock) -> None:
    """Readers get the end, writers an error, and the broker forgets the client."""
    broker = MemoryBroker()
    async with living(broker) as url:
        line = RedisRoute(broker.dial)
        stream = await line.dial(parse_redis_url(url))
        async with stream:
            await Talk(stream).ask("PING")
            line.cut()

            with trio.fail_after(1):
                assert await stream.receive_some(10) == b""
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"x")
            await wait_all_tasks_blocked()
            assert broker.clients == 0


async def test_redis_py_works_with_it() -> None:
    """redis-py speaks RESP3: maps, sets, pipelines, locks and expiry work."""
    broker = MemoryBroker(BrokerConfig(port=0))

    def use(url: str) -> list[object]:
        with redis.Redis.from_url(url, decode_responses=True) as client, client.pipeline() as pipeline:
            pipeline.hset("h", mapping={"a": "1"}).incr("n", 4).sadd("s", "x").rpush("l", 1, 2)
            done: object = pipeline.execute()
            held = [client.set("lock", "me", nx=True, ex=5), client.set("lock", "you", nx=True, ex=5)]
            return [done, held, client.hgetall("h"), client.smembers("s"), client.lrange("l", 0, -1)]

    async with living(broker) as url:
        got = await trio.to_thread.run_sync(use, url)

    assert got == [[1, 4, 1, 2], [True, None], {"a": "1"}, {"x"}, ["1", "2"]]


async def test_an_unclosed_connection_breaks_an_invariant(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bus that forgets its connection is found, although the broker has ended by then."""

    async def forget(stream: trio.abc.AsyncResource) -> None:
        await trio.lowlevel.checkpoint()

    with pytest.raises(InvariantBroken, match="redis connections are still open"):  # noqa: PT012 - a whole life
        async with open_tangram(fakes=True, memory_port=True) as running:
            assert running.memory is not None
            monkeypatch.setattr(resp, "trio", SimpleNamespace(**vars(trio) | {"aclose_forcefully": forget}))
            running.memory.drop()
            await trio.sleep(1)


async def test_it_goes_on_when_the_kernel_gives_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a moment without descriptors, waiting clients are accepted, as by Valkey."""

    def refuse(listener: socket.socket) -> None:
        monkeypatch.undo()
        raise OSError(errno.EMFILE, "Too many open files")

    broker = MemoryBroker()
    async with living(broker) as url:
        address = parse_redis_url(url)
        monkeypatch.setattr(socket.socket, "accept", refuse)
        stream = await trio.open_tcp_stream(address.host, address.port)
        async with stream:
            assert await Talk(stream).ask("PING") == b"PONG"


async def test_it_may_be_watched_as_an_external_broker() -> None:
    """A server with its URL in core.redis_url finds a Redis that reports its version."""
    broker = MemoryBroker()
    async with living(broker) as url, trio.open_nursery() as nursery:
        changed = trio.Event()
        watcher = ExternalBroker(url, on_change=lambda _up: changed.set())
        await nursery.start(watcher.run)
        with trio.fail_after(30):
            await changed.wait()

        assert watcher.statistics().version == "valkey 9.1.2"
        nursery.cancel_scope.cancel()
