"""Probes of a quiet subscriber connection."""

from __future__ import annotations

import random

import pytest
import trio

from tangram.bus import Bus
from tangram.bus.echo import ECHO_EVERY, ECHO_TIMEOUT, Echo
from tests.bus.fakes import URL, FakeRedis, until

Clock = trio.testing.MockClock


def test_a_probe_that_comes_back_or_was_not_published_is_no_fault() -> None:
    """Only a message that Redis took and did not deliver shows a deaf connection."""
    echo = Echo("x")
    assert echo.look(0) == "wait"
    echo.allowed = True
    assert echo.look(0) == "probe"
    assert not echo.is_deaf(1, published=True)
    assert echo.look(1) == "probe"
    assert not echo.is_deaf(1, published=False)
    assert echo.look(2) == "wait"
    assert echo.look(2) == "probe"
    assert echo.is_deaf(2, published=True)
    echo.connected()
    assert echo.look(2) == "wait"


@pytest.mark.parametrize("seed", range(20))
def test_a_connection_that_receives_is_never_probed(seed: int) -> None:
    """In any run, a probe follows an interval without a message, and no other."""
    rng = random.Random(seed)
    echo, received = Echo("x"), 0
    echo.allowed = True
    echo.look(received)
    for _ in range(200):
        more = rng.choice([0, 0, 1, 5])
        received += more
        step = echo.look(received)
        assert step == ("wait" if more else "probe")
        if step == "probe":
            back = rng.choice([0, 1])
            received += back
            assert echo.is_deaf(received, published=True) is (back == 0)


async def run_bus(nursery: trio.Nursery, fake: FakeRedis) -> Bus:
    bus = Bus(URL, dial=fake.dial, rng=random.Random(1))
    await nursery.start(bus.run)
    return bus


async def test_a_connection_that_hears_no_messages_is_replaced(
    autojump_clock: Clock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """It answers pings, so nothing else would notice."""
    bus = await run_bus(nursery, fake)
    await trio.sleep(5 * ECHO_EVERY)
    assert bus.statistics().reconnects == 0
    assert bus.statistics().published == 0, "probes are not counted"

    fake.lost.add(b"{tangram}:echo:")
    await trio.sleep(2 * ECHO_EVERY + ECHO_TIMEOUT)
    assert bus.statistics().reconnects >= 1
    fake.lost.clear()
    await until(lambda: bus.up)


async def test_an_account_without_the_channel_gets_no_probes(
    autojump_clock: Clock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """The connection is used as before."""
    fake.errors[b"SUBSCRIBE"] = "NOPERM No permissions to access a channel"
    bus = await run_bus(nursery, fake)
    await trio.sleep(5 * ECHO_EVERY)

    assert bus.up
    assert fake.published == []
    assert bus.statistics().reconnects == 0


async def test_a_refused_probe_is_the_last_one(
    autojump_clock: Clock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """An account may subscribe and not publish there."""
    fake.errors[b"PUBLISH"] = "NOPERM No permissions to access a channel"
    bus = await run_bus(nursery, fake)
    await trio.sleep(5 * ECHO_EVERY)

    assert [words[0] for words in fake.publisher.commands].count(b"PUBLISH") == 1
    assert bus.statistics().reconnects == 0
