"""``tangram.Subscriber``."""

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
    """Make the test a service of a plugin."""
    service_nursery.set(nursery)
    return nursery


async def test_the_example_of_the_guide_works(
    autojump_clock: Clock, fake: FakeRedis, subscriber: Commands, nursery: trio.Nursery
) -> None:
    """After ``subscribe`` the handler gets name, text and pattern; ``cleanup`` ends it."""
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


async def test_a_subscriber_ends_with_its_service(
    autojump_clock: Clock, fake: FakeRedis, subscriber: Commands
) -> None:
    """A cancelled service needs no cleanup."""
    async with trio.open_nursery() as service:
        service_nursery.set(service)
        await subscriber.subscribe()
        assert len(service.child_tasks) == 1
        service.cancel_scope.cancel()

    assert not subscriber.is_active()
    await settle()
    assert await fake.push(b"from:system:x", b"") == 0


async def test_subscribe_outside_a_service_names_the_alternative(
    autojump_clock: Clock, fake: FakeRedis, subscriber: Commands
) -> None:
    """The alternative works."""
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
    """``async with`` neither hides nor changes an exception of its body."""
    with pytest.raises(ZeroDivisionError):
        async with subscriber:
            raise ZeroDivisionError

    assert not subscriber.is_active()


async def test_the_next_message_is_handled_after_an_error(
    autojump_clock: Clock, fake: FakeRedis, subscriber: Commands
) -> None:
    """An error of the handler and a payload that is not text are logged."""
    async with subscriber:
        for payload in (b"1", b"bad", b"\xff", b"2"):
            await fake.push(b"from:system:x", payload)
        await settle()

        assert [payload for _, payload, _ in subscriber.state.seen] == ["1", "2"]


async def test_a_subscriber_reconnects_after_an_outage(
    autojump_clock: Clock, fake: FakeRedis, subscriber: Commands
) -> None:
    """It listens again after an outage of any length, and raises nothing."""
    async with subscriber:
        fake.refuse = True
        await fake.drop()
        await trio.sleep(30)
        fake.refuse = False
        await trio.sleep(0.25)
        await fake.push(b"from:system:x", b"back")
        await settle()

        assert [payload for _, payload, _ in subscriber.state.seen] == ["back"]


async def test_subscribe_returns_without_redis(
    autojump_clock: Clock, fake: FakeRedis, subscriber: Commands
) -> None:
    """It returns after two seconds, and the subscriber connects in the background."""
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
    """A second ``subscribe`` changes nothing; after a cleanup it starts again."""
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


async def test_cleanup_works_under_cancellation(
    autojump_clock: Clock, fake: FakeRedis, subscriber: Commands, nursery: trio.Nursery
) -> None:
    """In the ``finally`` of a cancelled service ``cleanup`` completes."""
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
    """``cleanup`` in the handler does not wait for the handler."""
    service_nursery.set(nursery)
    await subscriber.subscribe()
    await fake.push(b"from:system:x", b"stop")
    began = trio.current_time()
    await until(lambda: not subscriber.is_active())

    assert trio.current_time() - began < 0.1


async def test_cleanup_cancels_a_waiting_handler(
    autojump_clock: Clock, fake: FakeRedis, subscriber: Commands
) -> None:
    """The end does not wait for a handler that waits."""
    async with subscriber:
        await fake.push(b"from:system:x", b"hang")
        await settle()
        began = trio.current_time()
    assert trio.current_time() == began


def test_a_bad_url_names_the_subscriber() -> None:
    """A malformed URL raises where the subscriber is made."""
    with pytest.raises(ConfigError, match="redis_url of subscriber Listener"):
        Commands("Listener", "http://x", ["a"], State())


def test_the_handler_is_abstract() -> None:
    """A subclass without a handler cannot be instantiated."""
    with pytest.raises(TypeError, match="message_handler"):
        Subscriber("x", URL, ["a"], random.Random())  # type: ignore[abstract]


async def test_subscribe_raises_for_a_refused_channel(
    autojump_clock: Clock, fake: FakeRedis, subscriber: Commands, service: trio.Nursery
) -> None:
    """A subscriber that may not read its channel does not start."""
    fake.errors[b"PSUBSCRIBE from:other:x"] = "NOPERM no permissions to access a channel"

    with pytest.raises(BrokerRefused, match=r"from:other:x': NOPERM"):
        await subscriber.subscribe()

    assert not subscriber.is_active()


async def test_a_channel_that_is_refused_later_ends_the_service(
    autojump_clock: Clock, fake: FakeRedis, subscriber: Commands
) -> None:
    """If a reconnect finds the channel refused, the service ends with that error."""
    with pytest.RaisesGroup(pytest.RaisesExc(BrokerRefused, match=r"from:other:x': NOPERM")):
        async with trio.open_nursery() as nursery:
            service_nursery.set(nursery)
            await subscriber.subscribe()
            fake.errors[b"PSUBSCRIBE from:other:x"] = "NOPERM no permissions to access a channel"
            await fake.drop()
            with trio.fail_after(60):
                await trio.sleep_forever()
