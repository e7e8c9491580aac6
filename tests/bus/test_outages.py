"""The record of outages."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tangram.bus import Bus
from tangram.testing import RealBroker
from tests.bus.fakes import URL, FakeRedis


async def test_an_outage_has_its_times_and_its_cause(autojump_clock: MockClock, fake: FakeRedis) -> None:
    """The record begins with the loss and ends when every subscription is confirmed again."""
    async with trio.open_nursery() as nursery:
        bus = await nursery.start(Bus(URL, dial=fake.dial).run)
        assert (bus.outages.last, bus.outages.count) == (None, 0)
        await bus.outages.wait_over()
        await trio.sleep(10)
        fake.refuse = True
        lost_at = trio.current_time()
        await fake.drop()
        await trio.sleep(3)
        during = bus.outages.current
        fake.refuse = False
        await bus.outages.wait_over()
        back_at = trio.current_time()

        assert during is not None
        assert during.lost_at == pytest.approx(lost_at, abs=0.01)
        assert during.cause == "redis closed the connection"
        assert bus.up
        assert bus.outages.current is None
        last = bus.outages.last
        assert last is not None
        assert last.back_at == pytest.approx(back_at, abs=0.01)
        assert bus.outages.recent(within=5) == last
        await trio.sleep(5)
        assert bus.outages.recent(within=5) is None
        assert bus.outages.count == 1
        nursery.cancel_scope.cancel()


async def test_a_redis_that_is_away_at_the_start_is_an_outage(
    autojump_clock: MockClock, fake: FakeRedis
) -> None:
    """It begins with the first attempt."""
    fake.refuse = True
    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        bus = await nursery.start(Bus(URL, dial=fake.dial).run)
        current = bus.outages.current
        assert current is not None
        assert current.lost_at == began
        fake.refuse = False
        await bus.outages.wait_over()
        assert bus.up
        nursery.cancel_scope.cancel()


async def test_the_stop_of_a_bus_is_no_outage(autojump_clock: MockClock, fake: FakeRedis) -> None:
    """Only losses are recorded."""
    async with trio.open_nursery() as nursery:
        bus = await nursery.start(Bus(URL, dial=fake.dial).run)
        nursery.cancel_scope.cancel()
    assert bus.outages.last is None


@pytest.mark.slow
async def test_a_restart_of_redis_is_one_outage(valkey: RealBroker) -> None:
    """However fast Redis is back, the loss is recorded."""
    async with trio.open_nursery() as nursery:
        bus = await nursery.start(Bus(valkey.url).run)
        for number in range(1, 4):
            valkey.kill()
            valkey.start()
            await trio.sleep(0.05)
            assert bus.outages.recent(within=5) is not None
            with trio.fail_after(5):
                await bus.outages.wait_over()
            assert bus.outages.count == number
        nursery.cancel_scope.cancel()
