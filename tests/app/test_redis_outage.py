"""Failures during an outage of Redis do not count as crashes of the plugin."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tangram.app.redis_outage import RECENT, RedisOutage, blames_redis
from tangram.errors import BrokerRefused, BrokerUnavailable, RestartsExhausted
from tangram.supervision.records import attach_crash, crash_of
from tangram.testing.checks.log_records import record_logs


class Host:
    """A plugin whose runs end as a script says."""

    name = "probe"

    def __init__(self, *ends: Exception | None) -> None:
        self.ends = list(ends)
        self.runs = 0

    async def run(self, *, task_status: trio.TaskStatus[object]) -> None:
        self.runs += 1
        task_status.started(self.runs)
        await trio.lowlevel.checkpoint()
        end = self.ends.pop(0)
        if end is not None:
            raise end


class Redis:
    def __init__(self, there: bool) -> None:
        self.there = there
        self.outage = RedisOutage(lambda: self.there)

    def turn(self, there: bool) -> None:
        self.there = there
        self.outage.note(there)


def crash_of_redis() -> Exception:
    error = RestartsExhausted("supervisor 'probe' gives up")
    attach_crash(error, crash_of("tick", BrokerUnavailable("away"), at=0.0, incarnation=1))
    error.__cause__ = ExceptionGroup("two", [ValueError("x"), BrokerUnavailable("away")])
    return error


@pytest.mark.parametrize(
    ("error", "blames"),
    [
        (crash_of_redis(), True),
        (BrokerUnavailable("away"), True),
        (ValueError("mine"), False),
        (BrokerRefused("NOPERM"), False),
        (ExceptionGroup("two", [BrokerRefused("NOPERM"), ValueError("mine")]), False),
    ],
)
def test_the_cause_is_found_below_groups_and_causes(error: Exception, blames: bool) -> None:
    """Redis is the cause if any exception in the group or the chain of causes says so."""
    assert blames_redis(error) is blames


async def test_a_plugin_waits_for_redis_and_is_started_again(autojump_clock: object) -> None:
    """While Redis is away the plugin is shown as waiting; then it runs again without a charge."""
    redis, host = Redis(there=False), Host(crash_of_redis(), None)

    with record_logs() as logs:
        async with trio.open_nursery() as nursery:
            started = await nursery.start(
                lambda *, task_status: redis.outage.run(host, task_status=task_status)
            )
            await trio.sleep(1)
            waiting = set(redis.outage.waiting)
            redis.turn(there=True)

    assert (started, host.runs, waiting) == (1, 2, {"probe"})
    assert redis.outage.waiting == set()
    # The supervisor in between and its budget are not named.
    assert [log["cause"] for log in logs] == ["tangram.errors.BrokerUnavailable: away"]


async def test_an_outage_that_has_just_ended_is_an_excuse_too(autojump_clock: object) -> None:
    """A message in flight at the outage fails after Redis is back: that is no crash either."""
    redis, host = Redis(there=True), Host(crash_of_redis(), None)
    redis.turn(there=False)
    await trio.sleep(0.02)
    redis.turn(there=True)

    async with trio.open_nursery() as nursery:
        await nursery.start(lambda *, task_status: redis.outage.run(host, task_status=task_status))

    assert host.runs == 2


async def test_an_outage_that_is_noticed_after_the_failure_is_an_excuse_too(autojump_clock: object) -> None:
    """A publish to a silent Redis may fail a moment before the bus notices that Redis is away."""
    redis, host = Redis(there=True), Host(crash_of_redis(), None)
    redis.turn(there=True)
    await trio.sleep(RECENT + 1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: redis.outage.run(host, task_status=trio.TASK_STATUS_IGNORED))
        await trio.sleep(2.0)
        redis.turn(there=False)
        await trio.sleep(1)
        waiting = set(redis.outage.waiting)
        redis.turn(there=True)

    assert waiting == {"probe"}
    assert host.runs == 2


async def test_without_an_outage_it_is_the_plugins_own_crash(autojump_clock: object) -> None:
    """A plugin whose own Redis is away, while the server's is there, has crashed."""
    redis, host = Redis(there=True), Host(crash_of_redis())
    redis.turn(there=True)
    await trio.sleep(RECENT + 1)

    with pytest.raises(RestartsExhausted):
        await redis.outage.run(host, task_status=trio.TASK_STATUS_IGNORED)


async def test_other_errors_pass_at_once(autojump_clock: object) -> None:
    """An error that is not about Redis is raised without delay."""
    redis, host = Redis(there=False), Host(ValueError("mine"))
    began = trio.current_time()

    with pytest.raises(ValueError, match="mine"):
        await redis.outage.run(host, task_status=trio.TASK_STATUS_IGNORED)

    assert trio.current_time() == began


async def test_failures_after_an_outage_are_retried_with_growing_pauses(
    autojump_clock: object,
) -> None:
    """After an outage each retry waits longer; once the excuse is over the failure is a crash."""
    redis, host = Redis(there=True), Host(*(crash_of_redis() for _ in range(100)))
    redis.turn(there=True)

    with pytest.raises(RestartsExhausted):
        await redis.outage.run(host, task_status=trio.TASK_STATUS_IGNORED)

    assert 5 < host.runs < 15
    assert RECENT < trio.current_time() < 2 * RECENT + 1
