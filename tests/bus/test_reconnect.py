"""A connection that is dialled again after each loss."""

import random
from itertools import pairwise

import trio

from tangram.bus.reconnect import BACKOFF_MAX, BACKOFF_REFUSED, Reconnector
from tangram.bus.resp import STAGGER, Link
from tangram.primary.locator import FOLLOW_EVERY
from tangram.redis_url import RedisAddress, parse_redis_url
from tests.bus.fakes import URL, FakeRedis, until
from tests.primary.fakes import FakeSentinels


def keeper_of(fake: FakeRedis, url: str = URL, seed: int = 1) -> Reconnector:
    return Reconnector(parse_redis_url(url), name="test", dial=fake.dial, rng=random.Random(seed))


def gaps(times: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


class Session:
    """A session that counts connections, and reads until each is lost."""

    def __init__(self, keeper: Reconnector) -> None:
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


async def test_the_back_off_grows_up_to_150_ms(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """Delays are 0, 50 ms, 100 ms, then 150 ms, each up to a fifth longer or shorter."""
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


async def test_a_session_starts_within_250_ms_after_an_outage(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """This holds for outages of any length, with refused dials and with hanging ones."""
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


async def test_more_dials_start_beside_one_that_hangs(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """The first that succeeds is used, and the others are cancelled."""
    fake.hang = True
    keeper = keeper_of(fake)
    session = Session(keeper)
    nursery.start_soon(keeper.run, session)
    await trio.sleep(STAGGER * 3.5)
    fake.hang = False
    await trio.sleep(STAGGER)

    assert len(fake.dials) == 5
    assert len(session.links) == len(fake.connections) == 1


async def test_short_connections_do_not_reset_the_back_off(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """A server that accepts and closes is not dialled without a pause."""
    keeper = keeper_of(fake)

    async def dies_young(link: Link) -> None:
        keeper.established()

    nursery.start_soon(keeper.run, dies_young)
    await trio.sleep(10)

    assert len(fake.dials) < 100


async def test_retry_now_ends_the_back_off(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """Another connection that has reached Redis can cause a dial at once."""
    fake.refuse = True
    keeper = keeper_of(fake)
    nursery.start_soon(keeper.run, Session(keeper))
    await trio.sleep(20)
    seen = len(fake.dials)
    await until(lambda: len(fake.dials) > seen)
    await trio.sleep(0.01)
    fake.refuse = False
    keeper.retry_now()
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


async def test_refused_credentials_are_retried_every_two_seconds(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """The log names the refusal, without the password."""
    fake.errors[b"AUTH"] = "WRONGPASS invalid username-password pair or user is disabled."
    keeper = keeper_of(fake, "redis://me:s3cret@fake")
    nursery.start_soon(keeper.run, Session(keeper))
    await trio.sleep(10)

    assert gaps(fake.dials)[1:] == [BACKOFF_REFUSED] * (len(fake.dials) - 2)
    assert "refuses AUTH: WRONGPASS" in keeper.cause
    assert "s3cret" not in keeper.cause


async def test_a_loading_server_is_retried_fast(
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


async def test_a_refused_ping_counts_as_an_answer(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """NOPERM shows that Redis is alive."""
    fake.errors[b"PING"] = "NOPERM this user has no permissions to run the 'ping' command"
    keeper = keeper_of(fake)
    nursery.start_soon(keeper.run, Session(keeper))
    await trio.testing.wait_all_tasks_blocked()

    assert keeper.up


async def test_a_connection_to_a_primary_that_was_replaced_is_ended(
    autojump_clock: trio.testing.MockClock, fake: FakeRedis, nursery: trio.Nursery
) -> None:
    """The old primary keeps the connection and answers; only the sentinels know that it has been replaced."""
    sentinels = FakeSentinels(nursery)
    guide = ("a", 1)
    sentinels.views = {guide: (("one", 6379), 1)}

    async def dial(address: RedisAddress) -> trio.abc.Stream:
        known = address.endpoint == guide
        return await sentinels.connect(address) if known else await fake.dial(address)

    address = parse_redis_url("redis+sentinel://a:1/?master=m")
    keeper = Reconnector(address, name="test", dial=dial, rng=random.Random(1))
    session = Session(keeper)
    nursery.start_soon(keeper.run, session)
    await trio.sleep(10 * FOLLOW_EVERY)
    assert [link.address.host for link in session.links] == ["one"]

    sentinels.views = {guide: (("two", 6379), 2)}
    await trio.sleep(2 * FOLLOW_EVERY)
    assert [link.address.host for link in session.links] == ["one", "two"]
    assert session.links[0].cause == "the primary is now two:6379"
