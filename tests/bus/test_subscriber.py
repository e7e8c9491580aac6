from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
import trio

from tangram.bus import Subscriber, service_nursery
from tangram.errors import BrokerRefused, ConfigError, ServiceError
from tests.bus.fakes import URL, FakeRedis, until

Clock = trio.testing.MockClock


@dataclass
class State:
    seen: list[tuple[str, str, str]] = field(default_factory=list)


class Commands(Subscriber[State]):
    async def message_handler(self, event: str, payload: str, pattern: str, state: State) -> None:
        await trio.lowlevel.checkpoint()
        if payload == "bad":
            raise ZeroDivisionError
        if payload == "stop":
            await self.cleanup()
        if payload == "hang":
            await trio.sleep_forever()
        state.seen.append((event, payload, pattern))


@pytest.fixture
def subscriber(fake: FakeRedis) -> Commands:
    made = Commands("Listener", URL, ["from:system:*", "from:other:x"], State())
    made._dial = fake.dial
    return made


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
async def service(nursery: trio.Nursery) -> trio.Nursery:
    """The test is a service of a plugin."""
    service_nursery.set(nursery)
    return nursery


async def test_as_in_the_guide(
    autojump_clock: Clock, fake: FakeRedis, subscriber: Commands, nursery: trio.Nursery
) -> None:
    """Once `subscribe` has returned, messages reach the handler as full name, text and pattern; `cleanup`
    ends it."""
    service_nursery.set(nursery)
    assert not subscriber.is_active()
    await subscriber.subscribe()

    assert subscriber.is_active()
    await fake.push(b"from:system:hello", b"one")
    await fake.push(b"from:other:x", "zwö".encode())
    await fake.push(b"from:unasked:x", b"three")
    await settle()

    assert subscriber.state.seen == [
        ("from:system:hello", "one", "from:system:*"),
        ("from:other:x", "zwö", "from:other:x"),
    ]
    assert (subscriber.name, subscriber.redis_url) == ("Listener", URL)
    assert subscriber.channels == ["from:system:*", "from:other:x"]

    await subscriber.cleanup()
    await subscriber.cleanup()

    assert not subscriber.is_active()
    assert not nursery.child_tasks or await fake.push(b"from:system:hello", b"x") == 0


async def test_its_task_belongs_to_the_service(
    autojump_clock: Clock, fake: FakeRedis, subscriber: Commands
) -> None:
    """When the service's nursery is cancelled the subscriber ends with it, and needs no cleanup."""
    async with trio.open_nursery() as service:
        service_nursery.set(service)
        await subscriber.subscribe()
        assert len(service.child_tasks) == 1
        service.cancel_scope.cancel()

    assert not subscriber.is_active()
    await settle()
    assert await fake.push(b"from:system:x", b"") == 0


async def test_outside_a_service(autojump_clock: Clock, fake: FakeRedis, subscriber: Commands) -> None:
    """Where no service runs, the error says what to write instead; and that works."""
    service_nursery.set(None)
    with pytest.raises(ServiceError, match="async with subscriber:"):
        await subscriber.subscribe()

    async with subscriber:
        await fake.push(b"from:system:x", b"y")
        await settle()
        assert subscriber.is_active()
    assert subscriber.state.seen == [("from:system:x", "y", "from:system:*")]
    assert not subscriber.is_active()


async def test_the_block_lets_exceptions_through(autojump_clock: Clock, subscriber: Commands) -> None:
    """`async with` neither hides nor changes what its body raises."""
    with pytest.raises(ZeroDivisionError):
        async with subscriber:
            raise ZeroDivisionError

    assert not subscriber.is_active()


async def test_a_message_that_fails_costs_itself_alone(
    autojump_clock: Clock, fake: FakeRedis, subscriber: Commands
) -> None:
    """A handler's error and a payload that is no text are logged; the next message is handled."""
    async with subscriber:
        for payload in (b"1", b"bad", b"\xff", b"2"):
            await fake.push(b"from:system:x", payload)
        await settle()

        assert [payload for _, payload, _ in subscriber.state.seen] == ["1", "2"]


async def test_a_lost_broker_is_retried(autojump_clock: Clock, fake: FakeRedis, subscriber: Commands) -> None:
    """After an outage of any length it listens again, and nobody was disturbed."""
    async with subscriber:
        fake.refuse = True
        await fake.drop()
        await trio.sleep(30)
        fake.refuse = False
        await trio.sleep(0.25)
        await fake.push(b"from:system:x", b"back")
        await settle()

        assert [payload for _, payload, _ in subscriber.state.seen] == ["back"]


