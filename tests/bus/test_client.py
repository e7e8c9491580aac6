"""``redis_client`` with a real valkey-server, as only it shows redis-py's behaviour."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trio

from tangram.bus import Bus, RedisClient
from tangram.bus.client import BLOCKING
from tangram.bus.redis_loop import RedisLoop
from tangram.errors import BrokerUnavailable
from tangram.testing import RealBroker
from tests.bus.fakes import until

pytestmark = pytest.mark.slow


@pytest.fixture
async def bus(shared_valkey: RealBroker, nursery: trio.Nursery) -> AsyncGenerator[Bus]:
    async with trio.open_nursery() as own:
        bus = Bus(shared_valkey.url)
        await own.start(bus.run)
        yield bus
        own.cancel_scope.cancel()


@pytest.fixture
async def client(bus: Bus) -> RedisClient:
    made = RedisClient(lambda: bus)
    await made.flushdb()
    return made


async def test_commands_answer_bytes(client: RedisClient) -> None:
    """Every command of redis-py can be awaited from Trio; answers are bytes."""
    assert await client.ping() is True
    assert await client.set("key", "value", ex=60) is True
    assert await client.get("key") == b"value"
    assert await client.get("none") is None
    assert await client.hset("hash", mapping={"a": 1}) == 1
    assert await client.hgetall("hash") == {b"a": b"1"}
    identity = await client.xadd("stream", {"a": "b"})
    assert await client.xrange("stream") == [(identity, {b"a": b"b"})]
    assert await client.execute_command("INCRBY", "number", 4) == 4  # type: ignore[no-untyped-call]


async def test_publish_uses_the_bus(client: RedisClient, bus: Bus) -> None:
    """``publish`` takes redis-py's values, keeps the bus's order, and returns the receivers."""
    async with bus.subscribe("from:*") as subscription:
        assert await client.publish("from:a:b", b"1") == 1
        await client.publish("from:a:b", "text")
        await client.publish("from:a:b", 4.5)

        assert [(await anext(subscription)).payload for _ in range(3)] == [b"1", b"text", b"4.5"]
    with pytest.raises(TypeError, match="cannot publish"):
        await client.publish("from:a:b", {"a": 1})
    assert bus.statistics().published == 3


async def test_commands_work_from_a_task_outside_the_loop(client: RedisClient) -> None:
    """A task of an older nursery, such as an HTTP handler's, can use the client."""
    got: list[object] = []
    async with trio.open_nursery() as older:

        async def handler(send: trio.MemorySendChannel[bytes]) -> None:
            await client.set("k", "v")
            async with client.pipeline() as pipe:
                pipe.get("k")
                got.extend(await pipe.execute())
            got.append(await client.get("k"))

        send, _ = trio.open_memory_channel[bytes](0)
        older.start_soon(handler, send)

    assert got == [b"v", b"v"]


async def test_many_tasks_use_the_client_side_by_side(client: RedisClient) -> None:
    """Each task gets its own answers, also when all of them cause the first use."""
    wrong: list[int] = []

    async def task(number: int) -> None:
        for _ in range(5):
            answer = await client.echo(str(number))
            wrong.extend([number] * (answer != str(number).encode()))

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(task, number)

    assert wrong == []


async def test_a_cancelled_command_leaves_no_answer_behind(client: RedisClient) -> None:
    """A waiting command ends promptly, and its answer reaches no other command."""
    await client.client_setname("x")
    for round_ in range(20):
        began = trio.current_time()
        with trio.move_on_after(0.001 * round_) as scope:
            await client.blpop(["list"], timeout=20)

        assert scope.cancelled_caught
        assert trio.current_time() - began < 30  # half of the command's own time
        await client.rpush("list", "stale")
        assert await client.echo(str(round_)) == str(round_).encode()
        assert await client.delete("list") == 1


async def test_a_cancellation_at_any_step_leaves_no_answer_behind(client: RedisClient) -> None:
    """After a cancellation at any checkpoint the next command of the pool gets its own answer."""
    await client.ping()
    for round_ in range(120):
        with trio.move_on_after(round_ * 0.00002):
            await client.echo(f"old {round_}" * 100)

        assert await client.echo(f"new {round_}") == f"new {round_}".encode()


