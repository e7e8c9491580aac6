"""The subscriber connection over a fake."""

import gc
import random
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tangram.bus.gathering import GATHER_MAX
from tangram.bus.listener import Listener
from tangram.bus.resp import Link
from tangram.bus.subscriptions import Message, Subscription
from tangram.bus.topics import TO_ALL
from tangram.errors import BrokerRefused, BrokerUnavailable
from tangram.redis_url import parse_redis_url
from tests.bus.fakes import URL, Connection, FakeRedis, bulk, pmessage, until

Batch = Sequence[tuple[bytes, bytes]]


class Recorder:
    """A sink and an ``on_up`` that record their calls in order."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.ups: list[bool] = []
        self.story: list[object] = []

    def sink(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.story.append(batch)

    def on_up(self, up: bool) -> None:
        self.ups.append(up)
        self.story.append(up)

    @property
    def messages(self) -> list[tuple[bytes, bytes]]:
        return [message for batch in self.batches for message in batch]


def listener_of(fake: FakeRedis, recorder: Recorder, timer: Callable[[], float] = lambda: 0.0) -> Listener:
    return Listener(
        parse_redis_url(URL),
        pinned=TO_ALL,
        sink=recorder.sink,
        on_up=recorder.on_up,
        dial=fake.dial,
        rng=random.Random(1),
        timer=timer,
    )


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def listener(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, recorder: Recorder, nursery: trio.Nursery
) -> Listener:
    made = listener_of(fake, recorder)
    nursery.start_soon(made.run)
    await made.wait_up()
    return made


def commands(connection: Connection, name: bytes) -> list[bytes]:
    return [words[1] for words in connection.commands if words[0] == name]


@settings(deadline=None)
@given(
    messages=st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=40)), max_size=12),
    cuts=st.lists(st.integers(0, 800), max_size=8),
)
def test_any_split_of_the_stream_gives_the_same_messages(
    messages: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    """Any cut of the stream gives the same messages, with one call of the sink per chunk."""
    recorder = Recorder()
    listener = Listener(parse_redis_url(URL), pinned=TO_ALL, sink=recorder.sink)
    data = b"".join(pmessage(TO_ALL, channel, payload) for channel, payload in messages)
    ours, _ = trio.testing.memory_stream_pair()
    link = Link(ours)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for begin, end in pairwise(places):
        link.reader.feed(data[begin:end])
        calls = len(recorder.batches)
        listener._deliver_received(link)

        assert len(recorder.batches) <= calls + 1
    assert recorder.messages == messages
    assert listener.received == len(messages)


async def test_a_chunk_is_one_batch(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, recorder: Recorder
) -> None:
    """Messages that arrive together are delivered together."""
    data = b"".join(pmessage(TO_ALL, b"to:a:%d" % n, b"x") for n in range(100))
    await fake.subscriber.stream.send_all(data)
    await trio.testing.wait_all_tasks_blocked()

    assert [len(batch) for batch in recorder.batches] == [100]
    assert recorder.messages[7] == (b"to:a:7", b"x")


async def delivered_at(
    fake: FakeRedis, recorder: Recorder, nursery: trio.Nursery, interval: float, count: int
) -> list[float]:
    """Return the delays of messages that come at an interval, with deliveries that cost 0.3 ms each."""
    cost = iter(number * 0.0003 for number in range(100_000))
    delays: list[float] = []
    listener = listener_of(fake, recorder, lambda: next(cost))
    begun = 0.0

    def sink(batch: Batch) -> None:
        recorder.sink(batch)
        delays.extend(trio.current_time() - begun - float(payload) for _, payload in batch)

    listener._sink = sink
    nursery.start_soon(listener.run)
    await listener.wait_up()
    begun = trio.current_time()
    for number in range(count):
        await trio.sleep_until(begun + number * interval)
        await fake.push(b"to:a:b", b"%.9f" % (number * interval))
    await trio.sleep(0.01)
    return delays


async def test_messages_gather_at_rates_where_that_saves_writes(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, recorder: Recorder, nursery: trio.Nursery
) -> None:
    """At 2,000 a second the next read waits for ten times the cost of the last delivery."""
    delays = await delivered_at(fake, recorder, nursery, 0.0005, 200)

    sizes = [len(batch) for batch in recorder.batches]
    assert sum(sizes) == 200
    assert set(sizes[-10:-1]) == {6}
    assert max(delays) == pytest.approx(0.003, abs=0.001)


async def test_messages_that_come_alone_are_not_delayed(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, recorder: Recorder, nursery: trio.Nursery
) -> None:
    """At 500 a second each message is delivered at once, however much a delivery costs."""
    delays = await delivered_at(fake, recorder, nursery, 0.002, 100)

    assert [len(batch) for batch in recorder.batches] == [1] * 100
    assert max(delays) == pytest.approx(0.0, abs=1e-6)


async def test_no_pause_follows_a_full_read(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, recorder: Recorder, nursery: trio.Nursery
) -> None:
    """After a full read enough messages have gathered, also at a high rate and after a costly delivery."""
    cost = iter(range(10_000))
    listener = listener_of(fake, recorder, lambda: next(cost))
    nursery.start_soon(listener.run)
    await listener.wait_up()
    listener._gathering.pays = True
    listener._gathering._began = trio.current_time()
    message = pmessage(TO_ALL, b"to:a:b", b"x" * 1000)
    begun = trio.current_time()
    await fake.subscriber.stream.send_all(message * 200)
    await until(lambda: listener.received == 200)

    assert trio.current_time() - begun < GATHER_MAX


async def test_on_up_waits_for_every_pattern_after_an_outage(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, recorder: Recorder
) -> None:
    """``on_up(True)`` comes only when each pattern is confirmed on the new connection."""
    confirmed: list[tuple[int, bytes]] = []
    async with Subscription(listener, ("from:a:*",)), Subscription(listener, ("from:b:*", "from:a:*")):
        fake.mute.add(b"PSUBSCRIBE")
        await fake.drop()
        await trio.sleep(0.5)

        assert recorder.ups == [True, False]
        assert commands(fake.connections[-1], b"PSUBSCRIBE") == [b"to:*", b"from:a:*", b"from:b:*"]

        for number, pattern in enumerate((b"to:*", b"from:a:*", b"from:b:*"), 1):
            confirmed.append((len(recorder.ups), pattern))
            await fake.connections[-1].stream.send_all(
                b"*3\r\n$10\r\npsubscribe\r\n$%d\r\n%b\r\n:%d\r\n" % (len(pattern), pattern, number)
            )
            await trio.testing.wait_all_tasks_blocked()

        assert [ups for ups, _ in confirmed] == [2, 2, 2]
        assert recorder.ups == [True, False, True]
        assert listener.connection.reconnects == 1


async def test_an_unconfirmed_subscription_ends_the_connection(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, recorder: Recorder, nursery: trio.Nursery
) -> None:
    """A confirmation has a deadline, also on a connection that answers pings."""
    fake.mute.add(b"PSUBSCRIBE")
    listener = listener_of(fake, recorder)
    nursery.start_soon(listener.run)
    await trio.sleep(60)

    assert len(fake.connections) > 10
    assert recorder.ups == []
    assert "did not confirm" in listener.cause


async def test_a_message_with_two_patterns_is_delivered_for_each(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, recorder: Recorder
) -> None:
    """The sink gets it through ``to:*``, a plugin through its own pattern, each once."""
    async with Subscription(listener, ("to:a:*",)) as subscription:
        await fake.push(b"to:a:b", b"x")
        message = await anext(subscription)
        await trio.testing.wait_all_tasks_blocked()

        assert message == Message("to:a:b", b"x", "to:a:*")
        assert recorder.messages == [(b"to:a:b", b"x")]
        assert not subscription._queue


async def test_a_plugin_may_subscribe_to_the_pinned_pattern(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, recorder: Recorder
) -> None:
    """``to:*`` is subscribed once, confirmed at once for plugins, and stays when they leave."""
    async with Subscription(listener, ("to:*",)) as subscription:
        await fake.push(b"to:a:b", b"x")

        assert (await anext(subscription)).payload == b"x"
    await trio.testing.wait_all_tasks_blocked()

    assert commands(fake.subscriber, b"PSUBSCRIBE") == [b"to:*"]
    assert commands(fake.subscriber, b"PUNSUBSCRIBE") == []
    assert recorder.messages == [(b"to:a:b", b"x")]


async def test_a_pattern_is_subscribed_while_it_is_in_use(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis
) -> None:
    """The first subscription subscribes a pattern, and the end of the last unsubscribes it."""
    connection = fake.subscriber
    async with Subscription(listener, ("from:*",)):
        async with Subscription(listener, ("from:*", "from:*")):
            pass
        await trio.testing.wait_all_tasks_blocked()

        assert commands(connection, b"PSUBSCRIBE") == [b"to:*", b"from:*"]
        assert commands(connection, b"PUNSUBSCRIBE") == []
    await trio.testing.wait_all_tasks_blocked()

    assert commands(connection, b"PUNSUBSCRIBE") == [b"from:*"]
    assert listener.patterns == ("to:*",)


async def test_an_older_confirmation_is_not_taken_for_a_newer_one(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """After subscribing, leaving and subscribing again, only the second confirmation counts."""
    fake.mute.update({b"PSUBSCRIBE", b"PUNSUBSCRIBE"})
    connection = fake.subscriber
    entered: list[str] = []

    async def enter() -> None:
        async with Subscription(listener, ("from:*",)):
            entered.append("second")
            await trio.sleep_forever()

    first = Subscription(listener, ("from:*",))
    with trio.move_on_after(0.1):
        async with first:
            entered.append("first")
    nursery.start_soon(enter)
    await trio.testing.wait_all_tasks_blocked()
    subscribed = b"*3\r\n$10\r\npsubscribe\r\n$6\r\nfrom:*\r\n:2\r\n"
    unsubscribed = b"*3\r\n$12\r\npunsubscribe\r\n$6\r\nfrom:*\r\n:1\r\n"
    await connection.stream.send_all(subscribed + unsubscribed)
    await trio.testing.wait_all_tasks_blocked()

    assert entered == []

    await connection.stream.send_all(subscribed)
    await trio.testing.wait_all_tasks_blocked()

    assert entered == ["second"]


async def test_a_refused_pattern_fails_only_its_subscriber(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, recorder: Recorder
) -> None:
    """A pattern that the account may not read fails; all else goes on, also after reconnects."""
    fake.errors[b"PSUBSCRIBE secret:*"] = "NOPERM no permissions to access a channel"
    with pytest.raises(BrokerUnavailable, match="refuses the subscription to 'secret:\\*': NOPERM"):
        async with Subscription(listener, ("secret:*",)):
            pass
    stubborn = Subscription(listener, ("secret:*",))
    listener.add(stubborn)
    await fake.drop()
    await trio.sleep(1)

    assert recorder.ups == [True, False, True]


async def test_an_iteration_over_a_refused_pattern_raises(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, recorder: Recorder
) -> None:
    """The error comes without ``async with``, beside a busy pattern, and after a reconnect.

    Another iteration over the allowed pattern goes on.
    """
    told: list[str] = []

    async def listen(*patterns: str) -> None:
        try:
            async for _ in Subscription(listener, patterns):
                pass
        except BrokerRefused as error:
            told.append(str(error))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, "from:*", "late:*")
            other = Subscription(listener, ("from:*",))
            other.begin()
            await trio.sleep(1)
            fake.errors[b"PSUBSCRIBE secret:*"] = "NOPERM no permissions to access a channel"
            fake.errors[b"PSUBSCRIBE late:*"] = "NOPERM no longer"
            await listen("from:*", "secret:*")
            assert len(told) == 1
            await fake.drop()
            for _ in range(10):
                await trio.sleep(1)
                await fake.push(b"from:a:b", b"x")

    assert [text.rpartition(": ")[0] for text in told] == [
        "redis refuses the subscription to 'secret:*'",
        "redis refuses the subscription to 'late:*'",
    ]
    with trio.fail_after(60):
        assert (await anext(other)).channel == "from:a:b"


async def test_a_temporary_refusal_is_retried(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, recorder: Recorder
) -> None:
    """Subscriptions that Redis refuses during a long script are sent again."""
    fake.errors[b"PSUBSCRIBE from:*"] = "BUSY Redis is busy running a script"
    subscription = Subscription(listener, ("from:*",))
    subscription.begin()
    await trio.sleep(1)
    fake.errors.clear()
    await trio.sleep(1)
    await fake.push(b"from:a:b", b"x")

    with trio.fail_after(60):
        assert (await anext(subscription)).payload == b"x"


async def test_messages_before_a_protocol_error_are_delivered(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, recorder: Recorder
) -> None:
    """The good messages of the chunk are delivered, then the connection is replaced."""
    await fake.subscriber.stream.send_all(pmessage(TO_ALL, b"to:a:b", b"good") + b"\x00garbage\r\n")
    await trio.sleep(0.2)

    assert recorder.story == [True, [(b"to:a:b", b"good")], False, True]


async def test_an_unexpected_answer_ends_the_connection(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, recorder: Recorder
) -> None:
    """After a reply without a command the order of the answers is unknown."""
    await fake.subscriber.stream.send_all(bulk(b"pong", b""))
    await trio.sleep(0.2)

    assert recorder.ups == [True, False, True]
    assert "answers no command" in listener.connection.cause


@pytest.mark.slow
async def test_a_half_open_connection_is_replaced(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, recorder: Recorder
) -> None:
    """A subscriber connection without traffic is noticed although nothing is published."""
    fake.mute.add(b"PING")
    began = trio.current_time()
    await until(lambda: recorder.ups != [True])
    lost_after = trio.current_time() - began
    fake.mute.clear()
    await trio.sleep(3)

    assert lost_after < 10
    assert recorder.ups == [True, False, True]


async def test_a_quiet_connection_is_kept(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, recorder: Recorder
) -> None:
    """A connection on which pings are answered stays."""
    await trio.sleep(1000)

    assert recorder.ups == [True]
    assert len(fake.connections) == 1


async def test_an_error_of_the_sink_is_a_crash(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis
) -> None:
    """No exception of the sink is mistaken for an outage."""

    def broken(_batch: Batch) -> None:
        raise BrokerUnavailable("the bus is closed")

    listener = Listener(parse_redis_url(URL), pinned=TO_ALL, sink=broken, dial=fake.dial)
    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="which raised"), flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.run)
            await listener.wait_up()
            await fake.push(b"to:a:b", b"x")
            await trio.sleep(1)


async def test_a_forgotten_iteration_is_unsubscribed(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis
) -> None:
    """After ``break`` the pattern is unsubscribed with the next message."""

    async def first() -> bytes:
        async for message in Subscription(listener, ("from:*",)):
            return message.payload
        raise AssertionError

    async with trio.open_nursery() as nursery:

        async def feed() -> None:
            await until(lambda: len(commands(fake.subscriber, b"PSUBSCRIBE")) == 2)
            await fake.push(b"from:a:b", b"1")

        nursery.start_soon(feed)

        assert await first() == b"1"
    gc.collect()
    await fake.push(b"from:a:b", b"2")
    await trio.testing.wait_all_tasks_blocked()

    assert listener.patterns == ("to:*",)
    assert commands(fake.subscriber, b"PUNSUBSCRIBE") == [b"from:*"]
