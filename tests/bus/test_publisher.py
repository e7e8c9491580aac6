"""The publisher connection over a fake."""

import random

import pytest
import trio

from tangram.bus.publisher import ANSWER_PAUSE, BRIDGE, MAX_HEADS, SEND_LIMIT, Publisher
from tangram.errors import BrokerRefused, BrokerUnavailable
from tangram.pieces import LARGE, Pieces
from tangram.redis_url import RedisAddress, parse_redis_url
from tests.bus.fakes import URL, Connection, FakeRedis
from tests.primary.fakes import FakeSentinels

Clock = trio.testing.MockClock


class Answers:
    """Callbacks that record the result of each message in order."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int | str]] = []

    def of(self, number: int):  # type: ignore[no-untyped-def]
        return lambda result: self.told.append((number, result if isinstance(result, int) else str(result)))


@pytest.fixture
def still_clock() -> Clock:
    """Return a clock that only the test moves."""
    return Clock()


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
async def publisher(fake: FakeRedis, nursery: trio.Nursery) -> Publisher:
    made = Publisher(parse_redis_url(URL), dial=fake.dial, rng=random.Random(1))
    nursery.start_soon(made.run)
    await trio.testing.wait_all_tasks_blocked()
    return made


async def test_messages_of_one_scheduler_pass_are_one_write(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis, answers: Answers
) -> None:
    """They arrive in order, and each answer reaches its own caller."""
    writes = fake.publisher.writes
    for number in range(500):
        publisher.publish_nowait(f"to:a:{number}", b"x", answers.of(number))
    await trio.testing.wait_all_tasks_blocked()

    assert fake.published == [(b"to:a:%d" % number, b"x") for number in range(500)]
    assert fake.publisher.writes == writes + 1
    assert answers.told == [(number, 0) for number in range(500)]
    assert (publisher.published, publisher.open_bytes) == (500, 0)


async def test_publish_returns_the_number_of_receivers(autojump_clock: Clock, publisher: Publisher) -> None:
    """The awaitable form returns Redis's answer."""
    assert await publisher.publish("to:a:b", "text") == 0


async def test_answers_to_batches_gather_at_a_high_rate(
    still_clock: Clock, publisher: Publisher, fake: FakeRedis
) -> None:
    """They wait for at most a pause, and a caller that waits for its own answer ends it."""
    done: list[int] = []

    async def publish_batch(number: int) -> None:
        publisher.publish_all_nowait([("to:a:b", b"%d" % number)], lambda _failures: done.append(number))
        await trio.testing.wait_all_tasks_blocked()

    for number in range(13):
        await publish_batch(number)
    still_clock.jump(0.016)
    await publish_batch(13)
    await publish_batch(14)
    assert done == list(range(14))
    still_clock.jump(ANSWER_PAUSE)
    await trio.testing.wait_all_tasks_blocked()
    assert done == list(range(15))
    await publish_batch(15)
    assert done == list(range(15))

    assert await publisher.publish("to:a:b", b"last") == 0
    assert done == list(range(16))


async def test_a_cancelled_caller_shifts_no_answer(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis, answers: Answers
) -> None:
    """The answer of a cancelled caller reaches no other caller."""
    fake.errors[b"PUBLISH second"] = "ERR second"
    fake.deaf = True
    with trio.move_on_after(0.1):
        await publisher.publish("first", b"")
    publisher.publish_nowait("second", b"", answers.of(2))
    publisher.publish_nowait("third", b"", answers.of(3))
    fake.deaf = False
    await trio.sleep(1)

    assert answers.told == [(2, "redis refuses the publish: ERR second"), (3, 0)]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("NOAUTH Authentication required.", BrokerRefused),
        ("NOPERM No permissions to access a channel", BrokerRefused),
        ("READONLY You can't write", BrokerUnavailable),
        ("OOM command", BrokerUnavailable),
        ("LOADING", BrokerUnavailable),
    ],
)
async def test_a_refused_message_reports_the_text_of_redis(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis, error: str, kind: type[BrokerUnavailable]
) -> None:
    """The caller gets Redis's text; the kind of the error says whether it is temporary.

    The connection and all other messages go on.
    """
    fake.errors[b"PUBLISH bad"] = error
    with pytest.raises(BrokerUnavailable, match=error.split(maxsplit=1)[0]) as told:
        await publisher.publish("bad", b"")
    assert type(told.value) is kind

    assert await publisher.publish("good", b"") == 0
    assert len(fake.connections) == 1


