"""Calls that are written, and answers that are read, in the pass of the caller."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tangram.bus.publisher import PATIENCE, Publisher
from tangram.bus.scripts import FunctionCall
from tangram.redis_url import parse_redis_url
from tangram.testing.fakes.memory_stream import KEPT, PipeEnd
from tests.bus.fakes import URL, FakeRedis

Answers = list[tuple[int, int | str]]


@pytest.fixture
async def publisher(fake: FakeRedis, nursery: trio.Nursery) -> Publisher:
    """A publisher on a connection that can be read and written without waiting."""
    fake.pipes = True
    made = Publisher(parse_redis_url(URL), dial=fake.dial, rng=random.Random(1))
    nursery.start_soon(made.run)
    await wait_all_tasks_blocked()
    return made


@pytest.fixture
def answers() -> Answers:
    """The answers, each with the number of its call."""
    return []


def call(publisher: Publisher, answers: Answers, number: int, size: int = 0) -> None:
    """Publish a number by a call in this pass."""
    words = ("PUBLISH", "to:a:n", f"{number}".rjust(size))
    function = FunctionCall("f", (), (), words)
    publisher.call_now(
        function, lambda answer: answers.append((number, answer if answer == 0 else str(answer)))
    )


async def make_patient(publisher: Publisher, answers: Answers) -> None:
    """Let the reader leave the next answers to ``read_now``."""
    call(publisher, answers, 0)
    await wait_all_tasks_blocked()
    assert answers == [(0, 0)]
    answers.clear()


def numbers(fake: FakeRedis) -> list[int]:
    return [int(payload) for _, payload in fake.published]


async def test_a_call_is_written_in_the_pass_of_its_caller(
    autojump_clock: MockClock, publisher: Publisher, fake: FakeRedis, answers: Answers
) -> None:
    """The bytes are in the socket before any other task has run."""
    stream = fake.publisher.stream
    assert isinstance(stream, PipeEnd)
    call(publisher, answers, 1)
    written = stream.receive_nowait()

    assert written is not None
    assert b"PUBLISH" in written
    assert answers == []


async def test_an_answer_waits_for_a_look_after_the_first_one(
    autojump_clock: MockClock, publisher: Publisher, answers: Answers
) -> None:
    """The reader stays asleep, and the look takes the answers that are there."""
    await make_patient(publisher, answers)
    for number in (1, 2):
        call(publisher, answers, number)
    await wait_all_tasks_blocked()
    before = answers[:]
    publisher.read_now()

    assert before == []
    assert answers == [(1, 0), (2, 0)]
    assert publisher.open_bytes == 0


async def test_an_answer_without_a_look_is_read_after_the_patience(
    autojump_clock: MockClock, publisher: Publisher, answers: Answers
) -> None:
    """So the end of the looks loses no answer."""
    await make_patient(publisher, answers)
    call(publisher, answers, 1)
    began = trio.current_time()
    with trio.fail_after(10):
        while not answers:  # noqa: ASYNC110 - the callback has no event
            await trio.sleep(0.01)

    assert trio.current_time() - began <= PATIENCE + 0.02


async def test_a_caller_that_waits_ends_the_patience(
    autojump_clock: MockClock, publisher: Publisher, fake: FakeRedis, answers: Answers
) -> None:
    """Its answer comes at once, behind those of the calls before it."""
    await make_patient(publisher, answers)
    call(publisher, answers, 1)
    began = trio.current_time()
    await publisher.publish("to:a:n", b"2")

    assert trio.current_time() == began
    assert answers == [(1, 0)]
    assert numbers(fake) == [0, 1, 2]


async def test_a_call_does_not_overtake_older_ones(
    autojump_clock: MockClock, publisher: Publisher, fake: FakeRedis, answers: Answers
) -> None:
    """It waits behind messages that the writer has not written, and behind the rest of a large call."""
    publisher.publish_nowait("to:a:n", b"1")
    call(publisher, answers, 2, size=2 * KEPT)
    await wait_all_tasks_blocked()
    call(publisher, answers, 3, size=3 * KEPT)
    call(publisher, answers, 4)
    publisher.publish_nowait("to:a:n", b"5")
    await publisher.publish("to:a:n", b"6")

    assert numbers(fake) == [1, 2, 3, 4, 5, 6]
    assert answers == [(2, 0), (3, 0), (4, 0)]
    assert publisher.open_bytes == 0


async def test_a_lost_connection_is_noticed_by_a_look(
    autojump_clock: MockClock, publisher: Publisher, fake: FakeRedis, answers: Answers
) -> None:
    """The look raises nothing, the call fails, and the next one goes over a new connection."""
    await make_patient(publisher, answers)
    fake.mute.add(b"PUBLISH")
    call(publisher, answers, 1)
    await wait_all_tasks_blocked()
    await fake.publisher.close()
    publisher.read_now()
    call(publisher, answers, 2)
    fake.mute.clear()
    with trio.fail_after(10):
        while len(answers) < 2:  # noqa: ASYNC110 - the callback has no event
            await trio.sleep(0.01)

    assert "may or may not have been delivered" in str(answers[0][1])
    assert answers[1] == (2, 0)
    assert len(fake.dials) == 2


async def test_a_stop_does_not_wait_for_a_look(
    autojump_clock: MockClock, fake: FakeRedis, answers: Answers
) -> None:
    """The answers that are there are read at once."""
    fake.pipes = True
    publisher = Publisher(parse_redis_url(URL), dial=fake.dial)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publisher.run)
        await wait_all_tasks_blocked()
        await make_patient(publisher, answers)
        call(publisher, answers, 1)
        await wait_all_tasks_blocked()
        began = trio.current_time()
        nursery.cancel_scope.cancel()

    assert answers == [(1, 0)]
    assert trio.current_time() == began


async def test_a_connection_that_cannot_be_looked_at_is_read_by_the_reader(
    autojump_clock: MockClock, fake: FakeRedis, nursery: trio.Nursery, answers: Answers
) -> None:
    """With TLS every answer comes at once."""
    publisher = Publisher(parse_redis_url(URL), dial=fake.dial)
    nursery.start_soon(publisher.run)
    await wait_all_tasks_blocked()
    for number in range(3):
        call(publisher, answers, number)
        await wait_all_tasks_blocked()
        publisher.read_now()

        assert len(answers) == number + 1
    assert numbers(fake) == [0, 1, 2]
