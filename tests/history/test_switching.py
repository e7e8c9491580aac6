"""Histories that a reload turns on, off, and to another mode, and clients that asked for positions."""

from __future__ import annotations

from collections.abc import AsyncIterator

import attrs
import pytest
import trio
from trio.testing import MockClock

from tangram.client import Channel
from tangram.config import LoadedConfig
from tangram.config.model import HistoryEntry
from tangram.testing import RunningTangram, open_tangram

STREAM = HistoryEntry(topics="kept")
LATEST = HistoryEntry(topics="kept", mode="latest")


@pytest.fixture
async def running() -> AsyncIterator[RunningTangram]:
    """A server whose topic ``kept`` has a history."""
    tables = {"channel": {"history": [{"topics": "kept"}]}}
    async with open_tangram([], tables, fakes=True, memory_port=True, seed=1) as running:
        yield running


async def switch(running: RunningTangram, *histories: HistoryEntry) -> None:
    """Reload with other histories."""
    channel = attrs.evolve(running.server.config.channel, history=histories)
    config = attrs.evolve(running.server.config, channel=channel)
    server = running.server
    server.boot = attrs.evolve(server.boot, reload=lambda: LoadedConfig(config, ()))
    await server.reload()
    await running.wait_steady()


async def publish(running: RunningTangram, number: int) -> None:
    """Publish a number."""
    await running.state.publish("to:kept:n", {"n": number})


async def token(running: RunningTangram) -> str:
    return str((await running.http.post("/token", json={"channel": "kept"})).json()["token"])


async def look(running: RunningTangram, position: str = "") -> tuple[Channel, list[int]]:
    """Join from a position; return the channel, and the numbers that come within a second."""
    minted = await token(running)
    async with running.open_socket() as socket:
        channel = await socket.join("kept", token=minted, recover=position or True)
        return channel, await numbers(channel)


async def numbers(channel: Channel) -> list[int]:
    """Return the numbers that come within a second."""
    found: list[int] = []
    with trio.move_on_after(1):
        while True:
            if (event := await channel.receive()).name == "n":
                found.append(event.payload["n"])
    return found


async def wait_join(page: Channel, count: int) -> None:
    """Wait for a join: a page learns of the reload a moment after it."""
    with trio.fail_after(20):
        while page.joins < count:  # noqa: ASYNC110 - the channel has no event for it
            await trio.sleep(0.01)


async def test_a_page_is_told_when_a_reload_turns_a_history_off_and_on(
    autojump_clock: MockClock, running: RunningTangram
) -> None:
    """Nothing is recovered without a history; later no earlier position is continued wrongly."""
    minted = await token(running)
    async with running.open_socket() as socket:
        page = await socket.join("kept", token=minted, recover=True)
        await publish(running, 1)
        assert await numbers(page) == [1]
        before = str(page.position)
        await switch(running)
        await wait_join(page, 2)
        off = (page.recovered, page.reason)
        await publish(running, 2)
        live = await numbers(page)
        stranger, missed = await look(running, before)
        await switch(running, STREAM)
        await wait_join(page, 3)
        on = (page.recovered, page.reason)
        await publish(running, 3)

        assert (off, live) == ((False, "epoch"), [2])
        assert (stranger.recovered, stranger.reason, missed) == (False, "epoch", [])
        assert (on, await numbers(page)) == ((False, "epoch"), [3])
        late, replayed = await look(running, before)
        assert not late.recovered or replayed == [2, 3]
        again, replayed = await look(running, str(page.position))
        assert (again.recovered, replayed) == (True, [])


async def test_a_page_is_told_when_a_reload_changes_the_mode(
    autojump_clock: MockClock, running: RunningTangram
) -> None:
    """Positions of the mode before are of another epoch, in both directions."""
    await publish(running, 1)
    page, _ = await look(running)
    for history in (LATEST, STREAM):
        await switch(running, history)
        await publish(running, 2)
        old, replayed = await look(running, str(page.position))
        assert (old.recovered, old.reason) == (False, "epoch")
        assert replayed == ([2] if history is LATEST else [])
        page, _ = await look(running)
        await publish(running, 3)
        new, replayed = await look(running, str(page.position))
        assert (new.recovered, replayed) == (True, [3])


@pytest.mark.parametrize("plain", [False, True], ids=["state.publish", "PUBLISH"])
async def test_a_history_that_a_reload_turns_on_recovers(autojump_clock: MockClock, *, plain: bool) -> None:
    """A page of the time before gets positions, and misses nothing from then on."""
    async with open_tangram([], fakes=True, memory_port=True, seed=1) as running:
        await publish(running, 1)
        page, _ = await look(running)
        assert page.position is None
        await switch(running, STREAM)
        page, _ = await look(running)
        for number in (2, 3):
            if plain:
                assert running.memory is not None
                running.memory.publish(b"to:kept:n", b'{"n":%d}' % number)
            else:
                await publish(running, number)
        back, replayed = await look(running, str(page.position))

        assert (back.recovered, replayed) == (True, [2, 3])