async def test_messages_wait_during_a_short_outage(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis, answers: Answers
) -> None:
    """Messages of an outage under two seconds are sent in order when Redis is back."""
    fake.refuse = True
    await fake.drop()
    await trio.testing.wait_all_tasks_blocked()
    for number in range(3):
        publisher.publish_nowait("to:a:b", b"%d" % number, answers.of(number))
        await trio.sleep(BRIDGE / 4)
    fake.refuse = False
    await trio.sleep(0.3)

    assert [payload for _, payload in fake.published] == [b"0", b"1", b"2"]
    assert answers.told == [(0, 0), (1, 0), (2, 0)]


async def test_messages_fail_during_a_long_outage(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis, answers: Answers
) -> None:
    """After two seconds waiting and new messages fail with the cause, and none is sent later."""
    fake.refuse = True
    await fake.drop()
    await trio.testing.wait_all_tasks_blocked()
    publisher.publish_nowait("to:a:b", b"old", answers.of(1))
    await trio.sleep(BRIDGE + 0.01)

    assert answers.told == [(1, "redis is away: connection refused")]

    began = trio.current_time()
    with pytest.raises(BrokerUnavailable, match="redis is away: connection refused"):
        await publisher.publish("to:a:b", b"new")

    assert trio.current_time() == began

    fake.refuse = False
    await trio.sleep(0.3)

    assert await publisher.publish("to:a:b", b"newest") == 0
    assert fake.published == [(b"to:a:b", b"newest")]
    assert publisher.open_bytes == 0


async def test_an_unanswered_message_is_not_sent_twice(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis, answers: Answers
) -> None:
    """A message without an answer fails when the connection breaks; later ones are sent once."""
    fake.mute.add(b"PUBLISH")
    publisher.publish_nowait("to:a:b", b"sent", answers.of(1))
    await trio.testing.wait_all_tasks_blocked()
    fake.mute.clear()
    fake.refuse = True
    await fake.drop()
    await trio.testing.wait_all_tasks_blocked()
    publisher.publish_nowait("to:a:b", b"waiting", answers.of(2))
    fake.refuse = False
    await trio.sleep(1)
    sent = [words[2] for connection in fake.connections for words in connection.commands if len(words) > 2]

    assert sent == [b"sent", b"waiting"]
    assert "not sent twice" in str(answers.told[0][1])
    assert answers.told[1:] == [(2, 0)]


async def test_a_server_that_closes_upon_a_command_loses_only_that(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis, answers: Answers
) -> None:
    """The written command fails, and the rest waits for the next connection."""

    def close_on_bad(connection: Connection, words: list[bytes]) -> None:
        if words[:2] == [b"PUBLISH", b"bad"]:
            fake.mute.add(b"PUBLISH")
            fake.nursery.start_soon(connection.close)

    fake.on_command = close_on_bad
    publisher.publish_nowait("bad", b"", answers.of(1))
    await trio.testing.wait_all_tasks_blocked()
    fake.mute.clear()
    publisher.publish_nowait("good", b"", answers.of(2))
    await trio.sleep(1)

    assert [number for number, _ in answers.told] == [1, 2]
    assert answers.told[1] == (2, 0)


