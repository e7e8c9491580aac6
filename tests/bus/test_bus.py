"""The bus over a fake and over a real broker."""

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


async def test_the_bus_starts_once_redis_confirms_the_subscription(
    autojump_clock: Clock, fake: FakeRedis
) -> None:
    """The start is reported after the confirmation, and the statistics agree."""
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


async def test_the_bus_starts_without_redis(autojump_clock: Clock, fake: FakeRedis) -> None:
    """The server starts while an external Redis is away, and the outage raises nothing."""
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


async def test_publishing_works_once_on_up_is_called(autojump_clock: Clock, fake: FakeRedis) -> None:
    """After an outage no publish fails because only the subscriber connection is back."""
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


async def test_a_bus_runs_once(autojump_clock: Clock, fake: FakeRedis) -> None:
    """A second ``run`` of the same bus is an error."""
    bus = Bus(URL, dial=fake.dial)
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        nursery.cancel_scope.cancel()
    with pytest.raises(RuntimeError, match="build a new one"):
        await bus.run()


def test_a_bad_url_is_a_configuration_fault() -> None:
    """A malformed URL raises ``ConfigError`` when the bus is built."""
    with pytest.raises(ConfigError, match=r"core\.redis_url"):
        Bus("nonsense")


async def test_a_failing_lazy_part_fails_only_its_caller(autojump_clock: Clock, fake: FakeRedis) -> None:
    """After a failed part the bus goes on, and the next use starts the part again."""
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
            await bus.lazy_part("part", part, str)
        assert await bus.lazy_part("part", part, str) == "part 2"
        assert await bus.lazy_part("part", part, str) == "part 2"
        await trio.sleep(1.5)
        assert await bus.lazy_part("part", part, str) == "part 3"
        nursery.cancel_scope.cancel()
    with pytest.raises(BrokerUnavailable, match="not running"):
        await bus.lazy_part("part", part, str)


# Against the real thing


@pytest.mark.slow
async def test_a_killed_broker_is_found_again(valkey: RealBroker) -> None:
    """Messages flow within 250 ms of the restarted broker's listening.

    The shortest of three counts: a wait of the bus is in each, one for the processor is not.
    """
    took: list[float] = []
    got: list[tuple[bytes, bytes]] = []
    bus = Bus(valkey.url, sink=got.extend)

    async def arrived(number: int) -> None:
        await until(lambda: len(got) == number)

    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        for round_ in range(3):
            valkey.kill()
            with trio.fail_after(30):
                await until(lambda: not bus.up)
            await trio.sleep(0.3)
            valkey.start()
            began = trio.current_time()
            with trio.fail_after(30):
                await bus.wait_up()
            took.append(trio.current_time() - began)
            assert await bus.publish("to:a:b", str(round_)) == 1
            with trio.fail_after(30):
                await arrived(round_ + 1)
        nursery.cancel_scope.cancel()

    assert min(took) <= 0.25, took
    assert [payload for _, payload in got] == [b"0", b"1", b"2"]


@pytest.mark.slow
async def test_a_stopped_broker_process_answers_when_it_continues(valkey: RealBroker) -> None:
    """After SIGSTOP and SIGCONT the broker answers the earlier commands in order."""
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
    """Ten thousand messages arrive without a gap, in far fewer batches."""
    got: list[bytes] = []

    def sink(batch: Sequence[tuple[bytes, bytes]]) -> None:
        got.extend(payload for _, payload in batch)

    bus = Bus(shared_valkey.url, sink=sink)
    async with trio.open_nursery() as nursery:
        await nursery.start(bus.run)
        for number in range(10_000):
            bus.publish_nowait("to:burst:x", b"%d" % number)
        with trio.fail_after(30):
            await until(lambda: len(got) == 10_000)

        assert got == [b"%d" % number for number in range(10_000)]
        assert bus.statistics().batches < 1000
        nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_the_url_logs_both_connections_in() -> None:
    """Both use the password of the URL; a wrong one is reported and raises nothing."""
    with open_broker(password="pa:ss") as broker:
        right = Bus(broker.url + "/2")
        wrong = Bus(broker.url.replace("pa%3Ass", "nope"))
        none = Bus(broker.url.replace(":pa%3Ass@", ""))
        async with trio.open_nursery() as nursery:
            for bus in (wrong, none):
                nursery.start_soon(bus.run)
            await nursery.start(right.run)
            with trio.fail_after(30):
                await until(lambda: "WRONGPASS" in wrong.statistics().cause)
                await until(lambda: "NOAUTH" in none.statistics().cause)

            assert await right.publish("to:a:b", b"x") == 1
            nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_a_unix_url_works_like_a_tcp_url(tmp_path: Path) -> None:
    """``unix://`` URLs work like the others."""
    path = tmp_path / "s"
    with open_broker("--unixsocket", str(path)):
        async with trio.open_nursery() as nursery:
            bus = Bus(f"unix://{path}?db=1")
            await nursery.start(bus.run)

            assert await bus.publish("to:a:b", b"x") == 1
            nursery.cancel_scope.cancel()
