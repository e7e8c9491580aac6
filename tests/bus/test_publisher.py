import random

import pytest
import trio

from tangram.bus.publisher import BRIDGE, MAX_HEADS, SEND_LIMIT, Publisher
from tangram.errors import BrokerRefused, BrokerUnavailable
from tangram.redis_url import parse_redis_url
from tests.bus.fakes import URL, Connection, FakeRedis

Clock = trio.testing.MockClock


class Answers:
    """Callbacks that remember what each message was told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int | str]] = []

    def of(self, number: int):  # type: ignore[no-untyped-def]
        return lambda result: self.told.append((number, result if isinstance(result, int) else str(result)))


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
async def publisher(fake: FakeRedis, nursery: trio.Nursery) -> Publisher:
    made = Publisher(parse_redis_url(URL), dial=fake.dial, rng=random.Random(1))
    nursery.start_soon(made.run)
    await trio.testing.wait_all_tasks_blocked()
    return made


async def test_order_is_kept_and_a_pass_is_one_write(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis, answers: Answers
) -> None:
    """Messages of one pass of the scheduler arrive in order in one write, and each answer reaches its own
    caller."""
    writes = fake.publisher.writes
    for number in range(500):
        publisher.publish_nowait(f"to:a:{number}", b"x", answers.of(number))
    await trio.testing.wait_all_tasks_blocked()

    assert fake.published == [(b"to:a:%d" % number, b"x") for number in range(500)]
    assert fake.publisher.writes == writes + 1
    assert answers.told == [(number, 0) for number in range(500)]
    assert (publisher.published, publisher.open_bytes) == (500, 0)


async def test_publish_gives_the_number_of_receivers(autojump_clock: Clock, publisher: Publisher) -> None:
    """The awaitable form returns Redis's answer."""
    assert await publisher.publish("to:a:b", "text") == 0


async def test_answers_are_not_off_by_one_after_a_cancel(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis, answers: Answers
) -> None:
    """A caller that was cancelled leaves its answer to nobody else."""
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
async def test_a_refusal_is_told_with_its_text(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis, error: str, kind: type[BrokerUnavailable]
) -> None:
    """What Redis says against one message reaches its caller, and costs nobody else the connection; whether
    it will pass is told by the kind of error.
    """
    fake.errors[b"PUBLISH bad"] = error
    with pytest.raises(BrokerUnavailable, match=error.split(maxsplit=1)[0]) as told:
        await publisher.publish("bad", b"")
    assert type(told.value) is kind

    assert await publisher.publish("good", b"") == 0
    assert len(fake.connections) == 1


async def test_a_short_outage_is_bridged(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis, answers: Answers
) -> None:
    """What is handed over while Redis is away for less than two seconds goes out in order when it is back."""
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


async def test_a_long_outage_is_told(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis, answers: Answers
) -> None:
    """After two seconds whoever waits hears why, new messages are refused at once, and nothing old comes
    out later."""
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


async def test_nothing_is_sent_twice(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis, answers: Answers
) -> None:
    """What was sent but not answered when the connection broke is told so; what came after it goes out
    once."""
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


async def test_a_connection_that_dies_on_the_first_message_loses_that_alone(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis, answers: Answers
) -> None:
    """A server that closes upon a command costs what it was sent, and the rest is bridged."""

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


async def test_the_buffer_is_bounded(autojump_clock: Clock, fake: FakeRedis, answers: Answers) -> None:
    """Messages that find no room are refused with the reason; a large one is taken when none waits."""
    publisher = Publisher(parse_redis_url(URL), dial=fake.dial, max_buffer=1000)
    publisher.publish_nowait("to:a:b", b"x" * 5000, answers.of(1))
    publisher.publish_nowait("to:a:b", b"x", answers.of(2))

    assert answers.told == [(2, f"{publisher.open_bytes} bytes wait for redis already, at most 1000 may")]
    assert publisher.failed == 1