async def test_a_message_without_room_fails(autojump_clock: Clock, fake: FakeRedis, answers: Answers) -> None:
    """The error gives the reason; a large message is accepted when no other waits."""
    publisher = Publisher(parse_redis_url(URL), dial=fake.dial, max_buffer=1000)
    publisher.publish_nowait("to:a:b", b"x" * 5000, answers.of(1))
    publisher.publish_nowait("to:a:b", b"x", answers.of(2))

    assert answers.told == [(2, f"{publisher.open_bytes} bytes wait for redis already, the limit is 1000")]
    assert publisher.failed == 1


async def test_sent_and_unanswered_bytes_count(
    autojump_clock: Clock, fake: FakeRedis, nursery: trio.Nursery, answers: Answers
) -> None:
    """A Redis that reads without answering cannot make the buffer exceed its bound."""
    publisher = Publisher(parse_redis_url(URL), dial=fake.dial, max_buffer=1000)
    nursery.start_soon(publisher.run)
    await trio.testing.wait_all_tasks_blocked()
    fake.mute.add(b"*")
    for number in range(100):
        publisher.publish_nowait("to:a:b", b"x" * 100, answers.of(number))
        await trio.testing.wait_all_tasks_blocked()

    assert publisher.open_bytes <= 1000
    assert len(answers.told) > 80


async def test_a_long_queue_goes_out_in_pieces(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis
) -> None:
    """One write has a bounded size, because a break may lose all of it."""
    writes = fake.publisher.writes
    for _ in range(40):
        publisher.publish_nowait("to:a:b", b"x" * (SEND_LIMIT // 10))
    await trio.testing.wait_all_tasks_blocked()

    assert len(fake.published) == 40
    assert fake.publisher.writes - writes == 4


async def test_a_large_message_goes_out_in_pieces_in_its_order(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis
) -> None:
    """No write is as long as the message; those before and after it keep their places."""
    large = Pieces([b"abc" * 100_000, b"de" * 100_000])
    told: list[dict[int, str]] = []
    writes = fake.publisher.writes
    publisher.publish_all_nowait([("from:a:first", b"1"), ("from:a:pieces", large)], failures_of(told))
    publisher.publish_all_nowait([("from:a:whole", bytes(large)), ("from:a:cut", large.cut(5, 9))])
    publisher.publish_all_nowait([("from:a:last", b"2")], failures_of(told))
    await trio.testing.wait_all_tasks_blocked()

    assert fake.published == [
        (b"from:a:first", b"1"),
        (b"from:a:pieces", bytes(large)),
        (b"from:a:whole", bytes(large)),
        (b"from:a:cut", bytes(large)[5:9]),
        (b"from:a:last", b"2"),
    ]
    assert fake.publisher.writes - writes >= 2 * len(large) / (SEND_LIMIT + LARGE)
    assert told == [{}, {}]
    assert (publisher.published, publisher.open_bytes) == (5, 0)


async def test_a_hanging_redis_raises_and_is_replaced(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis
) -> None:
    """Without an answer the call raises in time, and the connection is replaced."""
    fake.mute.add(b"*")
    began = trio.current_time()
    with pytest.raises(BrokerUnavailable):
        await publisher.publish("to:a:b", b"x")

    assert trio.current_time() - began <= 8
    fake.mute.clear()
    await trio.sleep(3)

    assert await publisher.publish("to:a:b", b"x") == 0
    assert len(fake.connections) > 1


async def test_a_dead_idle_connection_is_replaced(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis
) -> None:
    """It is replaced before the next message needs it."""
    await trio.sleep(100)

    assert len(fake.connections) == 1
    assert publisher.open_bytes == 0

    fake.mute.add(b"*")
    await trio.sleep(20)
    fake.mute.clear()
    await trio.sleep(3)

    assert await publisher.publish("to:a:b", b"x") == 0
    assert publisher.failed == 0


async def test_a_stop_sends_open_messages(autojump_clock: Clock, fake: FakeRedis, answers: Answers) -> None:
    """Messages from just before the stop are sent; afterwards every call raises at once."""
    publisher = Publisher(parse_redis_url(URL), dial=fake.dial)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publisher.run)
        await trio.testing.wait_all_tasks_blocked()
        publisher.publish_nowait("to:a:b", b"goodbye", answers.of(1))
        nursery.cancel_scope.cancel()

    assert answers.told == [(1, 0)]
    with pytest.raises(BrokerUnavailable, match="the bus is closed"):
        publisher.publish_nowait("to:a:b", b"late")
    with pytest.raises(BrokerUnavailable, match="the bus is closed"):
        await publisher.publish("to:a:b", b"late")


async def test_a_stop_has_a_deadline(autojump_clock: Clock, fake: FakeRedis, answers: Answers) -> None:
    """A Redis that does not answer cannot delay a stop; open messages fail."""
    publisher = Publisher(parse_redis_url(URL), dial=fake.dial)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publisher.run)
        await trio.testing.wait_all_tasks_blocked()
        fake.mute.add(b"*")
        publisher.publish_nowait("to:a:b", b"goodbye", answers.of(1))
        began = trio.current_time()
        nursery.cancel_scope.cancel()

    assert trio.current_time() - began <= 0.5
    assert [number for number, _ in answers.told] == [1]


