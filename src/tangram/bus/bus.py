"""The bus: one subscriber connection, one publisher connection, and a place for what is opened on first use.

It never crashes because Redis is away: it waits, visibly, and comes back. One `Bus` has one life; whoever
restarts builds a new one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import attrs
import structlog
import trio

from tangram.bus.listener import Listener, Sink
from tangram.bus.publisher import BRIDGE, MAX_BUFFER, PUBLISH_TIMEOUT, Done, DoneAll, Publisher
from tangram.bus.resp import Dial, dial
from tangram.bus.subscriptions import MAX_BYTES, MAX_MESSAGES, SUBSCRIBE_TIMEOUT, Subscription
from tangram.bus.topics import TO_ALL
from tangram.errors import BrokerUnavailable
from tangram.redis_url import parse_redis_url
from tangram.task_status import RelayedStatus

__all__ = ["Bus", "BusStatistics"]

log = structlog.get_logger("tangram.bus")

START_TIMEOUT = 2.0
"""Seconds that a start waits for Redis. An external one may be away for longer: then the server comes up
without it."""

T = TypeVar("T")


@attrs.frozen
class BusStatistics:
    """The bus at one moment."""

    up: bool
    """Connected and subscribed: what is published arrives."""
    publisher_up: bool
    """The publisher connection is there."""
    cause: str
    """Why it is not up; empty while it is."""
    received: int
    """Messages of ``to:*`` so far."""
    batches: int
    """Calls of the sink they came in."""
    reconnects: int
    """How often the subscriber connection was there again after a loss."""
    patterns: tuple[str, ...]
    """What is subscribed, ``to:*`` first."""
    dropped: int
    """Messages that subscriptions dropped because their consumer was too far behind."""
    published: int
    """Messages that Redis has taken."""
    failed: int
    """Messages that were reported as not, or not surely, delivered."""
    open_bytes: int
    """Bytes of messages that wait to be sent or answered."""


class Bus:
    """The only door to Redis at *url*.

    *sink* gets what is published to ``to:*`` in batches, ``[(channel, payload), ...]`` in order, one call
    for each chunk read. *on_up* is told True once everything is subscribed, again after every outage, and
    False when the connection is lost. Both are plain functions, called from the bus's own task. *rng* gives
    the back-off its jitter, *timer* the seconds of CPU that a delivery took.

    Raises:
        ConfigError: *url* is no Redis URL.
    """

    def __init__(
        self,
        url: str,
        *,
        sink: Sink | None = None,
        on_up: Callable[[bool], None] | None = None,
        rng: random.Random | None = None,
        dial: Dial = dial,
        max_buffer: int = MAX_BUFFER,
        bridge: float = BRIDGE,
        timer: Callable[[], float] = time.thread_time,
    ) -> None:
        self.url = url
        address = parse_redis_url(url)
        rng = rng or random.Random()  # noqa: S311 - jitter, no secret
        self._tell_up = on_up
        self._listener = Listener(
            address,
            pinned=TO_ALL,
            sink=sink,
            on_up=self._on_up,
            dial=dial,
            rng=rng,
            name="subscriber",
            timer=timer,
        )
        self._publisher = Publisher(
            address,
            on_up=self._listener.keeper.hurry,
            dial=dial,
            rng=rng,
            max_buffer=max_buffer,
            bridge=bridge,
        )
        self._nursery: trio.Nursery | None = None
        self._ran = False
        self._annexes: dict[object, Any] = {}
        self._annex_lock = trio.Lock()

    async def run(self, *, task_status: trio.TaskStatus[Bus] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Started once Redis is there, or after `START_TIMEOUT` seconds without it."""
        if self._ran:
            raise RuntimeError("a bus runs once; build a new one for the next run")
        self._ran = True
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._publisher.run)
                nursery.start_soon(self._listener.run)
                with trio.move_on_after(START_TIMEOUT):
                    await self._listener.wait_up()
                task_status.started(self)
        finally:
            self._nursery = None

    async def publish(
        self, channel: str | bytes, payload: bytes | str, *, timeout: float = PUBLISH_TIMEOUT
    ) -> int:
        """Publish and wait for the answer: how many subscribers got it.

        Where the buffer is full, its turn is waited for first, within the same *timeout*. Cancelling ends the
        wait, not the message: it may still go out.

        Raises:
            BrokerUnavailable: Redis is away, or does not answer within *timeout* seconds.
            BrokerRefused: it says no.
        """
        return await self._publisher.publish(channel, payload, timeout=timeout)

    def publish_nowait(self, channel: str | bytes, payload: bytes | str, done: Done | None = None) -> None:
        """Publish, in order, without waiting; *done* gets the number of receivers, or BrokerUnavailable.

        *done* is called later, from the bus's task; or before this returns, when the message cannot be
        taken. It must not block or raise.

        Raises:
            BrokerUnavailable: the bus is closed for good.
        """
        self._publisher.publish_nowait(channel, payload, done)

    def publish_all_nowait(self, messages: Sequence[tuple[str, bytes]], done: DoneAll | None = None) -> None:
        """Publish ``(channel, payload)`` messages, in order, without waiting; they are taken together or not
        at all. *done* is told once which of them failed, by position; an empty mapping: none.

        As for `publish_nowait`, *done* may be called before this returns, and must not block or raise.

        Raises:
            BrokerUnavailable: the bus is closed for good.
        """
        self._publisher.publish_all_nowait(messages, done)

    @property
    def congested(self) -> bool:
        """Whether half of the buffer of open messages is full: a caller that can wait should."""
        return self._publisher.congested

    async def wait_uncongested(self) -> None:
        """Return once it is not congested; that takes no longer than the outages that are bridged."""
        await self._publisher.wait_uncongested()

    def subscribe(
        self,
        *patterns: str,
        timeout: float = SUBSCRIBE_TIMEOUT,
        max_messages: int = MAX_MESSAGES,
        max_bytes: int = MAX_BYTES,
    ) -> Subscription:
        """Messages of *patterns*, as an async context manager and an async iterator; see `Subscription`."""
        return Subscription(
            self._listener, patterns, timeout=timeout, max_messages=max_messages, max_bytes=max_bytes
        )

    @property
    def up(self) -> bool:
        """Connected and subscribed."""
        return self._listener.up

    async def wait_up(self) -> None:
        """Return once the bus is connected and subscribed."""
        await self._listener.wait_up()

    def statistics(self) -> BusStatistics:
        listener, publisher = self._listener, self._publisher
        return BusStatistics(
            up=listener.up,
            publisher_up=publisher.up,
            cause=listener.cause,
            received=listener.received,
            batches=listener.batches,
            reconnects=listener.keeper.reconnects,
            patterns=listener.patterns,
            dropped=listener.dropped,
            published=publisher.published,
            failed=publisher.failed,
            open_bytes=publisher.open_bytes,
        )

    async def annex(self, key: object, run: Callable[..., Awaitable[object]], kind: type[T]) -> T:
        """What *run* reports as its started value; started in the bus's own nursery when it is first asked
        for.

        It ends with the bus. If it ends earlier, by an error too, that is logged and the next call starts
        it anew.

        Raises:
            BrokerUnavailable: the bus is not running.
        """
        async with self._annex_lock:
            if self._nursery is None or self._nursery.cancel_scope.cancel_called:
                raise BrokerUnavailable("the bus is not running")
            if key not in self._annexes:
                self._annexes[key] = await self._nursery.start(self._run_annex, key, run)
            value = self._annexes[key]
        if not isinstance(value, kind):
            raise TypeError(f"the bus holds a {type(value).__name__} as {key!r}, not a {kind.__name__}")
        return value

    async def _run_annex(
        self,
        key: object,
        run: Callable[..., Awaitable[object]],
        *,
        task_status: trio.TaskStatus[object],
    ) -> None:
        status = RelayedStatus(task_status)
        try:
            await run(task_status=status)
        except Exception as exc:
            if not status.called:
                raise  # to whoever asked for it first
            log.exception(
                "a part of the bus ended; its next use opens it anew", part=str(key), cause=repr(exc)
            )
        finally:
            self._annexes.pop(key, None)

    def _on_up(self, up: bool) -> None:
        if up:
            # Redis was seen alive: the other connection need not wait out its back-off.
            self._publisher.hope()
        if self._tell_up is not None:
            self._tell_up(up)
