"""What every broker must do, the one in memory and the real one alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from tangram.broker import BrokerStatistics, ping
from tangram.bus import Bus
from tangram.errors import BrokerUnavailable

__all__ = ["Broker", "check_broker"]

START_SECONDS = 20.0
ANSWER_SECONDS = 2.0
MESSAGES = 50


class Broker(Protocol):
    """A broker as the tree knows it."""

    def statistics(self) -> BrokerStatistics: ...

    async def run(self, *, task_status: trio.TaskStatus[str] = ...) -> None: ...


async def check_broker(make: Callable[[], Broker], kill: Callable[[Broker], object]) -> None:
    """A broker answers once it is started, carries messages in order, tells when it dies, comes back at the
    same address, and is gone when it is cancelled. ``kill`` ends one life of it from outside.

    Raises:
        AssertionError: it does not; the message says what.
    """
    broker = make()
    async with trio.open_nursery() as nursery:
        ended = trio.Event()
        told: list[BaseException] = []

        async def live(*, task_status: trio.TaskStatus[str]) -> None:
            try:
                await broker.run(task_status=task_status)
            except BrokerUnavailable as error:
                told.append(error)
            ended.set()

        url = await _start(nursery, live)
        await ping(url, ANSWER_SECONDS)
        assert broker.statistics().up, "it answers, and its statistics say that it is not up"
        await _carries_messages(url)
        kill(broker)
        with trio.fail_after(START_SECONDS):
            await ended.wait()
        assert told, "it died and did not raise BrokerUnavailable"
        assert not broker.statistics().up, "it died, and its statistics say that it is up"
        again = await _start(nursery, live)
        assert again == url, f"it came back at {again!r}, plugins know it at {url!r}"
        await _carries_messages(url)
        nursery.cancel_scope.cancel()
    try:
        await ping(url, ANSWER_SECONDS)
    except BrokerUnavailable:
        return
    raise AssertionError("it was cancelled, and something still answers at its address")


async def _start(nursery: trio.Nursery, live: Callable[..., Awaitable[None]]) -> str:
    with trio.fail_after(START_SECONDS):
        url: str = await nursery.start(live)
    return url


async def _carries_messages(url: str) -> None:
    """Two programs at one broker: what one publishes, the other gets, all of it, in order."""
    got: list[bytes] = []
    all_there = trio.Event()

    def sink(batch: Sequence[tuple[bytes, bytes]]) -> None:
        got.extend(payload for _, payload in batch)
        if len(got) >= MESSAGES:
            all_there.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(Bus(url, sink=sink).run)
        other: Bus = await nursery.start(Bus(url).run)
        sent = [b"%d" % number for number in range(MESSAGES)]
        for payload in sent:
            receivers = await other.publish("to:conformance:n", payload)
            assert receivers == 2, f"two are subscribed, PUBLISH tells {receivers}"
        with trio.fail_after(ANSWER_SECONDS):
            await all_there.wait()
        assert got == sent, "messages did not come in the order in which they were sent"
        nursery.cancel_scope.cancel()
