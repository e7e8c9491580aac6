import gc
import random
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tangram.bus.listener import GATHER_MAX, Listener
from tangram.bus.resp import Link
from tangram.bus.subscriptions import Message, Subscription
from tangram.bus.topics import TO_ALL
from tangram.errors import BrokerRefused, BrokerUnavailable
from tangram.redis_url import parse_redis_url
from tests.bus.fakes import URL, Connection, FakeRedis, bulk, pmessage, until

Batch = Sequence[tuple[bytes, bytes]]


class Ears:
    """A sink and an on_up that remember, in order."""

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


def listener_of(fake: FakeRedis, ears: Ears, timer: Callable[[], float] = lambda: 0.0) -> Listener:
    return Listener(
        parse_redis_url(URL),
        pinned=TO_ALL,
        sink=ears.sink,
        on_up=ears.on_up,
        dial=fake.dial,
        rng=random.Random(1),
        timer=timer,
    )


@pytest.fixture
def ears() -> Ears:
    return Ears()


@pytest.fixture
async def listener(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, ears: Ears, nursery: trio.Nursery
) -> Listener:
    made = listener_of(fake, ears)
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
    """Wherever the network cuts the stream, the messages are the same, in order, with one call of the sink
    for a chunk."""
    ears = Ears()
    listener = Listener(parse_redis_url(URL), pinned=TO_ALL, sink=ears.sink)
    data = b"".join(pmessage(TO_ALL, channel, payload) for channel, payload in messages)
    ours, _ = trio.testing.memory_stream_pair()
    link = Link(ours)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for begin, end in pairwise(places):
        link.reader.feed(data[begin:end])
        calls = len(ears.batches)
        listener._drain(link)

        assert len(ears.batches) <= calls + 1
    assert ears.messages == messages
    assert listener.received == len(messages)


async def test_a_chunk_is_one_batch(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, ears: Ears
) -> None:
    """What arrives together is delivered together."""
    data = b"".join(pmessage(TO_ALL, b"to:a:%d" % n, b"x") for n in range(100))
    await fake.subscriber.stream.send_all(data)
    await trio.testing.wait_all_tasks_blocked()

    assert [len(batch) for batch in ears.batches] == [100]
    assert ears.messages[7] == (b"to:a:7", b"x")


async def test_messages_gather_after_a_costly_delivery(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, ears: Ears, nursery: trio.Nursery
) -> None:
    """The first message goes out at once; what comes within ten times its cost, 4 ms at most, goes out
    together; then the first goes out at once again."""
    at: list[float] = []
    cost = iter([0.0, 0.0, 0.0, 0.0003, 0.0, 0.1])  # the confirmation, the first batch, the second
    listener = listener_of(fake, ears, lambda: next(cost, 0.0))

    def sink(batch: Batch) -> None:
        ears.sink(batch)
        at.append(trio.current_time())

    listener._sink = sink
    nursery.start_soon(listener.run)
    await listener.wait_up()
    await trio.sleep(1 - trio.current_time())
    for _ in range(7):
        await fake.push(b"to:a:b", b"x")
        await trio.sleep(0.001)
    await trio.sleep(0.01)

    assert [len(batch) for batch in ears.batches] == [1, 3, 3]
    assert at == pytest.approx([1.0, 1.003, 1.007])


async def test_a_full_read_is_followed_by_the_next_at_once(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, ears: Ears, nursery: trio.Nursery
) -> None:
    """Where enough has gathered nothing waits, whatever a delivery costs."""
    cost = iter(range(10_000))
    listener = listener_of(fake, ears, lambda: next(cost))
    nursery.start_soon(listener.run)
    await listener.wait_up()
    await trio.sleep(1)
    message = pmessage(TO_ALL, b"to:a:b", b"x" * 1000)
    begun = trio.current_time()
    await fake.subscriber.stream.send_all(message * 200)
    await until(lambda: listener.received == 200)

    assert trio.current_time() - begun < GATHER_MAX


async def test_everything_is_subscribed_again_before_it_is_up(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, ears: Ears
) -> None:
    """After an outage `on_up(True)` comes only when each pattern is confirmed on the new connection."""
    confirmed: list[tuple[int, bytes]] = []
    async with Subscription(listener, ("from:a:*",)), Subscription(listener, ("from:b:*", "from:a:*")):
        fake.mute.add(b"PSUBSCRIBE")
        await fake.drop()
        await trio.sleep(0.5)

        assert ears.ups == [True, False]
        assert commands(fake.connections[-1], b"PSUBSCRIBE") == [b"to:*", b"from:a:*", b"from:b:*"]

        for number, pattern in enumerate((b"to:*", b"from:a:*", b"from:b:*"), 1):
            confirmed.append((len(ears.ups), pattern))
            await fake.connections[-1].stream.send_all(
                b"*3\r\n$10\r\npsubscribe\r\n$%d\r\n%b\r\n:%d\r\n" % (len(pattern), pattern, number)
            )
            await trio.testing.wait_all_tasks_blocked()

        assert [ups for ups, _ in confirmed] == [2, 2, 2]
        assert ears.ups == [True, False, True]
        assert listener.keeper.reconnects == 1


async def test_a_server_that_never_confirms_is_left(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, ears: Ears, nursery: trio.Nursery
) -> None:
    """A confirmation has a deadline, also on a connection that answers pings."""
    fake.mute.add(b"PSUBSCRIBE")
    listener = listener_of(fake, ears)
    nursery.start_soon(listener.run)
    await trio.sleep(60)

    assert len(fake.connections) > 10
    assert ears.ups == []
    assert "did not confirm" in listener.cause


