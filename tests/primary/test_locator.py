"""Ask sentinels for the primary, over connections in memory."""

from __future__ import annotations

import pytest
import trio

from tangram.errors import BrokerUnavailable
from tangram.primary.locator import FOLLOW_EVERY, Locator, shared_locator
from tangram.redis_url import parse_redis_url
from tests.primary.fakes import FakeSentinels

Clock = trio.testing.MockClock

A, B, C = ("a", 1), ("b", 2), ("c", 3)
ONE, TWO = ("one", 6379), ("two", 6379)
URL = "redis+sentinel://user:secret@a:1,b:2/3?master=m&sentinel_username=watch&sentinel_password=word"


@pytest.fixture
def sentinels(nursery: trio.Nursery) -> FakeSentinels:
    return FakeSentinels(nursery)


async def test_the_account_of_redis_and_that_of_the_sentinels_differ(
    autojump_clock: Clock, sentinels: FakeSentinels
) -> None:
    """The primary's address has database and account of the URL."""
    sentinels.views = {A: (ONE, 1)}
    place = await Locator(parse_redis_url(URL)).locate(sentinels.connect)

    assert (place.endpoint, place.kind, place.db) == (ONE, "single", 3)
    assert (place.username, place.password) == ("user", "secret")
    assert sentinels.logins == [[b"AUTH", b"watch", b"word"]]


async def test_one_sentinel_of_two_is_enough(autojump_clock: Clock, sentinels: FakeSentinels) -> None:
    """A sentinel that is away or hangs costs at most a tenth of a second."""
    for other in ({}, {A: None}, {A: "ERR No such master with that name"}):
        sentinels.views = {**other, B: (ONE, 1)}
        began = trio.current_time()
        assert (await Locator(parse_redis_url(URL)).locate(sentinels.connect)).endpoint == ONE
        assert trio.current_time() - began <= 0.11


async def test_a_sentinel_that_missed_the_failover_is_outvoted(
    autojump_clock: Clock, sentinels: FakeSentinels
) -> None:
    """The sentinel that answers first is not always right."""
    sentinels.views = {A: (ONE, 1), B: (TWO, 2)}

    assert (await Locator(parse_redis_url(URL)).locate(sentinels.connect)).endpoint == TWO


async def test_sentinels_that_others_name_are_asked_when_the_listed_ones_are_away(
    autojump_clock: Clock, sentinels: FakeSentinels
) -> None:
    """A locator that is kept needs the listed ones only once."""
    locator = Locator(parse_redis_url(URL))
    sentinels.views = {A: (ONE, 1), C: (ONE, 1)}
    sentinels.others = {A: [B, C]}
    await locator.locate(sentinels.connect)

    del sentinels.views[A]
    assert (await locator.locate(sentinels.connect)).endpoint == ONE


async def test_without_an_answer_the_fault_of_each_sentinel_is_named(
    autojump_clock: Clock, sentinels: FakeSentinels
) -> None:
    """The message has every address, and no password."""
    sentinels.views = {A: None}
    with pytest.raises(BrokerUnavailable) as caught:
        await Locator(parse_redis_url(URL)).locate(sentinels.connect)

    assert str(caught.value) == (
        "no sentinel knows the primary: a:1: no answer within 1 s; b:2: connection refused"
    )


async def test_a_move_is_noticed_and_old_answers_are_not(
    autojump_clock: Clock, sentinels: FakeSentinels
) -> None:
    """A lower epoch, silence and the same primary change nothing."""
    locator = Locator(parse_redis_url(URL))
    sentinels.views = {A: (ONE, 5)}
    here = await locator.locate(sentinels.connect)
    moved = trio.Event()

    async def follow() -> None:
        assert await locator.wait_moved(here, sentinels.connect) == TWO
        moved.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        for view in ((TWO, 4), None, (ONE, 6)):
            sentinels.views = {A: view}
            await trio.sleep(3 * FOLLOW_EVERY)
            assert not moved.is_set()
        sentinels.views = {A: (TWO, 7)}
        with trio.fail_after(2 * FOLLOW_EVERY):
            await moved.wait()


