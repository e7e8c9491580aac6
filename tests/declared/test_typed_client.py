"""Programs push values of types to declared channels, and get values of types."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

import tangram
from tangram.client import typed
from tests.declared.test_pushes import Select, Selected, World, joined


@attrs.frozen
class Also:
    by: str


@attrs.frozen
class Wrong:
    by: int


async def test_replies_and_events_are_values(autojump_clock: MockClock) -> None:
    """A push takes and returns values; events of one name do not disturb readers of another."""
    async with joined(World()) as (_, channel):
        flights = typed(channel)
        selected = await flights.push("select", Select("3944ef"), Selected)
        also = await flights.events("also", Also).receive()
        position = await flights.events("position", Select).receive()

        assert selected == Selected("eu", "ann")
        assert also == Also("ann")
        assert position == Select("3944ef", 3)


async def test_events_end_with_the_channel(autojump_clock: MockClock) -> None:
    """An iteration yields the events of its name and ends when the channel is left."""
    async with joined(World()) as (_, channel):
        flights = typed(channel)
        seen: list[Any] = []

        async def read() -> None:
            seen.extend([one async for one in flights.events("also", Also)])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await flights.push("select", Select("1"), Selected)
            await flights.push("select", Select("2"), Selected)
            while len(channel._events) != 2:  # the two positions, which nobody reads
                await trio.testing.wait_all_tasks_blocked()
                await trio.sleep(0.1)
            await channel.leave()

        assert seen == [Also("ann"), Also("ann")]


async def test_a_message_that_does_not_fit_names_every_fault(autojump_clock: MockClock) -> None:
    """Faults of a push are the server's reply; those of a reply or an event are raised here."""
    async with joined(World()) as (_, channel):
        flights = typed(channel)
        with pytest.raises(tangram.Refused) as refused:
            await flights.push("select", {"zoom": "far"}, Selected)
        with pytest.raises(
            tangram.BadMessage, match=r"event 'select' of 'flights:eu' is no Wrong: .*@ payload.by"
        ):
            await flights.push("select", Select("3944ef"), Wrong)
        also = flights.events("also", Wrong)
        with pytest.raises(tangram.BadMessage):
            await also.receive()

        assert len(refused.value.response["detail"]) == 2