async def test_sent_and_unanswered_bytes_count(
    autojump_clock: Clock, fake: FakeRedis, nursery: trio.Nursery, answers: Answers
) -> None:
    """A Redis that reads without answering cannot make us hold more than the bound."""
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
    """One write takes a bounded share of what waits, so that a break costs no more than that."""
    writes = fake.publisher.writes
    for _ in range(40):
        publisher.publish_nowait("to:a:b", b"x" * (SEND_LIMIT // 10))
    await trio.testing.wait_all_tasks_blocked()

    assert len(fake.published) == 40
    assert fake.publisher.writes - writes == 4


async def test_a_hanging_redis_is_noticed_and_told(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis
) -> None:
    """No answer within the limit is an exception, and the connection is replaced."""
    fake.mute.add(b"*")
    began = trio.current_time()
    with pytest.raises(BrokerUnavailable):
        await publisher.publish("to:a:b", b"x")

    assert trio.current_time() - began <= 8
    fake.mute.clear()
    await trio.sleep(3)

    assert await publisher.publish("to:a:b", b"x") == 0
    assert len(fake.connections) > 1


async def test_an_idle_connection_is_watched(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis
) -> None:
    """A connection that died while nobody published is replaced before the next message needs it."""
    await trio.sleep(100)

    assert len(fake.connections) == 1
    assert publisher.open_bytes == 0

    fake.mute.add(b"*")
    await trio.sleep(20)
    fake.mute.clear()
    await trio.sleep(3)

    assert await publisher.publish("to:a:b", b"x") == 0
    assert publisher.failed == 0


async def test_a_stop_flushes(autojump_clock: Clock, fake: FakeRedis, answers: Answers) -> None:
    """What was handed over just before the stop still goes out; after it every call raises at once."""
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
    """A Redis that does not answer cannot hold up a stop; what was open is told."""
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


async def test_a_callback_that_raises_costs_itself_alone(
    autojump_clock: Clock, publisher: Publisher, answers: Answers
) -> None:
    """One caller's bug is logged, and the others get their answers."""

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
    """Messages that were handed over together arrive in order between their neighbours, byte by byte as they
    were given, and are answered together when the last one is."""
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


async def test_what_redis_refuses_of_a_batch_is_told_by_its_place(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis
) -> None:
    """One message that is refused costs the others of its batch nothing."""
    told: list[dict[int, str]] = []
    fake.errors[b"PUBLISH bad"] = "NOPERM no"
    publisher.publish_all_nowait([("good", b""), ("bad", b""), ("good", b"")], failures_of(told))
    await trio.testing.wait_all_tasks_blocked()

    assert told == [{1: "redis refuses the publish: NOPERM no"}]
    assert (publisher.published, publisher.failed) == (2, 1)


async def test_a_batch_that_a_break_cuts_is_told_which_part_is_sure(
    autojump_clock: Clock, publisher: Publisher, fake: FakeRedis
) -> None:
    """What was answered before the connection broke is taken, and the rest is reported."""
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


async def test_a_batch_is_taken_as_a_whole_or_not(autojump_clock: Clock, fake: FakeRedis) -> None:
    """One that finds no room is refused at once, all of it, and leaves what waits alone."""
    told: list[dict[int, str]] = []
    publisher = Publisher(parse_redis_url(URL), dial=fake.dial, max_buffer=1000)
    publisher.publish_all_nowait([("a", b"x" * 400)])
    publisher.publish_all_nowait([("a", b""), ("a", b"x" * 600)], failures_of(told))

    full = f"{publisher.open_bytes} bytes wait for redis already, at most 1000 may"
    assert told == [{0: full, 1: full}]
    assert publisher.failed == 2


async def test_whoever_can_wait_for_room_does(
    autojump_clock: Clock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """From half of the bound on the publisher is congested, until Redis answers or an outage is too long.

    A client does not wait for a Redis that stays away."""
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


async def test_who_awaits_the_answer_waits_for_room(
    autojump_clock: Clock, small: Publisher, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """A message that fills the buffer, and more, refuses nobody who waits anyway: they go out behind it, each
    in its turn, and a small one does not overtake a large one."""

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


async def test_the_wait_for_room_ends(autojump_clock: Clock, small: Publisher, fake: FakeRedis) -> None:
    """Within the time that the answer has; and at once when an outage is longer than what is bridged."""
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
    """Who waits for room when the bus is closed hears so, and sends nothing more."""
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


async def test_channels_are_remembered_within_bounds(autojump_clock: Clock, fake: FakeRedis) -> None:
    """A client that makes up events does not fill the memory."""
    publisher = Publisher(parse_redis_url(URL), dial=fake.dial)
    publisher.publish_all_nowait([(f"from:a:{number}", b"") for number in range(3 * MAX_HEADS + 1)])

    assert 0 < len(publisher._heads) <= MAX_HEADS
