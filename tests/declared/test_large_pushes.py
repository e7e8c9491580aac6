"""Pushes whose payloads take long to read."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import attrs
import pytest

import tangram
from tangram.client import Channel
from tangram.declared.channel import MAX_PAYLOAD
from tangram.declared.payload import FAST_AT_ONCE, SLOW_AT_ONCE, TOO_LONG, payload_reader
from tangram.errors import PluginError
from tangram.routing.constraints import MAX_FAULTS
from tangram.testing import open_tangram
from tests.routing.models import Noting


@attrs.frozen
class Plain:
    text: str


def declared() -> tangram.Plugin:
    plugin = tangram.Plugin()
    notes = plugin.channel("notes")

    @notes.receives("text", str)
    async def text(message: str) -> int:
        return len(message)

    @notes.receives("long", str, max_payload=MAX_PAYLOAD * 2)
    async def long(message: str) -> int:
        return len(message)

    @notes.receives("any", str, max_payload=0)
    async def unbounded(message: str) -> int:
        return len(message)

    @notes.receives("raw", bytes)
    async def raw(message: bytes) -> int:
        return len(message)

    @notes.receives("few", bytes, max_payload=3)
    async def few(message: bytes) -> int:
        return len(message)

    @notes.receives("noting", Noting)
    async def noting(message: Noting) -> int:
        return len(message.text)

    @notes.receives("numbers", list[int])
    async def numbers(message: list[int]) -> int:
        return len(message)

    return plugin


async def detail(channel: Channel, event: str, payload: Any) -> Any:
    with pytest.raises(tangram.Refused) as raised:
        await channel.push(event, payload)
    assert raised.value.response["reason"] == "invalid payload"
    return raised.value.response["detail"]


@pytest.mark.slow
async def test_a_payload_has_a_bound() -> None:
    """JSON has one unless its declaration says otherwise, bytes have none; a refusal disturbs nothing."""
    async with open_tangram([declared()], fakes=True) as server, server.join("notes") as channel:
        fits, above = "x" * (MAX_PAYLOAD - 2), "x" * (MAX_PAYLOAD - 1)
        assert await channel.push("text", fits) == len(fits)
        (fault,) = await detail(channel, "text", above)
        assert fault["msg"] == f"expected at most {MAX_PAYLOAD} bytes, not {MAX_PAYLOAD + 1}"
        assert (fault["loc"], fault["type"]) == (["payload"], "too_large")
        assert await channel.push("long", above) == len(above)
        assert await channel.push("any", above * 3) == 3 * len(above)
        assert await channel.push("raw", above.encode() * 3) == 3 * len(above)
        assert await channel.push("few", b"abc") == 3
        (fault,) = await detail(channel, "few", b"abcd")
        assert fault["type"] == "too_large"


@pytest.mark.slow
@pytest.mark.parametrize("size", [SLOW_AT_ONCE // 2, SLOW_AT_ONCE + 1])
async def test_a_long_payload_is_read_in_a_thread(size: int) -> None:
    """A converter that may take long does not hold the event loop, nor do the faults that it finds."""
    Noting.threads.clear()
    async with open_tangram([declared()], fakes=True) as server, server.join("notes") as channel:
        assert await channel.push("noting", {"text": "x" * size}) == size
        found = await detail(channel, "numbers", [[]] * size)
    assert len(Noting.threads) == 1
    assert (Noting.threads[0] is threading.current_thread()) is (size < SLOW_AT_ONCE)
    assert (Noting.thresholds[-1] == gc.get_threshold()[2]) is (size < SLOW_AT_ONCE)
    assert len(found) == MAX_FAULTS + 1


def test_only_payloads_that_are_read_fast_are_read_at_once() -> None:
    """Short ones are; longer ones where msgspec alone reads them; all others take a thread."""
    plain, checked = payload_reader(Plain), payload_reader(Noting)
    for reader, kind, size, at_once in (
        (plain, Plain, SLOW_AT_ONCE, True),
        (plain, Plain, FAST_AT_ONCE, True),
        (plain, Plain, FAST_AT_ONCE + 1, False),
        (checked, Noting, SLOW_AT_ONCE, True),
        (checked, Noting, SLOW_AT_ONCE + 1, False),
    ):
        text = "x" * (size - len('{"text":""}'))
        value = reader.read_at_once(b'{"text":"%b"}' % text.encode())
        assert (value == kind(text)) is at_once
        assert (value is TOO_LONG) is not at_once
    wrong = b'{"text":%b0}' % (b" " * SLOW_AT_ONCE)
    assert plain.read_at_once(wrong) is TOO_LONG


def test_a_bound_is_checked_where_it_is_declared() -> None:
    """A negative bound is refused with its value."""
    channel = tangram.Plugin().channel("notes")
    with pytest.raises(PluginError, match="max_payload=-1 must be bytes, 0 for no bound"):
        channel.receives("text", str, max_payload=-1)


def test_the_page_tells_the_bounds() -> None:
    """The numbers of the page are those of the code."""
    page = (Path(__file__).parents[2] / "docs" / "channels.md").read_text(encoding="utf-8")

    assert f"A payload of JSON may have {MAX_PAYLOAD:,} bytes" in page
    assert f"about {MAX_FAULTS} faulty items" in page