async def test_an_address_that_does_not_move_is_not_asked_for(
    autojump_clock: Clock, sentinels: FakeSentinels
) -> None:
    """A plain URL costs nothing."""
    address = parse_redis_url("redis://a:1")

    assert await Locator(address).locate(sentinels.connect) == address
    assert sentinels.asked == []


async def test_tasks_that_ask_together_share_one_question(
    autojump_clock: Clock, sentinels: FakeSentinels
) -> None:
    """All get its answer, or its fault; each sentinel is asked once."""
    locator = Locator(parse_redis_url(URL))
    found: list[object] = []

    async def ask() -> None:
        try:
            found.append((await locator.locate(sentinels.connect)).endpoint)
        except BrokerUnavailable as error:
            found.append(str(error))

    for known in ([A, B], []):
        sentinels.views = dict.fromkeys(known, (ONE, 1))
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(ask)

    fault = "no sentinel knows the primary: a:1: connection refused; b:2: connection refused"
    assert found == [ONE] * 8 + [fault] * 8
    assert sorted(sentinels.asked) == [A, A, B, B]


async def test_a_task_that_gives_up_leaves_the_question_to_the_next_one(
    autojump_clock: Clock, sentinels: FakeSentinels
) -> None:
    """The end of the task that has asked is no fault of the others."""
    locator = Locator(parse_redis_url(URL))
    sentinels.views = {A: None, B: None}
    found: list[object] = []

    async def ask() -> None:
        found.append((await locator.locate(sentinels.connect)).endpoint)

    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.5):
            async with trio.open_nursery() as first:
                first.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(ask)
                nursery.start_soon(ask)
                await trio.testing.wait_all_tasks_blocked()
        sentinels.views = {A: (ONE, 1)}

    assert found == [ONE, ONE]
    assert len(sentinels.asked) == 4


async def test_all_connections_look_for_a_move_at_the_same_moments(
    autojump_clock: Clock, sentinels: FakeSentinels
) -> None:
    """Connections of different ages cost one question every five seconds, and all follow the move."""
    sentinels.views = {A: (ONE, 5)}
    address = parse_redis_url(URL)
    locator = shared_locator(address, sentinels.connect)
    here = await locator.locate(sentinels.connect)
    moved: list[object] = []

    async def follow() -> None:
        shared = shared_locator(address, sentinels.connect)
        moved.append(await shared.wait_moved(here, sentinels.connect))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(follow)
            await trio.sleep(1.1)
        await trio.sleep(FOLLOW_EVERY)
        sentinels.asked.clear()
        await trio.sleep(4 * FOLLOW_EVERY)
        assert sentinels.asked.count(A) == 4
        sentinels.views = {A: (TWO, 4), B: (TWO, 6)}

    assert moved == [TWO] * 4


async def test_a_connection_does_not_follow_an_answer_that_another_one_has_believed(
    autojump_clock: Clock, sentinels: FakeSentinels
) -> None:
    """A dial uses the only answer that it gets; the connections that stand know a newer one."""
    locator = Locator(parse_redis_url(URL))
    sentinels.views = {A: (ONE, 5)}
    here = await locator.locate(sentinels.connect)
    with trio.move_on_after(3 * FOLLOW_EVERY) as limit:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(locator.wait_moved, here, sentinels.connect)
            await trio.testing.wait_all_tasks_blocked()
            sentinels.views = {A: (TWO, 4)}
            assert (await locator.locate(sentinels.connect)).endpoint == TWO

    assert limit.cancelled_caught


async def test_an_address_that_does_not_move_shares_nothing(sentinels: FakeSentinels) -> None:
    """The embedded broker has another port after each start, so that nothing is kept for it."""
    address = parse_redis_url("redis://a:1")

    assert shared_locator(address, sentinels.connect) is not shared_locator(address, sentinels.connect)