async def test_a_message_that_fits_two_patterns_comes_by_each(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, ears: Ears
) -> None:
    """The sink gets it by to:*, a plugin by its own pattern, each once."""
    async with Subscription(listener, ("to:a:*",)) as subscription:
        await fake.push(b"to:a:b", b"x")
        message = await anext(subscription)
        await trio.testing.wait_all_tasks_blocked()

        assert message == Message("to:a:b", b"x", "to:a:*")
        assert ears.messages == [(b"to:a:b", b"x")]
        assert not subscription._queue


async def test_a_plugin_may_subscribe_to_the_pinned_pattern(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, ears: Ears
) -> None:
    """`to:*` is subscribed once, is confirmed at once for whoever else wants it, and stays when they go."""
    async with Subscription(listener, ("to:*",)) as subscription:
        await fake.push(b"to:a:b", b"x")

        assert (await anext(subscription)).payload == b"x"
    await trio.testing.wait_all_tasks_blocked()

    assert commands(fake.subscriber, b"PSUBSCRIBE") == [b"to:*"]
    assert commands(fake.subscriber, b"PUNSUBSCRIBE") == []
    assert ears.messages == [(b"to:a:b", b"x")]


async def test_patterns_are_counted(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis
) -> None:
    """A pattern is subscribed for the first who wants it, and unsubscribed for the last who goes."""
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
    """Subscribed, given up and subscribed anew: only the second confirmation counts for the second."""
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


async def test_a_refused_pattern_costs_its_subscriber_alone(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, ears: Ears
) -> None:
    """An account that may not read a pattern hears so; everything else goes on, over reconnects too."""
    fake.errors[b"PSUBSCRIBE secret:*"] = "NOPERM no permissions to access a channel"
    with pytest.raises(BrokerUnavailable, match="refuses the subscription to 'secret:\\*': NOPERM"):
        async with Subscription(listener, ("secret:*",)):
            pass
    stubborn = Subscription(listener, ("secret:*",))
    listener.add(stubborn)
    await fake.drop()
    await trio.sleep(1)

    assert ears.ups == [True, False, True]


async def test_who_iterates_over_a_refused_pattern_is_told(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, ears: Ears
) -> None:
    """Also without `async with`, beside a pattern that is allowed and busy, and where the account may not any
    more after a reconnect; another iteration over the allowed pattern goes on.
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


async def test_a_refusal_that_passes_is_none(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, ears: Ears
) -> None:
    """A Redis that runs a long script takes no subscription: it is asked again on another connection."""
    fake.errors[b"PSUBSCRIBE from:*"] = "BUSY Redis is busy running a script"
    subscription = Subscription(listener, ("from:*",))
    subscription.begin()
    await trio.sleep(1)
    fake.errors.clear()
    await trio.sleep(1)
    await fake.push(b"from:a:b", b"x")

    with trio.fail_after(60):
        assert (await anext(subscription)).payload == b"x"


async def test_garbage_ends_the_connection_and_costs_nothing_before_it(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, ears: Ears
) -> None:
    """What was good in the same chunk is delivered, then the connection is made anew."""
    await fake.subscriber.stream.send_all(pmessage(TO_ALL, b"to:a:b", b"good") + b"\x00garbage\r\n")
    await trio.sleep(0.2)

    assert ears.story == [True, [(b"to:a:b", b"good")], False, True]


async def test_an_answer_out_of_turn_ends_the_connection(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, ears: Ears
) -> None:
    """A reply that nobody asked for means that we and Redis disagree about what was said."""
    await fake.subscriber.stream.send_all(bulk(b"pong", b""))
    await trio.sleep(0.2)

    assert ears.ups == [True, False, True]
    assert "out of turn" in listener.keeper.cause


@pytest.mark.slow
async def test_a_half_open_connection_is_replaced(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, ears: Ears
) -> None:
    """A subscriber connection on which nothing moves any more is noticed without anybody publishing."""
    fake.mute.add(b"PING")
    began = trio.current_time()
    await until(lambda: ears.ups != [True])
    lost_after = trio.current_time() - began
    fake.mute.clear()
    await trio.sleep(3)

    assert lost_after < 10
    assert ears.ups == [True, False, True]


async def test_a_quiet_connection_is_kept(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis, ears: Ears
) -> None:
    """Pings that are answered keep a connection up for ever."""
    await trio.sleep(1000)

    assert ears.ups == [True]
    assert len(fake.connections) == 1


async def test_what_the_sink_raises_is_a_crash(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis
) -> None:
    """A bug behind the sink is not taken for an outage, whatever it raises."""

    def broken(_batch: Batch) -> None:
        raise BrokerUnavailable("the bus is closed")

    listener = Listener(parse_redis_url(URL), pinned=TO_ALL, sink=broken, dial=fake.dial)
    with pytest.RaisesGroup(
        pytest.RaisesExc(RuntimeError, match="delivers to raised"), flatten_subgroups=True
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.run)
            await listener.wait_up()
            await fake.push(b"to:a:b", b"x")
            await trio.sleep(1)


async def test_a_forgotten_iteration_is_unsubscribed(
    autojump_clock: trio.testing.MockClock, listener: Listener, fake: FakeRedis
) -> None:
    """A loop that was left by break holds nothing: its pattern goes with the next message."""

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
