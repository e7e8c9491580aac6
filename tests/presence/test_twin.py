"""The twin of the functions of presence in Python answers as the functions on Redis do."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from tangram.bus import Bus
from tangram.bus.scripts import FunctionCall
from tangram.presence.keeper import load_presence
from tangram.presence.library import (
    claim_call,
    end_call,
    flush_call,
    forget_call,
    read_call,
    sessions_call,
    sweep_call,
    version_call,
)
from tangram.testing import open_broker
from tests.presence.world import World

CALLS = 400
IDS = ("ann", 'b"\\é/', "")


def drawn_calls(seed: int) -> Iterator[FunctionCall]:
    """Yield calls of all functions with few members, so that they meet."""
    rng = random.Random(seed)
    for number in range(CALLS):
        topic, session = rng.choice(("map", "é/:x")), rng.choice(("a/1", "b/1"))
        node, limit = session[0], rng.choice((None, None, 2, 0))
        kind = rng.random()
        if kind < 0.6:
            members = {f"{rng.randrange(6)}:{topic}:1": rng.choice(IDS) for _ in range(rng.randrange(4))}
            gone = {f"{rng.randrange(6)}:{topic}:1": "x" for _ in range(rng.randrange(3))}
            yield flush_call(
                topic,
                session,
                node,
                joins=members,
                leaves=gone,
                limit=limit,
                nonce=rng.choice(("", f"n{number}")),
                whole=rng.random() < 0.2,
                empty=rng.random() < 0.1,
            )
        elif kind < 0.75:
            yield rng.choice((read_call(topic), version_call(topic), sessions_call()))
        elif kind < 0.85:
            yield sweep_call(topic, session, limit)
        elif kind < 0.9:
            yield claim_call(session, node, "c", 600.0, gone=rng.random() < 0.5)
        else:
            yield rng.choice((end_call(session, node), forget_call(session)))


def sorted_answer(call: FunctionCall, answer: Any) -> Any:
    """Return an answer with members and topics in order, because Redis keeps none, and without versions."""
    if call.function == "tangram_who_claim" and isinstance(answer, list):
        return sorted(answer)
    if not isinstance(answer, list):
        return "version" if isinstance(answer, bytes) and answer.isdigit() and int(answer) > 1000 else answer
    if answer and len(answer) % 2 == 0 and all(isinstance(word, bytes) for word in answer):
        pairs = zip(answer[::2], answer[1::2], strict=True)
        return sorted((name, b"" if name == b"#v" else value) for name, value in pairs)
    return [sorted_answer(call, one) for one in answer]


def without_versions(channel: bytes, payload: bytes) -> Any:
    """Return a message without versions, which depend on the clock, and with members in any order."""
    fields = json.loads(payload)
    if channel == b"to:phoenix:who":
        for name in ("p", "v"):
            if fields.get(name):
                fields[name] = 1
    else:
        for one in fields.values():
            for entry in one.values():
                entry["metas"].sort(key=lambda meta: meta["phx_ref"])
    return channel, fields


@pytest.mark.slow
@pytest.mark.parametrize("scripts", [False, True])
async def test_the_twin_answers_and_publishes_as_redis(*, scripts: bool, redis_server: Path) -> None:
    """The same calls have the same answers and the same messages in both, also as scripts."""
    options = ("--rename-command", "FUNCTION", "") if scripts else ()
    received: list[tuple[bytes, bytes]] = []
    last = trio.Event()

    def take(batch: Sequence[tuple[bytes, bytes]]) -> None:
        received.extend(one for one in batch if one[0] != b"to:end:")
        if batch[-1][0] == b"to:end:":
            last.set()

    with open_broker(*options, server=redis_server) as broker:
        bus = Bus(broker.url, sink=take, loads=(load_presence,))
        async with trio.open_nursery() as nursery:
            await nursery.start(bus.run)
            world = World("")
            for call in drawn_calls(7):
                with trio.fail_after(30):
                    answer = await bus.call(call)
                assert sorted_answer(call, answer) == sorted_answer(call, world.call(call)), call
            with trio.fail_after(30):
                await bus.publish("to:end:", "")
                await last.wait()
            nursery.cancel_scope.cancel()
    assert [without_versions(*one) for one in received] == [without_versions(*one) for one in world.published]
