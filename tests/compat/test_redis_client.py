"""``redis_client`` of existing plugins."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio
from redis.asyncio.connection import ConnectionPool

from tangram.compat.patches import patch_redis
from tangram.compat.state import open_redis_client
from tangram.history import History, Rules
from tangram.history.library import library
from tangram.history.rules import Rule
from tangram.testing import open_broker

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("after", ["restart", "kill of its connections"])
def test_pooled_connections_that_were_closed_are_replaced(after: str) -> None:
    """After a restart of Redis, or a timeout of idle connections, every command works."""

    async def run() -> list[object]:
        client = open_redis_client(broker.url)
        await asyncio.gather(*(client.set("key", "value") for _ in range(5)))
        if after == "restart":
            broker.kill()
            broker.start()
        else:
            other = open_redis_client(broker.url)
            await other.client_kill_filter(_type="normal")
            await other.aclose()
        await asyncio.sleep(0.05)
        try:
            answers = await asyncio.gather(*(client.ping() for _ in range(5)), return_exceptions=True)
        finally:
            await client.aclose()
        return list(answers)

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
        client = redis.asyncio.Redis.from_url(broker.url)
        await asyncio.gather(*(client.set("key", "value") for _ in range(5)))
        broker.kill()
        broker.start()
        await asyncio.sleep(0.05)
        try:
            answers = await asyncio.gather(*(client.ping() for _ in range(5)), return_exceptions=True)
        finally:
            await client.aclose()
        return list(answers)

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
