import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from tangram.bus import Bus
from tangram.errors import BrokerUnavailable, ConfigError
from tangram.testing import RealBroker, open_broker
from tests.bus.fakes import URL, FakeRedis, until

Clock = trio.testing.MockClock


async def test_it_starts_once_redis_is_there(autojump_clock: Clock, fake: FakeRedis) -> None:
    """`started` comes when the feed is subscribed, and the statistics say so."""
    ups: list[bool] = []
    bus = Bus(URL, dial=fake.dial, on_up=ups.append)
    async with trio.open_nursery() as nursery:
        value = await nursery.start(bus.run)

        assert value is bus
        assert ups == [True]
        assert bus.statistics().up
        assert bus.statistics().patterns == ("to:*",)
        nursery.cancel_scope.cancel()

    assert ups == [True, False]
    assert not bus.statistics().up


async def test_it_starts_without_redis(autojump_clock: Clock, fake: FakeRedis) -> None:
    """An external Redis that is away does not keep the server from coming up, and crashes nobody, ever."""
    fake.refuse = True
    bus = Bus(URL, dial=fake.dial)
    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        await nursery.start(bus.run)

        assert trio.current_time() - began == pytest.approx(2)
        assert bus.statistics().cause == "connection refused"

        await trio.sleep(20)
        fake.refuse = False
        await trio.sleep(0.2)

        assert bus.statistics().up
        assert await bus.publish("to:a:b", b"x") == 1
        nursery.cancel_scope.cancel()


async def test_publishing_works_as_soon_as_the_feed_is_up(autojump_clock: Clock, fake: FakeRedis) -> None:
    """After an outage of any length nobody who was told that Redis is back is refused for want of the other
    connection."""
    results: list[object] = []

    def on_up(up: bool) -> None:
        if up:
            bus.publish_nowait("to:a:b", b"x", results.append)

    bus = Bus(URL, dial=fake.dial, on_up=on_up, rng=random.Random(3))
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        for _ in range(4):
            await trio.sleep(1)
            fake.refuse = True
            await fake.drop()
            await trio.sleep(10)
            fake.refuse = False
            await trio.sleep(0.25)
        nursery.cancel_scope.cancel()

    assert len(results) == 5
    assert results == [1] * 5


async def test_it_runs_once(autojump_clock: Clock, fake: FakeRedis) -> None:
    """One bus has one life."""
    bus = Bus(URL, dial=fake.dial)
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        nursery.cancel_scope.cancel()
    with pytest.raises(RuntimeError, match="build a new one"):
        await bus.run()


def test_a_bad_url_is_a_configuration_fault() -> None:
    """It is told when the bus is built."""
    with pytest.raises(ConfigError, match=r"core\.redis_url"):
        Bus("nonsense")


async def test_a_failing_annex_costs_its_caller_alone(autojump_clock: Clock, fake: FakeRedis) -> None:
    """What is opened on first use may fail to open, or end with an error later: the bus goes on, the next
    use opens anew."""
    starts: list[int] = []

    async def part(*, task_status: trio.TaskStatus[str]) -> None:
        starts.append(len(starts))
        if len(starts) == 1:
            raise OSError("cannot open")
        task_status.started(f"part {len(starts)}")
        await trio.sleep(1)
        raise ZeroDivisionError

    bus = Bus(URL, dial=fake.dial)
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        with pytest.raises(OSError, match="cannot open"):
            await bus.annex("part", part, str)
        assert await bus.annex("part", part, str) == "part 2"
        assert await bus.annex("part", part, str) == "part 2"
        await trio.sleep(1.5)
        assert await bus.annex("part", part, str) == "part 3"
        nursery.cancel_scope.cancel()
    with pytest.raises(BrokerUnavailable, match="not running"):
        await bus.annex("part", part, str)


# Against the real thing


@pytest.mark.slow
async def test_a_killed_broker_is_found_again(valkey: RealBroker) -> None:
    """After a kill and a restart messages flow again within a quarter of a second of the broker's
    listening: the median of three, because another program may have had the processor."""
    took: list[float] = []
    got: list[tuple[bytes, bytes]] = []
    bus = Bus(valkey.url, sink=got.extend)

    async def arrived(number: int) -> None:
        await until(lambda: len(got) == number)

    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        for round_ in range(3):
            valkey.kill()
            await trio.sleep(0.3)
            assert not bus.up
            valkey.start()
            began = trio.current_time()
            with trio.fail_after(5):
                await bus.wait_up()
            took.append(trio.current_time() - began)
            assert await bus.publish("to:a:b", str(round_)) == 1
            with trio.fail_after(5):
                await arrived(round_ + 1)
        nursery.cancel_scope.cancel()

    assert sorted(took)[1] <= 0.25, took
    assert [payload for _, payload in got] == [b"0", b"1", b"2"]


@pytest.mark.slow
async def test_a_broker_that_stands_still_is_waited_for(valkey: RealBroker) -> None:
    """A broker that is stopped and continued answers what it was asked before, in order."""
    bus = Bus(valkey.url)
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        valkey.freeze()
        results: list[object] = []
        for _ in range(5):
            bus.publish_nowait("to:a:b", b"x", results.append)
        await trio.sleep(0.2)
        assert results == []
        valkey.thaw()
        await bus.publish("to:a:b", b"y")

        assert results == [1] * 5
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_a_burst_arrives_whole_and_in_order(shared_valkey: RealBroker) -> None:
    """Ten thousand messages at once come through without a gap, in far fewer batches."""
    got: list[bytes] = []

    def sink(batch: Sequence[tuple[bytes, bytes]]) -> None:
        got.extend(payload for _, payload in batch)

    bus = Bus(shared_valkey.url, sink=sink)
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        for number in range(10_000):
            bus.publish_nowait("to:burst:x", b"%d" % number)
        with trio.fail_after(5):
            await until(lambda: len(got) == 10_000)

        assert got == [b"%d" % number for number in range(10_000)]
        assert bus.statistics().batches < 1000
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_credentials_and_databases() -> None:
    """A password in the URL logs both connections in; a wrong one is told and crashes nobody."""
    with open_broker(password="pa:ss") as broker:
        right = Bus(broker.url + "/2")
        wrong = Bus(broker.url.replace("pa%3Ass", "nope"))
        none = Bus(broker.url.replace(":pa%3Ass@", ""))
        async with trio.open_nursery() as nursery:
            for bus in (wrong, none):
                nursery.start_soon(bus.run)
            await nursery.start(right.run)
            await trio.sleep(0.1)

            assert await right.publish("to:a:b", b"x") == 1
            assert "WRONGPASS" in wrong.statistics().cause
            assert "NOAUTH" in none.statistics().cause
            nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_unix_sockets(tmp_path: Path) -> None:
    """unix:// URLs work like the others."""
    path = tmp_path / "s"
    with open_broker("--unixsocket", str(path)):
        async with trio.open_nursery() as nursery:
            bus = Bus(f"unix://{path}?db=1")
            await nursery.start(bus.run)

            assert await bus.publish("to:a:b", b"x") == 1
            nursery.cancel_scope.cancel()
