"""Live tails of topics for the operator: exact, bounded, on one line each."""

from __future__ import annotations

import json
from typing import Any

import trio.testing

from tangram.gateway.tails import HEARTBEAT, MAX_BYTES, MAX_RATE, MAX_TAILS, Tail, Tails


def decoded(lines: bytes | None) -> list[dict[str, Any]]:
    assert lines is not None
    return [json.loads(line) for line in lines.splitlines()]


async def test_a_tail_has_the_messages_of_its_topic_alone() -> None:
    """Topic and event are compared exactly; other channels of Redis are ignored."""
    tails = Tails()
    with tails.open("a:b") as whole, tails.open("a:b", "x") as one:
        tails.deliver(
            [
                (b"to:a:b:x", b"{}"),
                (b"to:a:b:y", b"[1]"),
                (b"to:a:x", b"{}"),
                (b"from:a:b:x", b"{}"),
                (b"?", b""),
            ]
        )
        both, single = decoded(await whole.next_lines()), decoded(await one.next_lines())

    assert [(line["topic"], line["event"], line["payload"]) for line in both] == [
        ("a:b", "x", {}),
        ("a:b", "y", [1]),
    ]
    assert [line["event"] for line in single] == ["x"]
    assert len(tails) == 0


async def test_any_payload_is_one_line() -> None:
    """JSON loses its line breaks; other payloads become text or base64."""
    tails = Tails()
    with tails.open("t") as tail:
        tails.deliver(
            [(b"to:t:e", payload) for payload in (b'{\n "a": 1\n}', b"hello\nyou", b"\xff", b"[" * 9999)]
        )
        lines = decoded(await tail.next_lines())

    assert [line["payload"] for line in lines[:3]] == [{"a": 1}, {"text": "hello\nyou"}, {"base64": "/w=="}]
    assert lines[3]["payload"] == {"text": "[" * 9999}


async def test_messages_above_the_bounds_are_counted_and_left_out() -> None:
    """A busy topic costs a tail at most its rate and bytes, and the reader learns how many are missing."""
    tail = Tail("t", None)
    for _ in range(MAX_RATE + 7):
        tail.take("t", "e", b"{}", 5.5)
    fast = decoded(await tail.next_lines())
    for second in range(3):
        tail.take("t", "e", b'"%b"' % (b"x" * (MAX_BYTES // 2)), 6.0 + second)
    large = decoded(await tail.next_lines())

    assert len(fast) == MAX_RATE + 1
    assert fast[-1]["dropped"] == 7
    assert [line.get("dropped") for line in large] == [None, 2]


async def test_an_idle_tail_sends_heartbeats_and_ends_when_closed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An empty line after a quiet time; the waiting messages and then the end after a close."""
    tails = Tails()
    with tails.open("t") as tail:
        began = trio.current_time()
        assert await tail.next_lines() == b"\n"
        assert trio.current_time() - began == HEARTBEAT
        tails.deliver([(b"to:t:e", b"{}")])
        tails.close()
        assert len(decoded(await tail.next_lines())) == 1
        assert await tail.next_lines() is None


async def test_the_number_of_tails_is_bounded() -> None:
    """Each tail costs every message a little, so there is a limit."""
    tails = Tails()
    opened = [tails.open("t") for _ in range(MAX_TAILS)]
    for one in opened:
        assert not tails.full
        one.__enter__()
    assert tails.full
    opened[0].__exit__(None, None, None)
    assert not tails.full