async def test_an_error_of_a_callback_is_logged(
    autojump_clock: Clock, publisher: Publisher, answers: Answers
) -> None:
    """The other callers get their answers."""

    def broken(_result: object) -> None:
        raise ZeroDivisionError

    publisher.publish_nowait("to:a:b", b"", broken)
    publisher.publish_nowait("to:a:b", b"", answers.of(2))
    await trio.testing.wait_all_tasks_blocked()

    assert answers.told == [(2, 0)]


def failures_of(told: list[dict[int, str]]):  # type: ignore[no-untyped-def]
    return lambda failures: told.append({at: str(error) for at, error in failures.items()})


async def test_a_batch_is_answered_once(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis, answers: Answers
) -> None:
    """A batch arrives in order between its neighbours, and is answered with its last message."""
    told: list[dict[int, str]] = []
    payload = bytes(range(256))
    publisher.publish_nowait("first", b"", answers.of(1))
    publisher.publish_all_nowait(
        [("from:é:a", payload), ("from:b:b", b""), ("from:é:a", b"3")], failures_of(told)
    )
    publisher.publish_nowait("last", b"", answers.of(2))
    publisher.publish_all_nowait([])
    await trio.testing.wait_all_tasks_blocked()

    name = "from:é:a".encode()
    assert fake.published == [
        (b"first", b""),
        (name, payload),
        (b"from:b:b", b""),
        (name, b"3"),
        (b"last", b""),
    ]
    assert told == [{}]
    assert answers.told == [(1, 0), (2, 0)]
    assert (publisher.published, publisher.open_bytes) == (5, 0)


async def test_a_refused_message_of_a_batch_is_named_by_position(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis
) -> None:
    """The other messages of the batch succeed."""
    told: list[dict[int, str]] = []
    fake.errors[b"PUBLISH bad"] = "NOPERM no"
    publisher.publish_all_nowait([("good", b""), ("bad", b""), ("good", b"")], failures_of(told))
    await trio.testing.wait_all_tasks_blocked()

    assert told == [{1: "redis refuses the publish: NOPERM no"}]
    assert (publisher.published, publisher.failed) == (2, 1)


async def test_a_broken_connection_fails_the_unanswered_part_of_a_batch(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis
) -> None:
    """Answered messages count as published, and the rest as failed."""
    told: list[dict[int, str]] = []
    fake.mute.add(b"PUBLISH")
    publisher.publish_all_nowait([("a", b""), ("b", b""), ("c", b"")], failures_of(told))
    await trio.testing.wait_all_tasks_blocked()
    await fake.publisher.stream.send_all(b":1\r\n:0\r\n")
    await trio.testing.wait_all_tasks_blocked()
    assert told == []
    await fake.drop()
    await trio.testing.wait_all_tasks_blocked()

    assert list(told[0]) == [2]
    assert "may or may not have been delivered" in told[0][2]
    assert (publisher.published, publisher.failed, publisher.open_bytes) == (2, 1, 0)


