"""``redis_client`` of existing plugins."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import redis.asyncio
import trio
import trio_asyncio
from redis.asyncio import Redis
from redis.asyncio.connection import ConnectionPool
from redis.exceptions import ResponseError

from tangram.bus.scripts import Fence, FunctionCall
from tangram.cluster.library import LIBRARY
from tangram.compat.patches import patch_redis
from tangram.compat.recording import ClientFence
from tangram.compat.state import open_redis_client
from tangram.errors import BrokerRefused
from tangram.history import History, Rules
from tangram.history.library import library
from tangram.history.rules import Rule
from tangram.testing import RealBroker, open_broker

pytestmark = pytest.mark.slow


async def pings_after(client: Redis, cut: Callable[[], Awaitable[None]]) -> list[object]:
    """Return the answers to five commands at once, after all pooled connections were closed."""
    await asyncio.gather(*(client.set("key", "value") for _ in range(5)))
    await cut()
    await asyncio.sleep(0.05)
    try:
        return await asyncio.gather(*(client.ping() for _ in range(5)), return_exceptions=True)
    finally:
        await client.aclose()


async def restart(broker: RealBroker) -> None:
    broker.kill()
    broker.start()


async def kill_connections(broker: RealBroker) -> None:
    other = open_redis_client(broker.url)
    await other.client_kill_filter(_type="normal")
    await other.aclose()


@pytest.mark.parametrize("cut", [restart, kill_connections])
def test_pooled_connections_that_were_closed_are_replaced(
    cut: Callable[[RealBroker], Awaitable[None]],
) -> None:
    """After a restart of Redis, or a timeout of idle connections, every command works."""

    async def run() -> list[object]:
        return await pings_after(open_redis_client(broker.url), partial(cut, broker))

    with open_broker() as broker:
        assert asyncio.run(run()) == [True] * 5


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch the pools of ``redis.asyncio`` for one test."""
    monkeypatch.setattr(ConnectionPool, "ensure_connection", ConnectionPool.ensure_connection)
    patch_redis()
    once = ConnectionPool.ensure_connection
    patch_redis()
    assert ConnectionPool.ensure_connection is once, "the second call patches nothing"


def test_pools_of_a_plugin_replace_closed_connections(patched: None) -> None:
    """A client that a plugin opened by ``Redis.from_url`` works at once after a restart of Redis."""

    async def run() -> list[object]:
        return await pings_after(redis.asyncio.Redis.from_url(broker.url), partial(restart, broker))

    with open_broker() as broker:
        assert asyncio.run(run()) == [True] * 5


@pytest.mark.parametrize("loaded", [True, False])
def test_publish_records_messages_of_topics_with_history(*, loaded: bool) -> None:
    """The message is in the history in the same step; without the function it is published plainly."""

    async def run() -> tuple[int, int, object]:
        client = open_redis_client(broker.url, rules)
        try:
            if loaded:
                await client.function_load(library(), replace=True)
            kept = await client.publish("to:kept:n", "1")
            other = await client.publish("to:other:n", b"2")
            return kept, other, await client.xrange("{tangram}:topic:kept:h")
        finally:
            await client.aclose()

    rules = Rules([Rule("kept", History())])
    with open_broker() as broker:
        kept, other, entries = asyncio.run(run())

    assert (kept, other) == (0, 0)
    assert entries == ([(b"1-0", {b"n": b"1"})] if loaded else [])


class Held:
    """The fence of a lease with a token."""

    def __init__(
        self, token: str, first: tuple[str | bytes, ...], key: str = "{tangram}:fence:globe"
    ) -> None:
        self.token, self.first, self.key = token, first, key
        self.taken: list[str] = []
        self.lost: set[str] = set()
        self.held = True

    def fenced_words(
        self, lease: str, channel: bytes, payload: bytes, recording: FunctionCall | None
    ) -> tuple[str | bytes, ...]:
        if not self.held:
            raise BrokerRefused(f"fenced: this node does not hold {lease!r} any more")
        call = Fence(self.key, self.token).guard(channel, payload, recording)
        first = self.first if recording is None else ("FCALL", call.function)
        return (*first, str(len(call.keys)), *call.keys, *call.arguments)

    async def take_again(self, lease: str) -> None:
        raise AssertionError(lease)

    def lose(self, lease: str) -> None:
        self.lost.add(lease)


async def publish_piped(client: Redis) -> object:
    """Publish in a pipeline, and set a key."""
    pipe = client.pipeline()
    pipe.publish("to:other:n", "1")
    pipe.set("key", "1")
    return await pipe.execute()


@pytest.mark.parametrize("way", ["function", "script"])
def test_a_placed_plugin_publishes_with_its_token(way: str) -> None:
    """``publish``, raw commands and pipelines are refused for an older holder, whatever its plugin awaits."""

    async def run() -> list[object]:
        plain = open_redis_client(broker.url)
        rules = Rules([Rule("kept", History())])
        await plain.set("{tangram}:fence:globe", "7")
        await plain.function_load(library(), replace=True)
        first: tuple[str | bytes, ...] = ("FCALL", "tangram_fenced")
        if way == "function":
            await plain.function_load(LIBRARY.text, replace=True)
        else:
            first = ("EVALSHA", await plain.script_load(LIBRARY.script("fenced")))
        await plain.aclose()
        held = Held("7", first)
        client = open_redis_client(broker.url, rules, ClientFence("globe", held))
        outcomes: list[object] = []
        for step in ("7", "6", "not held"):
            held.token, held.held = step, step != "not held"
            for publish in (
                lambda: client.publish("to:other:n", b"1"),
                lambda: client.publish("to:kept:n", "1"),
                lambda: client.execute_command("publish", "to:other:n", 1),  # type: ignore[no-untyped-call]
                lambda: publish_piped(client),
            ):
                try:
                    outcomes.append(await publish())
                except ResponseError as error:
                    outcomes.append("fenced" if "fenced" in str(error).lower() else error)
        outcomes.append(await client.get("key"))
        assert held.lost == {"globe"}
        await client.aclose()
        return outcomes

    with open_broker() as broker:
        outcomes = asyncio.run(run())

    assert outcomes == [0, 0, 0, [0, True], *["fenced"] * 8, b"1"]


def test_a_plugin_whose_token_redis_has_lost_takes_its_lease_again() -> None:
    """The message is repeated once, with the new token; awaited as on an island."""

    class Taking(Held):
        async def take_again(self, lease: str) -> None:
            await trio.lowlevel.checkpoint()
            self.taken.append(lease)
            self.key = "{tangram}:fence:again"

    async def run() -> int:
        async with trio_asyncio.open_loop():
            return int(await trio_asyncio.aio_as_trio(publish)())

    async def publish() -> int:
        client = open_redis_client(broker.url, None, ClientFence("globe", held))
        await client.function_load(LIBRARY.text, replace=True)
        await client.set("{tangram}:fence:again", "1")
        try:
            return int(await client.publish("to:other:n", "1"))
        finally:
            await client.aclose()

    held = Taking("7", ("FCALL", "tangram_fenced"))
    with open_broker() as broker:
        assert trio.run(run) == 0
    assert held.taken == ["globe"]
