import random
from itertools import pairwise

import trio

from tangram.bus.reconnect import BACKOFF_MAX, BACKOFF_REFUSED, Keeper
from tangram.bus.resp import STAGGER, Link
from tangram.redis_url import parse_redis_url
from tests.bus.fakes import URL, FakeRedis, until


def keeper_of(fake: FakeRedis, url: str = URL, seed: int = 1) -> Keeper:
    return Keeper(parse_redis_url(url), name="test", dial=fake.dial, rng=random.Random(seed))


def gaps(times: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


class Session:
    """Counts connections and reads until each is lost."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.links: list[Link] = []
        self.times: list[float] = []

    async def __call__(self, link: Link) -> None:
        self.links.append(link)
        self.times.append(trio.current_time())
        self.keeper.established()
        await link.share(self._read)

    async def _read(self, link: Link) -> None:
        while True:
            await link.receive()


async def test_a_lost_connection_is_dialled_at_once(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """The first dial after a loss does not wait."""
    keeper = keeper_of(fake)
    session = Session(keeper)
    nursery.start_soon(keeper.run, session)
    await trio.sleep(5)
    before = trio.current_time()
    await fake.drop()
    await trio.testing.wait_all_tasks_blocked()

    assert session.times[-1] == before
    assert (len(session.links), keeper.reconnects, keeper.up) == (2, 1, True)


async def test_back_off_grows_and_is_capped(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """Delays go 0, 50 ms, 100 ms, then 150 ms give or take a fifth, for however long the outage lasts."""
    fake.refuse = True
    keeper = keeper_of(fake)
    nursery.start_soon(keeper.run, Session(keeper))
    await trio.sleep(60)
    delays = gaps(fake.dials)

    assert delays[0] == 0
    assert 0.04 <= delays[1] <= 0.06
    assert 0.08 <= delays[2] <= 0.12
    assert all(0.12 <= delay <= 0.18 for delay in delays[3:])
    assert len(set(delays[3:])) > 100, "delays without jitter"


async def test_an_outage_of_any_length_ends_within_a_quarter_of_a_second(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """However long Redis was away, and whether dials were refused or hung, the next session starts soon."""
    keeper = keeper_of(fake)
    session = Session(keeper)
    nursery.start_soon(keeper.run, session)
    rng = random.Random(2)
    for round_ in range(20):
        kind = "refuse" if round_ % 2 else "hang"
        setattr(fake, kind, True)
        await fake.drop()
        await trio.sleep(rng.uniform(0.01, 10))
        setattr(fake, kind, False)
        back = trio.current_time()
        await until(lambda: keeper.up)

        assert trio.current_time() - back <= BACKOFF_MAX * 1.2 + 0.002, kind


async def test_a_dial_that_hangs_gets_company(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """While one dial hangs others are begun, and when one comes through the rest are given up."""
    fake.hang = True
    keeper = keeper_of(fake)
    session = Session(keeper)
    nursery.start_soon(keeper.run, session)
    await trio.sleep(STAGGER * 3.5)
    fake.hang = False
    await trio.sleep(STAGGER)

    assert len(fake.dials) == 5
    assert len(session.links) == len(fake.connections) == 1


async def test_a_server_that_accepts_and_closes_is_not_dialled_without_pause(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """Connections that die young do not reset the back-off."""
    keeper = keeper_of(fake)

    async def dies_young(link: Link) -> None:
        keeper.established()

    nursery.start_soon(keeper.run, dies_young)
    await trio.sleep(10)

    assert len(fake.dials) < 100


async def test_hurry_ends_the_back_off(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """Whoever saw Redis alive can have it dialled now."""
    fake.refuse = True
    keeper = keeper_of(fake)
    nursery.start_soon(keeper.run, Session(keeper))
    await trio.sleep(20)
    seen = len(fake.dials)
    await until(lambda: len(fake.dials) > seen)
    await trio.sleep(0.01)
    fake.refuse = False
    keeper.hurry()
    now = trio.current_time()
    await trio.testing.wait_all_tasks_blocked()

    assert keeper.up
    assert fake.dials[-1] == now


async def test_the_greeting_logs_in_and_chooses_the_database(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """AUTH comes first, then SELECT, then PING, in one write."""
    keeper = keeper_of(fake, "redis://me:pw@fake/3")
    nursery.start_soon(keeper.run, Session(keeper))
    await trio.testing.wait_all_tasks_blocked()

    assert fake.connections[0].commands == [[b"AUTH", b"me", b"pw"], [b"SELECT", b"3"], [b"PING"]]
    assert fake.connections[0].writes == 1


async def test_refused_credentials_are_tried_slowly_and_told(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """A wrong password is no outage: it is told as it is, without the password, and tried every two
    seconds."""
    fake.errors[b"AUTH"] = "WRONGPASS invalid username-password pair or user is disabled."
    keeper = keeper_of(fake, "redis://me:s3cret@fake")
    nursery.start_soon(keeper.run, Session(keeper))
    await trio.sleep(10)

    assert gaps(fake.dials)[1:] == [BACKOFF_REFUSED] * (len(fake.dials) - 2)
    assert "refuses AUTH: WRONGPASS" in keeper.cause
    assert "s3cret" not in keeper.cause


async def test_a_server_that_loads_is_away_and_tried_fast(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """LOADING is an outage like any other."""
    fake.errors[b"PING"] = "LOADING Redis is loading the dataset in memory"
    keeper = keeper_of(fake)
    nursery.start_soon(keeper.run, Session(keeper))
    await trio.sleep(10)
    fake.errors.clear()
    await trio.sleep(0.2)

    assert keeper.up


async def test_an_account_that_may_not_ping_is_served(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """NOPERM for PING is an answer, and so a sign of life."""
    fake.errors[b"PING"] = "NOPERM this user has no permissions to run the 'ping' command"
    keeper = keeper_of(fake)
    nursery.start_soon(keeper.run, Session(keeper))
    await trio.testing.wait_all_tasks_blocked()

    assert keeper.up