async def test_a_batch_without_room_fails_as_a_whole(autojump_clock: Clock, fake: FakeRedis) -> None:
    """Waiting messages are not affected."""
    told: list[dict[int, str]] = []
    publisher = Publisher(parse_redis_url(URL), dial=fake.dial, max_buffer=1000)
    publisher.publish_all_nowait([("a", b"x" * 400)])
    publisher.publish_all_nowait([("a", b""), ("a", b"x" * 600)], failures_of(told))

    full = f"{publisher.open_bytes} bytes wait for redis already, the limit is 1000"
    assert told == [{0: full, 1: full}]
    assert publisher.failed == 2


async def test_waiting_for_room_ends_with_answers_or_a_long_outage(
    autojump_clock: Clock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """From half of the bound on the publisher is congested, until Redis answers.

    Clients do not wait for a Redis that stays away.
    """
    publisher = Publisher(parse_redis_url(URL), dial=fake.dial, max_buffer=1000)
    nursery.start_soon(publisher.run)
    await trio.testing.wait_all_tasks_blocked()
    publisher.publish_all_nowait([("a", b"x" * 300)])
    assert not publisher.congested
    publisher.publish_all_nowait([("a", b"x" * 300)])
    assert publisher.congested
    began = trio.current_time()
    await publisher.wait_uncongested()

    assert not publisher.congested
    assert trio.current_time() == began

    fake.refuse = True
    await fake.drop()
    await trio.testing.wait_all_tasks_blocked()
    began = trio.current_time()
    publisher.publish_all_nowait([("a", b"x" * 600)])
    await publisher.wait_uncongested()
    assert trio.current_time() - began == pytest.approx(BRIDGE, abs=0.2)


@pytest.fixture
async def small(fake: FakeRedis, nursery: trio.Nursery) -> Publisher:
    made = Publisher(parse_redis_url(URL), dial=fake.dial, max_buffer=1000)
    nursery.start_soon(made.run)
    await trio.testing.wait_all_tasks_blocked()
    return made


async def test_publish_waits_for_room_in_order(
    autojump_clock: Clock, small: Publisher, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """Callers that wait for the answer wait for room as well, each in its turn.

    A small message does not overtake a large one.
    """

    async def two(name: str, size: int) -> None:
        for number in (b"1", b"2"):
            assert await small.publish(name, number * size) == 0

    fake.deaf = True
    await small.publish("heard", b"")  # by a read that had begun
    small.publish_all_nowait([("large", b"x" * 9000)])
    for name, size in (("a", 900), ("b", 1), ("c", 1)):
        nursery.start_soon(two, name, size)
        await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(1)
    fake.deaf = False
    await trio.sleep(1)

    names = [name for name, _ in fake.published[1:]]
    assert names[:4] == [b"large", b"a", b"b", b"c"]
    assert [payload[:1] for name, payload in fake.published if name == b"a"] == [b"1", b"2"]
    assert len(names) == 7
    assert (small.failed, small.open_bytes) == (0, 0)


async def test_the_wait_for_room_has_a_deadline(
    autojump_clock: Clock, small: Publisher, fake: FakeRedis
) -> None:
    """It ends with the timeout of the answer, and at once in a long outage."""
    fake.mute.add(b"*")
    small.publish_all_nowait([("large", b"x" * 9000)])
    began = trio.current_time()
    with pytest.raises(BrokerUnavailable, match=r"no room within 1 s: 9\d+ bytes wait for redis already"):
        await small.publish("a", b"", timeout=1)
    assert trio.current_time() - began == pytest.approx(1)

    fake.mute.clear()
    fake.refuse = True
    await fake.drop()
    await trio.testing.wait_all_tasks_blocked()
    began = trio.current_time()
    small.publish_all_nowait([("large", b"x" * 9000)])
    with pytest.raises(BrokerUnavailable, match="redis is away"):
        await small.publish("a", b"")
    assert trio.current_time() - began == pytest.approx(BRIDGE, abs=0.2)


async def test_a_stop_ends_the_wait_for_room(
    autojump_clock: Clock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """A caller that waits when the bus is closed gets an error, and sends nothing."""
    publisher = Publisher(parse_redis_url(URL), dial=fake.dial, max_buffer=1000)
    heard: list[str] = []

    async def wait() -> None:
        with pytest.raises(BrokerUnavailable) as caught:
            await publisher.publish("a", b"")
        heard.append(str(caught.value))

    async with trio.open_nursery() as inner:
        inner.start_soon(publisher.run)
        await trio.testing.wait_all_tasks_blocked()
        fake.mute.add(b"*")
        publisher.publish_all_nowait([("large", b"x" * 9000)])
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        inner.cancel_scope.cancel()
    await trio.testing.wait_all_tasks_blocked()

    assert heard == ["the bus is closed"]


async def test_the_cache_of_channel_names_is_bounded(autojump_clock: Clock, fake: FakeRedis) -> None:
    """A client that invents events cannot fill the memory."""
    publisher = Publisher(parse_redis_url(URL), dial=fake.dial)
    publisher.publish_all_nowait([(f"from:a:{number}", b"") for number in range(3 * MAX_HEADS + 1)])

    assert 0 < len(publisher._heads) <= MAX_HEADS


@pytest.mark.parametrize("answer", ["MOVED 15197 h:1", "READONLY You can't write"])
async def test_a_primary_that_was_replaced_is_left(
    autojump_clock: Clock, fake: FakeRedis, nursery: trio.Nursery, answers: Answers, answer: str
) -> None:
    """The message fails, and the next ones go to the Redis that the sentinels name then."""
    sentinels = FakeSentinels(nursery)
    sentinels.views = {("a", 1): (("one", 6379), 1)}
    dialled: list[str] = []

    async def dial(address: RedisAddress) -> trio.abc.Stream:
        if address.endpoint in sentinels.views:
            return await sentinels.connect(address)
        dialled.append(address.host)
        return await fake.dial(address)

    made = Publisher(parse_redis_url("redis+sentinel://a:1/?master=m"), dial=dial, rng=random.Random(1))
    nursery.start_soon(made.run)
    fake.errors = {b"PUBLISH": answer}
    with pytest.raises(BrokerUnavailable, match=answer):
        await made.publish("to:a:b", "1")
    fake.errors = {}
    sentinels.views = {("a", 1): (("two", 6379), 2)}

    await trio.sleep(2)
    assert await made.publish("to:a:b", "2") == 0
    assert (dialled[0], dialled[-1]) == ("one", "two")


async def test_a_replica_is_not_used_as_the_primary(
    autojump_clock: Clock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """A sentinel may name a primary that has just become a replica."""
    sentinels = FakeSentinels(nursery)
    sentinels.views = {("a", 1): (("one", 6379), 1)}
    role = [b"slave"]

    async def dial(address: RedisAddress) -> trio.abc.Stream:
        known = address.endpoint in sentinels.views
        return await sentinels.connect(address) if known else await fake.dial(address)

    fake.role = role
    made = Publisher(parse_redis_url("redis+sentinel://a:1/?master=m"), dial=dial, rng=random.Random(1))
    nursery.start_soon(made.run)
    await trio.sleep(3)
    assert not made.up
    assert "'slave'" in made.connection.cause

    role[0] = b"master"
    await trio.sleep(3)
    assert made.up