async def test_blocking_commands_have_no_deadline() -> None:
    """The deadline of commands must not end commands that block on purpose."""
    assert {"blpop", "xread", "xreadgroup", "wait"} <= BLOCKING


async def test_a_command_without_an_answer_fails_in_time(
    client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If Redis does not answer, the command raises within its limit."""
    await client.client_pause(300)
    monkeypatch.setattr("tangram.bus.client.COMMAND_TIMEOUT", 0.1)
    with pytest.raises(BrokerUnavailable, match=r"did not answer 'get' within 0\.1 s"):
        await client.get("k")


async def test_a_pipeline_is_one_transaction(client: RedisClient) -> None:
    """Commands are collected, sent together, and answered in order; errors are redis-py's."""
    import redis.exceptions

    async with client.pipeline() as pipe:
        assert await pipe.set("a", 1).incr("a").execute() == [True, 2]
        pipe.lpush("a", 1)
        pipe.get("a")
        with pytest.raises(redis.exceptions.ResponseError):
            await pipe.execute()
        assert await pipe.get("a").execute() == [b"2"]
        with pytest.raises(AttributeError, match="no command 'nonsense'"):
            pipe.nonsense()


async def test_a_watched_pipeline_fails_after_a_change(client: RedisClient) -> None:
    """After ``watch`` commands run at once; a changed key fails the transaction."""
    import redis.exceptions

    await client.set("n", 1)
    async with client.pipeline() as pipe:
        await pipe.watch("n")
        seen = int(await pipe.get("n"))
        pipe.multi()
        pipe.set("n", seen + 1)
        assert await pipe.execute() == [True]

        await pipe.watch("n")
        await client.set("n", 50)
        pipe.multi()
        pipe.set("n", 3)
        with pytest.raises(redis.exceptions.WatchError):
            await pipe.execute()
    assert await client.get("n") == b"50"


async def test_redis_py_pubsub_works(client: RedisClient) -> None:
    """Subscribe, ``get_message``, ``listen`` and close work from Trio."""
    async with client.pubsub() as pubsub:
        await pubsub.psubscribe("x:*")
        assert (await pubsub.get_message(timeout=30))["type"] == "psubscribe"
        await client.publish("x:1", "hello")
        async for message in pubsub.listen():
            assert message["data"] == b"hello"
            break
        with trio.move_on_after(0.05) as scope:
            await pubsub.get_message(timeout=None)
        assert scope.cancelled_caught
        await client.publish("x:1", "again")
        assert (await pubsub.get_message(timeout=30))["data"] == b"again"


async def test_iterators_locks_and_scripts_work(client: RedisClient) -> None:
    """Objects with commands of their own can be used from Trio."""
    await client.mset({f"k{number}": number for number in range(25)})
    assert len([key async for key in client.scan_iter(match="k*", count=5)]) == 25

    async with client.lock("lock", timeout=5):
        assert await client.exists("lock") == 1
    assert await client.exists("lock") == 0

    script = client.register_script("return ARGV[1]")
    assert await script(args=["x"]) == b"x"


async def test_unusable_methods_name_an_alternative(client: RedisClient) -> None:
    """A method that cannot work names one that does; a misspelt one is an ``AttributeError``."""
    with pytest.raises(AttributeError, match="use redis-cli"):
        client.monitor()
    with pytest.raises(AttributeError, match="has no command 'gett'"):
        client.gett("k")  # type: ignore[attr-defined]
    assert not hasattr(client, "_missing")


async def test_error_answers_stay_redis_py_errors(client: RedisClient) -> None:
    """An error answer of Redis raises redis-py's exception."""
    import redis.exceptions

    await client.set("text", "x")
    with pytest.raises(redis.exceptions.ResponseError, match="not an integer"):
        await client.incr("text")


async def test_an_unawaited_error_does_not_end_the_loop(client: RedisClient, bus: Bus) -> None:
    """The exception of a stray task is logged, and commands go on."""
    lane = await bus.lazy_part("redis client", RedisLoop(bus.url).run, RedisLoop)

    async def stray() -> None:
        raise ZeroDivisionError

    lane.loop.call_exception_handler({"message": "stray", "exception": ZeroDivisionError()})
    task = lane.loop.create_task(stray())
    await trio.sleep(0.01)
    del task

    assert await client.ping()
    assert await bus.lazy_part("redis client", RedisLoop(bus.url).run, RedisLoop) is lane


async def until_blocked(client: RedisClient) -> None:
    """Wait until Redis has a client that waits in a blocking command."""
    with trio.fail_after(20):
        while not (await client.info("clients"))["blocked_clients"]:  # noqa: ASYNC110 - Redis tells of no event
            await trio.sleep(0.01)


async def test_commands_fail_during_an_outage_and_work_after_it(valkey: RealBroker) -> None:
    """During an outage each command raises at once; afterwards the same client works."""
    async with trio.open_nursery() as nursery:
        bus = Bus(valkey.url)
        await nursery.start(bus.run)
        client = RedisClient(lambda: bus)
        await client.set("k", "v")
        blocked: list[str] = []

        async def block() -> None:
            try:
                await client.blpop(["list"], timeout=0)
            except BrokerUnavailable as exc:
                blocked.append(str(exc))

        nursery.start_soon(block)
        await until_blocked(client)
        valkey.kill()
        with trio.fail_after(30), pytest.raises(BrokerUnavailable, match="is away"):
            await client.get("k")
        with trio.fail_after(30):
            await until(lambda: blocked)
        assert len(blocked) == 1

        valkey.start()
        await client.set("k", "again")
        assert await client.get("k") == b"again"
        nursery.cancel_scope.cancel()


async def test_the_client_outlives_a_restart_of_the_bus(shared_valkey: RealBroker) -> None:
    """The client uses the running bus; without one it raises."""
    now: list[Bus] = []
    client = RedisClient(lambda: now[-1] if now else None)
    with pytest.raises(BrokerUnavailable, match="the bus is not running"):
        await client.get("k")
    pipe = client.pipeline()
    for _ in range(3):
        async with trio.open_nursery() as nursery:
            now.append(Bus(shared_valkey.url))
            await nursery.start(now[-1].run)
            await client.set("k", "v")
            pipe = client.pipeline()
            pubsub = client.pubsub()
            await pubsub.subscribe("x")
            nursery.cancel_scope.cancel()
    with pytest.raises(BrokerUnavailable, match="the bus is not running"):
        await client.get("k")
    with pytest.raises(BrokerUnavailable):
        await pipe.get("k").execute()


async def test_a_stop_ends_waiting_commands(shared_valkey: RealBroker) -> None:
    """A command that waits at the stop raises ``BrokerUnavailable``, in any task."""
    told: list[str] = []
    async with trio.open_nursery() as outer:
        async with trio.open_nursery() as nursery:
            bus = Bus(shared_valkey.url)
            await nursery.start(bus.run)
            client = RedisClient(lambda: bus)

            async def wait() -> None:
                try:
                    await client.blpop(["never"], timeout=0)
                except BrokerUnavailable as exc:
                    told.append(str(exc))

            outer.start_soon(wait)
            await until_blocked(client)
            began = trio.current_time()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began < 30  # the command itself has no end
        with trio.move_on_after(30):
            await until(lambda: told)

    assert told == ["the bus was stopped; its redis client is closed"]


async def test_closed_clients_leak_nothing(shared_valkey: RealBroker) -> None:
    """Opening and closing clients leaks no descriptor, thread or asyncio task."""

    async def life() -> None:
        async with trio.open_nursery() as nursery:
            bus = Bus(shared_valkey.url)
            await nursery.start(bus.run)
            client = RedisClient(lambda: bus)
            await client.get("k")
            nursery.start_soon(client.blpop, ["never"], 0)
            await client.pubsub().subscribe("x")
            lanes.append(await bus.lazy_part("redis client", RedisLoop(bus.url).run, RedisLoop))
            nursery.cancel_scope.cancel()

    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    lanes: list[RedisLoop] = []
    await life()
    before = held()
    for _ in range(5):
        await life()

    assert held() == before
    assert all(lane.loop.is_closed() and not asyncio.all_tasks(lane.loop) for lane in lanes)


async def test_the_loop_is_opened_on_first_use(bus: Bus) -> None:
    """A client that only publishes opens no loop."""
    client = RedisClient(lambda: bus)
    await client.publish("to:a:b", "x")
    assert bus._lazy_parts == {}

    await client.ping()
    assert len(bus._lazy_parts) == 1


def test_importing_the_bus_imports_no_redis() -> None:
    """redis and trio-asyncio are not imported before the first use: they cost memory and time."""
    code = (
        "import sys, structlog; before = set(sys.modules); import tangram.bus;"
        "print(sorted({'redis', 'trio_asyncio', 'asyncio'} & (set(sys.modules) - before)))"
    )
    path = os.pathsep.join(sys.path)
    ran = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=True
    )

    assert ran.stdout.strip() == b"[]"


