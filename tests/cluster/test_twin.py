"""The twin of the functions of nodes in Python answers as the functions on Redis do."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tangram.bus.library import load_library
from tangram.bus.publisher import Publisher
from tangram.bus.scripts import FunctionCall
from tangram.cluster.library import (
    LIBRARY,
    beat_call,
    claim_call,
    fence_key,
    give_call,
    lease_key,
    leave_call,
    parse_beat,
    take_call,
)
from tangram.errors import BrokerRefused
from tangram.redis_url import parse_redis_url
from tangram.testing import open_broker
from tangram.testing.fakes.valkey.functions import call_function
from tangram.testing.fakes.valkey.functions import load_library as load_twin
from tangram.testing.fakes.valkey.server import Valkey
from tangram.testing.fakes.valkey.wire import ReplyError

CALLS = 300


def drawn_calls(seed: int) -> Iterator[FunctionCall]:
    """Yield calls of all functions with few nodes and leases, so that they meet."""
    rng = random.Random(seed)
    for number in range(CALLS):
        node, name, value = rng.choice("abc"), rng.choice(("globe", "the map")), rng.choice(("a:1", "b:2"))
        kind = rng.random()
        if kind < 0.4:
            rows = [(name, rng.choice((value, "")), 600.0) for _ in range(rng.randrange(3))]
            fields = {"run": rng.choice("xy"), "é": f"{number}"}
            yield beat_call(node, fields, 600.0, f"born{number}", rows)
        elif kind < 0.45:
            yield leave_call(node, rng.choice("xy"))
        elif kind < 0.55:
            yield claim_call(node, rng.choice("xy"), rng.choice("xy"))
        elif kind < 0.7:
            yield take_call(name, value, 600.0, rng.choice(("", "", "born0", "other")), f"take{number}")
        elif kind < 0.85:
            yield give_call(name, value, rng.choice(("", "c")))
        else:
            token = rng.choice(("1", "9999999999999999"))
            key = (f"{{tangram}}:fence:{rng.choice((name, 'unknown'))}",)
            yield FunctionCall("tangram_fenced", key, (token, f"to:demo:{number}", "payload"))


def without_times(answer: Any) -> Any:
    """Return an answer without values that depend on the clock: times and tokens."""
    if isinstance(answer, list):
        if len(answer) == 5 and isinstance(answer[0], list):
            answer = answer[1:]
            answer[3] = sorted(answer[3])
        return [without_times(one) for one in answer]
    if isinstance(answer, int) and answer > 1000:
        return 600000
    if isinstance(answer, bytes) and answer.isdigit() and len(answer) > 8:
        return b"token"
    return answer


class Twin:
    """The broker in memory, and the messages that the functions publish on it."""

    def __init__(self) -> None:
        self.published: list[tuple[bytes, bytes]] = []
        self._valkey = Valkey(lambda: 1000.0, self._publish)
        self._session = self._valkey.connect(lambda: None, lambda: None)
        load_twin(self._valkey, self._session, [b"LOAD", b"REPLACE", LIBRARY.text.encode()])

    def _publish(self, channel: bytes, payload: bytes) -> int:
        self.published.append((channel, payload))
        return 0

    def call(self, call: FunctionCall) -> Any:
        words = [call.function, str(len(call.keys)), *call.keys, *call.arguments]
        encoded = [word.encode() if isinstance(word, str) else word for word in words]
        try:
            return call_function(self._valkey, self._session, encoded)
        except ReplyError as error:
            return str(error).partition(" ")[0]


async def call_real(publisher: Publisher, call: FunctionCall) -> Any:
    try:
        return await publisher.call(call)
    except BrokerRefused as error:
        return str(error).rpartition(": ")[2].partition(" ")[0]


@pytest.mark.slow
@pytest.mark.parametrize("as_scripts", [False, True])
async def test_both_answer_the_same(nursery: trio.Nursery, as_scripts: bool, redis_server: Path) -> None:
    """A drawn sequence of calls has the same answers on Redis, by functions or scripts, and on the twin."""
    options = ("--rename-command", "FUNCTION", "") if as_scripts else ()
    with open_broker(*options, server=redis_server) as broker:
        address = parse_redis_url(broker.url)
        publisher = Publisher(address, load=lambda link: load_library(link, LIBRARY))
        nursery.start_soon(publisher.run)
        twin = Twin()
        for number, call in enumerate(drawn_calls(as_scripts)):
            real, fake = await call_real(publisher, call), twin.call(call)
            assert without_times(real) == without_times(fake), f"call {number}: {call}"
        kinds = {json.loads(payload)["what"] for channel, payload in twin.published if channel[:2] != b"to"}

        assert kinds == {"joined", "left", "taken", "released"}
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_redis_reports_times_and_tokens_that_grow(nursery: trio.Nursery) -> None:
    """A beat has the time of Redis; each take has a greater token, also after a release."""
    with open_broker() as broker:
        publisher = Publisher(parse_redis_url(broker.url), load=lambda link: load_library(link, LIBRARY))
        nursery.start_soon(publisher.run)
        tokens = []
        for number in range(3):
            answer = await publisher.call(take_call("globe", f"a:{number}", 6.0, "", "born"))
            tokens.append(int(answer[1]))
            beat = parse_beat(
                await publisher.call(beat_call("a", {"run": "x"}, 6.0, "b", [("globe", f"a:{number}", 6.0)]))
            )
            assert beat.leases[0].renewed
            assert abs(beat.time - tokens[-1] / 1e6) < 60
            assert await publisher.call(give_call("globe", "b:1")) == 0
            assert await publisher.call(give_call("globe", f"a:{number}")) == 1
        assert tokens == sorted(set(tokens))
        # A Redis whose clock was ahead has given a token of a far time.
        ahead = 5_000_000_000_000_000
        await publisher.call(FunctionCall("", (), (), ("SET", fence_key("globe"), str(ahead))))
        answer = await publisher.call(take_call("globe", "a:9", 6.0, "", "born"))
        assert int(answer[1]) == ahead + 1
        assert await publisher.call(give_call("globe", "a:9")) == 1
        assert await publisher.call(FunctionCall("", (), (), ("EXISTS", lease_key("globe")))) == 0
        nursery.cancel_scope.cancel()


def test_a_take_after_a_second_loss_of_data_is_refused() -> None:
    """The storage has a new name at each loss, also if the same value finds it empty twice."""
    twin, known = Twin(), "born0"
    for number in range(1, 4):
        twin._valkey.execute(twin._session, [b"FLUSHALL"])
        taken, _, _, born = twin.call(take_call("globe", "a:1", 6.0, known, f"born{number}"))

        assert (taken, born) == (0, f"born{number}".encode())
        known = born.decode()
