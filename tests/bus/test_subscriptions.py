import random

import pytest
import trio

from tangram.bus import Bus, Message
from tangram.bus.subscriptions import SUBSCRIBE_TIMEOUT
from tangram.errors import BrokerUnavailable
from tests.bus.fakes import URL, FakeRedis


@pytest.fixture
async def bus(autojump_clock: trio.testing.MockClock, fake: FakeRedis, nursery: trio.Nursery) -> Bus:
    made = Bus(URL, dial=fake.dial, rng=random.Random(1))
    return await nursery.start(made.run)  # type: ignore[no-any-return]


async def test_what_is_published_after_entering_arrives(
    autojump_clock: trio.testing.MockClock, bus: Bus
) -> None:
    """`async with` returns once Redis has confirmed, so the very next message comes through, in order with
    the others."""
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


async def test_a_consumer_that_is_behind_loses_the_oldest(
    autojump_clock: trio.testing.MockClock, bus: Bus
) -> None:
    """The bound holds by count, the newest are kept, and the losses are counted."""
    async with bus.subscribe("from:*", max_messages=3) as subscription:
        for number in range(10):
            await bus.publish("from:a:b", str(number))
        got = [(await anext(subscription)).text for _ in range(3)]

    assert got == ["7", "8", "9"]
    assert subscription.dropped == bus.statistics().dropped == 7


async def test_the_bound_holds_by_bytes(autojump_clock: trio.testing.MockClock, bus: Bus) -> None:
    """Large messages push out older ones; a single one of any size is kept."""
    async with bus.subscribe("from:*", max_bytes=100) as subscription:
        for number in range(5):
            await bus.publish("from:a:b", f"{number}".ljust(40))
        await bus.publish("from:a:b", "big" * 100)

        assert (await anext(subscription)).text == "big" * 100
        assert subscription.dropped == 5


async def test_it_goes_on_after_an_outage(
    autojump_clock: trio.testing.MockClock, bus: Bus, fake: FakeRedis
) -> None:
    """A subscription outlives the connection: what is published once Redis is back arrives."""
    async with bus.subscribe("from:*") as subscription:
        await fake.drop()
        await trio.sleep(0.01)
        await bus.wait_up()
        await bus.publish("from:a:b", "later")

        assert (await anext(subscription)).text == "later"


async def test_entering_while_redis_is_away_has_a_deadline(
    autojump_clock: trio.testing.MockClock, bus: Bus, fake: FakeRedis
) -> None:
    """Whoever enters while Redis is away waits, and is told why it took too long."""
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
    """A service that starts during a restart of Redis comes up with it."""
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
    """A plain loop has no deadline: it begins whenever Redis is back."""
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
    """Whoever iterates when the bus stops gets what had arrived, then an exception: never a silent end."""
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


async def test_leaving_ends_a_loop_elsewhere(
    autojump_clock: trio.testing.MockClock, bus: Bus, nursery: trio.Nursery
) -> None:
    """A task that still iterates when the block is left finishes its loop."""
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
    """Subscribing to nothing is a mistake that is told at once."""
    with pytest.raises(ValueError, match="no pattern"):
        bus.subscribe()


async def test_bytes_that_are_no_text(autojump_clock: trio.testing.MockClock, bus: Bus) -> None:
    """A name that is no UTF-8 is shown readably; a payload that is none raises when its text is read."""
    async with bus.subscribe("from:*") as subscription:
        await bus.publish(b"from:\xff:x", b"\xfe")
        message = await anext(subscription)

    assert message.channel == "from:\\xff:x"
    with pytest.raises(UnicodeDecodeError):
        message.text  # noqa: B018 - the property is what is tested