async def test_an_error_of_the_client_is_raised_without_a_group(
    shared_valkey: RealBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error while the client is made reaches the caller of the command as it is."""

    def broken(_url: str) -> object:
        raise ValueError("an option that redis-py refuses")

    monkeypatch.setattr("tangram.bus.redis_loop._open_client", broken)
    async with trio.open_nursery() as nursery:
        bus = await nursery.start(Bus(shared_valkey.url).run)
        client = RedisClient(lambda: bus)
        for _ in range(2):
            with pytest.raises(ValueError, match="that redis-py refuses"):
                await client.get("k")
        nursery.cancel_scope.cancel()


async def test_an_error_of_a_connection_is_raised_without_a_group(shared_valkey: RealBroker) -> None:
    """An account that may not run a command gets redis-py's exception."""
    import redis.exceptions

    async with trio.open_nursery() as nursery:
        bus = await nursery.start(Bus(shared_valkey.url).run)
        admin = RedisClient(lambda: bus)
        await admin.acl_setuser(
            "app", enabled=True, passwords=["+pw"], keys=["*"], channels=["*"], commands=["+@all", "-info"]
        )
        url = shared_valkey.url.replace("redis://", "redis://app:pw@")
        limited_bus = await nursery.start(Bus(url).run)
        limited = RedisClient(lambda: limited_bus)
        with pytest.raises(redis.exceptions.NoPermissionError):
            await limited.info()
        assert await limited.ping()
        nursery.cancel_scope.cancel()


async def test_closed_connections_of_the_pool_are_replaced(valkey: RealBroker) -> None:
    """After Redis has closed idle connections, or was restarted, every command works."""
    async with trio.open_nursery() as nursery:
        bus = await nursery.start(Bus(valkey.url).run)
        client = RedisClient(lambda: bus)
        answers: list[object] = []

        async def ask() -> None:
            answers.append(await client.ping())

        async def ask_five() -> None:
            async with trio.open_nursery() as asking:
                for _ in range(5):
                    asking.start_soon(ask)

        await ask_five()
        other = await nursery.start(Bus(valkey.url).run)
        await RedisClient(lambda: other).client_kill_filter(_type="normal", skipme=True)
        await trio.sleep(0.05)
        await ask_five()
        valkey.kill()
        valkey.start()
        await trio.sleep(0.05)
        await ask_five()
        nursery.cancel_scope.cancel()
    assert answers == [True] * 15


async def test_a_user_name_without_a_password_is_no_account(shared_valkey: RealBroker) -> None:
    """The client does not log in, as the bus does not."""
    async with trio.open_nursery() as nursery:
        bus = await nursery.start(Bus(shared_valkey.url.replace("redis://", "redis://anyone@")).run)
        assert await RedisClient(lambda: bus).ping()
        nursery.cancel_scope.cancel()