async def test_a_broker_that_is_away_at_first_is_waited_for(
    autojump_clock: Clock, fake: FakeRedis, subscriber: Commands
) -> None:
    """`subscribe` returns after two seconds without Redis; it comes up behind the service's back."""
    fake.refuse = True
    began = trio.current_time()
    async with subscriber:
        assert trio.current_time() - began == pytest.approx(2)
        assert subscriber.is_active()
        fake.refuse = False
        await trio.sleep(0.25)
        await fake.push(b"from:system:x", b"y")
        await settle()

        assert len(subscriber.state.seen) == 1


async def test_a_second_start_only_warns(
    autojump_clock: Clock, fake: FakeRedis, subscriber: Commands, nursery: trio.Nursery
) -> None:
    """A second `subscribe` changes nothing; after a cleanup it starts anew."""
    service_nursery.set(nursery)
    await subscriber.subscribe()
    await subscriber.subscribe()
    await fake.push(b"from:system:x", b"1")
    await settle()
    await subscriber.cleanup()
    await subscriber.subscribe()
    await fake.push(b"from:system:x", b"2")
    await settle()

    assert [payload for _, payload, _ in subscriber.state.seen] == ["1", "2"]
    await subscriber.cleanup()


async def test_cleanup_under_cancellation(
    autojump_clock: Clock, fake: FakeRedis, subscriber: Commands, nursery: trio.Nursery
) -> None:
    """In a `finally` of a cancelled service `cleanup` does its work to the end."""
    service_nursery.set(nursery)
    await subscriber.subscribe()
    active: list[bool] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.sleep_forever()
        finally:
            await subscriber.cleanup()
            active.append(subscriber.is_active())

    assert active == [False]


async def test_a_handler_may_stop_its_own_subscriber(
    autojump_clock: Clock, fake: FakeRedis, subscriber: Commands, nursery: trio.Nursery
) -> None:
    """`cleanup` called by the handler does not wait for the handler."""
    service_nursery.set(nursery)
    await subscriber.subscribe()
    await fake.push(b"from:system:x", b"stop")
    began = trio.current_time()
    await until(lambda: not subscriber.is_active())

    assert trio.current_time() - began < 0.1


async def test_a_handler_that_hangs_is_cancelled(
    autojump_clock: Clock, fake: FakeRedis, subscriber: Commands
) -> None:
    """The end does not wait for a handler that waits."""
    async with subscriber:
        await fake.push(b"from:system:x", b"hang")
        await settle()
        began = trio.current_time()
    assert trio.current_time() == began


def test_a_bad_url_names_the_subscriber() -> None:
    """A mistake in the URL is told where the subscriber is made."""
    with pytest.raises(ConfigError, match="redis_url of subscriber Listener"):
        Commands("Listener", "http://x", ["a"], State())


def test_the_handler_is_abstract() -> None:
    """A subclass without a handler cannot be made."""
    with pytest.raises(TypeError, match="message_handler"):
        Subscriber("x", URL, ["a"], random.Random())  # type: ignore[abstract]


async def test_a_refused_channel_is_told_to_who_subscribes(
    autojump_clock: Clock, fake: FakeRedis, subscriber: Commands, service: trio.Nursery
) -> None:
    """A subscriber whose channel its account may not read does not begin, rather than hear nothing."""
    fake.errors[b"PSUBSCRIBE from:other:x"] = "NOPERM no permissions to access a channel"

    with pytest.raises(BrokerRefused, match=r"from:other:x': NOPERM"):
        await subscriber.subscribe()

    assert not subscriber.is_active()


async def test_a_channel_that_is_refused_later_ends_the_service(
    autojump_clock: Clock, fake: FakeRedis, subscriber: Commands
) -> None:
    """Where the account may not read it any more after a reconnect, its service ends by that."""
    with pytest.RaisesGroup(pytest.RaisesExc(BrokerRefused, match=r"from:other:x': NOPERM")):
        async with trio.open_nursery() as nursery:
            service_nursery.set(nursery)
            await subscriber.subscribe()
            fake.errors[b"PSUBSCRIBE from:other:x"] = "NOPERM no permissions to access a channel"
            await fake.drop()
            with trio.fail_after(60):
                await trio.sleep_forever()
