"""The twin of the functions in Python answers as the functions on Redis do."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tangram.bus.scripts import FunctionCall
from tangram.history.library import GUARD, LEASE, data_key, library, state_key
from tangram.testing import open_broker
from tangram.testing.fakes.valkey.functions import call_function, load_library
from tangram.testing.fakes.valkey.server import Valkey
from tests.history.conftest import open_histories

CALLS = 400


def drawn_calls(seed: int) -> Iterator[FunctionCall]:
    """Yield calls of all functions with few topics, epochs and sizes, so that they meet."""
    rng = random.Random(seed)
    words: tuple[str, ...]
    topics = {"a": "stream", "b{}\n": "stream", "l": "latest"}
    yield FunctionCall("tangram_lease", (LEASE, GUARD), ("m", "600000", "", ""))
    words = ("1", "1", "a", "first", "stream", "5", "600000", "1", "x", "p")
    yield FunctionCall("tangram_record", (GUARD, data_key("a", "stream"), state_key("a")), words)
    for number in range(CALLS):
        topic, mode = rng.choice([*topics.items()])
        if rng.random() < 0.02:
            mode = "latest" if mode == "stream" else "stream"
        keys = (data_key(topic, mode), state_key(topic), GUARD)
        epoch, size, ttl = f"e{number}", str(rng.choice((2, 5))), "600000"
        kind = rng.random()
        if kind < 0.35:
            words = (topic, rng.choice("xyz"), "é" * rng.randrange(30), epoch, mode, size, ttl)
            yield FunctionCall("tangram_publish", keys, words)
        elif kind < 0.7:
            known = rng.choice(["", "*", f"e{number - rng.randrange(1, 30)}", "e0"])
            since = str(rng.randrange(8) if known not in ("", "*") else 0)
            nonce = rng.choice(("", "n"))
            yield FunctionCall("tangram_read", keys, (topic, known, since, epoch, mode, ttl, "64", nonce))
        elif kind < 0.85:
            words = (str(rng.randrange(5)), "1", topic, epoch, mode, size, ttl)
            entries = [word for _ in range(rng.randrange(4)) for word in ("1", "x", "p")]
            yield FunctionCall("tangram_record", (GUARD, *keys[:2]), (*words, *entries))
        elif kind < 0.95:
            force = rng.choice(("", "force"))
            words = (rng.choice("mn"), "600000", str(rng.randrange(5)), force)
            yield FunctionCall("tangram_lease", (LEASE, GUARD), words)
        elif kind < 0.98:
            yield FunctionCall("tangram_release", (LEASE,), (rng.choice("mn"),))
        else:
            yield FunctionCall("tangram_begin", (LEASE, GUARD), (rng.choice("ij"),))


class Twin:
    """The broker in memory, and the messages that the functions publish on it."""

    def __init__(self) -> None:
        self.published: list[tuple[bytes, bytes]] = []
        self._valkey = Valkey(lambda: 1000.0, self._publish)
        self._session = self._valkey.connect(lambda: None, lambda: None)
        load_library(self._valkey, self._session, [b"LOAD", b"REPLACE", library().encode()])

    def _publish(self, channel: bytes, payload: bytes) -> int:
        self.published.append((channel, payload))
        return 1

    def call(self, call: FunctionCall) -> Any:
        words = [call.function, str(len(call.keys)), *call.keys, *call.arguments]
        encoded = [word.encode() if isinstance(word, str) else word for word in words]
        return call_function(self._valkey, self._session, encoded)


def plain(message: tuple[bytes, bytes]) -> tuple[bytes, object]:
    channel, payload = message
    return channel, json.loads(payload) if channel == b"to:phoenix:at" else payload


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_both_answer_and_publish_the_same(nursery: Any, redis_server: Path, seed: int) -> None:
    """A drawn sequence of calls has the same answers and the same messages on Redis and on the twin."""
    with open_broker(server=redis_server) as broker:
        of, twin = await open_histories(nursery, broker.url, identity="i"), Twin()
        await of.bus.call(FunctionCall("x", (), (), ("FLUSHALL",)))
        for number, call in enumerate(drawn_calls(seed)):
            assert await of.bus.call(call) == twin.call(call), f"call {number}: {call}"
        await of.wait_received(len(twin.published))

        assert [plain(one) for one in of.received] == [plain(one) for one in twin.published]
        assert {json.dumps(plain(one)[1], default=str)[:5] for one in twin.published} >= {
            '{"t":',
            '{"f":',
            '{"l":',
        }
        nursery.cancel_scope.cancel()
