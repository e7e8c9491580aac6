"""Subscriptions over a fake."""

import random

import pytest
import trio

from tangram.bus import Bus, Message
from tangram.bus.subscriptions import SUBSCRIBE_TIMEOUT, Subscription
from tangram.errors import BrokerUnavailable
from tests.bus.fakes import URL, FakeRedis


@pytest.fixture
async def bus(autojump_clock: trio.testing.MockClock, fake: FakeRedis, nursery: trio.Nursery) -> Bus:
    made = Bus(URL, dial=fake.dial, rng=random.Random(1))
    return await nursery.start(made.run)  # type: ignore[no-any-return]


async def test_a_message_published_after_entering_arrives(
    autojump_clock: trio.testing.MockClock, bus: Bus
) -> None:
    """``async with`` returns after the confirmation, so the next message arrives, in order."""
    async with bus.subscribe("from:a:*", "from:b:*") as subscription:
        for channel in ("from:a:x", "from:b:y", "from:c:z", "from:a:z"):
            await bus.publish(channel, channel)
        got = [await anext(subscription) for _ in range(3)]

    assert got == [
        Message("from:a:x", b"from:a:x", "from:a:*"),
        Message("from:b:y", b"from:b:y", "from:b:*"),
        Message("from:a:z", b"from:a:z", "from:a:*"),
    ]
    assert got[0].text == "from:a:x"


async def _dropped(subscription: Subscription, count: int) -> None:
    """Wait until the listener, on its own connection, has read so much that ``count`` were dropped."""
    with trio.fail_after(10):
        while subscription.dropped < count:  # noqa: ASYNC110 - statistics have no event
            await trio.sleep(0.01)


async def test_a_slow_consumer_loses_the_oldest_messages(
    autojump_clock: trio.testing.MockClock, bus: Bus
) -> None:
    """The newest are kept up to the bound, and the lost ones are counted."""
    async with bus.subscribe("from:*", max_messages=3) as subscription:
        for number in range(10):
            await bus.publish("from:a:b", str(number))
        await _dropped(subscription, 7)
        got = [(await anext(subscription)).text for _ in range(3)]

    assert got == ["7", "8", "9"]
    assert subscription.dropped == bus.statistics().dropped == 7


async def test_the_queue_is_bounded_in_bytes(autojump_clock: trio.testing.MockClock, bus: Bus) -> None:
    """Large messages push out older ones; a single one of any size is kept."""
    async with bus.subscribe("from:*", max_bytes=100) as subscription:
        for number in range(5):
            await bus.publish("from:a:b", f"{number}".ljust(40))
        await bus.publish("from:a:b", "big" * 100)
        await _dropped(subscription, 5)

        assert (await anext(subscription)).text == "big" * 100
        assert subscription.dropped == 5


async def test_a_subscription_goes_on_after_an_outage(
    autojump_clock: trio.testing.MockClock, bus: Bus, fake: FakeRedis
) -> None:
    """Messages after the outage arrive on the new connection."""
    async with bus.subscribe("from:*") as subscription:
        await fake.drop()
        await trio.sleep(0.01)
        await bus.wait_up()
        await bus.publish("from:a:b", "later")

        assert (await anext(subscription)).text == "later"


async def test_entering_while_redis_is_away_has_a_deadline(
    autojump_clock: trio.testing.MockClock, bus: Bus, fake: FakeRedis
) -> None:
    """``async with`` raises the cause after its timeout."""
    fake.refuse = True
    await fake.drop()
    began = trio.current_time()
    with pytest.raises(BrokerUnavailable, match=r"from:\* within 10 s: connection refused"):
        async with bus.subscribe("from:*"):
            pass

    assert trio.current_time() - began == pytest.approx(SUBSCRIBE_TIMEOUT)
    assert bus.statistics().patterns == ("to:*",)


async def test_an_outage_shorter_than_the_deadline_is_waited_out(
    autojump_clock: trio.testing.MockClock, bus: Bus, fake: FakeRedis
) -> None:
    """A service that starts during a restart of Redis starts with it."""
    fake.refuse = True
    await fake.drop()
    async with trio.open_nursery() as nursery:

        async def come_back() -> None:
            await trio.sleep(5)
            fake.refuse = False

        nursery.start_soon(come_back)
        async with bus.subscribe("from:*"):
            assert bus.up


async def test_iterating_while_redis_is_away_waits(
    autojump_clock: trio.testing.MockClock, bus: Bus, fake: FakeRedis
) -> None:
    """A plain loop has no deadline: it starts when Redis is back."""
    fake.refuse = True
    await fake.drop()
    async with trio.open_nursery() as nursery:

        async def come_back() -> None:
            await trio.sleep(60)
            fake.refuse = False
            await bus.wait_up()
            await bus.publish("from:a:b", "hello")

        nursery.start_soon(come_back)
        async for message in bus.subscribe("from:*"):
            assert message.text == "hello"
            break


async def test_a_stopped_bus_ends_the_iteration(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis
) -> None:
    """The iterator yields the received messages, then raises; it never ends silently."""
    bus = Bus(URL, dial=fake.dial)
    got: list[str] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        subscription = bus.subscribe("from:*")
        await subscription.__aenter__()
        await bus.publish("from:a:b", "last words")
        nursery.cancel_scope.cancel()

    async def drain() -> None:
        while True:
            got.append((await anext(subscription)).text)

    with pytest.raises(BrokerUnavailable, match="the bus has stopped"):
        await drain()

    assert got == ["last words"]
    with pytest.raises(BrokerUnavailable, match="the bus has stopped"):
        await anext(bus.subscribe("from:*"))


async def test_leaving_the_block_ends_a_loop_in_another_task(
    autojump_clock: trio.testing.MockClock, bus: Bus, nursery: trio.Nursery
) -> None:
    """The loop of the other task ends without an error."""
    ended = trio.Event()

    async def consume(subscription: object) -> None:
        async for _ in subscription:  # type: ignore[attr-defined]
            pass
        ended.set()

    async with bus.subscribe("from:*") as subscription:
        nursery.start_soon(consume, subscription)
        await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(1):
        await ended.wait()


async def test_a_pattern_is_needed(autojump_clock: trio.testing.MockClock, bus: Bus) -> None:
    """Subscribing to no pattern raises at once."""
    with pytest.raises(ValueError, match="one or more patterns"):
        bus.subscribe()


async def test_bytes_that_are_not_utf8_stay_readable(
    autojump_clock: trio.testing.MockClock, bus: Bus
) -> None:
    """Such a name is escaped; in the text of such a payload the bytes are replaced."""
    async with bus.subscribe("from:*") as subscription:
        await bus.publish(b"from:\xff:x", b"\xfe")
        message = await anext(subscription)

    assert message.channel == "from:\\xff:x"
    assert message.text == "\ufffd"
