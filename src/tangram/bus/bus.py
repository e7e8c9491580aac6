"""The bus: a subscriber connection, a publisher connection, and parts opened on first use.

An outage of Redis does not crash the bus: the bus reports it, waits, and reconnects. A ``Bus`` runs once; a
restart builds a new one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import attrs
import structlog
import trio

from tangram.bus.listener import Listener, Sink
from tangram.bus.publisher import BRIDGE, MAX_BUFFER, PUBLISH_TIMEOUT, Done, DoneAll, Publisher
from tangram.bus.resp import Dial, dial
from tangram.bus.scripts import Fence, FunctionCall, LoadFunctions, MessageHistory, Words, load_all
from tangram.bus.subscriptions import MAX_BYTES, MAX_MESSAGES, SUBSCRIBE_TIMEOUT, Subscription
from tangram.bus.topics import TO_ALL
from tangram.errors import BrokerUnavailable
from tangram.pieces import Pieces
from tangram.redis_url import parse_redis_url
from tangram.task_status import RelayedStatus

__all__ = ["Bus", "BusStatistics"]

log = structlog.get_logger("tangram.bus")

START_TIMEOUT: Final = 2.0
"""Seconds that a start waits for Redis. If an external Redis is away for longer, the server starts without
it.
"""

T = TypeVar("T")


@attrs.frozen
class BusStatistics:
    """The state of the bus at one moment."""

    up: bool
    """The subscriber connection is open and Redis has confirmed ``to:*``, so published messages arrive."""
    publisher_up: bool
    """The publisher connection is open."""
    cause: str
    """Why ``up`` is false; empty while it is true."""
    received: int
    """Messages of ``to:*`` so far."""
    batches: int
    """Calls of the sink, each with one or more of these messages."""
    reconnects: int
    """How often the subscriber connection was opened again after a loss."""
    patterns: tuple[str, ...]
    """The subscribed patterns, ``to:*`` first."""
    dropped: int
    """Messages that subscriptions dropped because their consumers were too slow."""
    published: int
    """Messages that Redis has accepted."""
    failed: int
    """Messages that were reported as lost, or as possibly lost."""
    open_bytes: int
    """Bytes of messages that wait to be sent or to be answered."""


class Bus:
    """The server's shared connections to one Redis.

    Args:
        url: the URL of Redis.
        sink: called with the messages of ``to:*`` in order, ``[(channel, payload), ...]``, once for each
            chunk that was read. A plain function; it runs in the bus's own task.
        on_up: called with True once every pattern is subscribed, also after an outage, and with False when
            the connection is lost. A plain function; it runs in the bus's own task.
        rng: the source of the back-off's jitter.
        dial: opens the connections; for tests.
        max_buffer: bytes of messages that may wait for Redis.
        bridge: seconds of an outage for which messages wait instead of failing.
        timer: returns CPU seconds; two readings give the cost of a delivery.
        history: publishes messages of topics with a history.
        loads: each loads further functions, for ``call`` and for fences, on a new connection.

    Raises:
        ConfigError: the URL is malformed.
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
        history: MessageHistory | None = None,
        loads: Sequence[LoadFunctions] = (),
    ) -> None:
        self.url = url
        self._history = history
        address = parse_redis_url(url)
        rng = rng or random.Random()  # noqa: S311 - jitter, no secret
        self._report_up = on_up
        self._listener = Listener(
            address,
            pinned=TO_ALL,
            sink=sink,
            on_up=self._on_up,
            dial=dial,
            rng=rng,
            name="subscriber",
            timer=timer,
            probe=self._probe,
        )
        self._publisher = Publisher(
            address,
            on_up=self._listener.connection.retry_now,
            dial=dial,
            rng=rng,
            max_buffer=max_buffer,
            bridge=bridge,
            load=load_all(loads if history is None else (history.load, *loads)),
        )
        self._nursery: trio.Nursery | None = None
        self._ran = False
        self._lazy_parts: dict[object, Any] = {}
        self._lazy_part_lock = trio.Lock()

    async def run(self, *, task_status: trio.TaskStatus[Bus] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled.

        The start is reported once Redis has confirmed the subscription, or after ``START_TIMEOUT`` seconds.
        """
        if self._ran:
            raise RuntimeError("a bus runs once; build a new one for the next run")
        self._ran = True
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                nursery.start_soon(self._publisher.run)
                nursery.start_soon(self._listener.run)
                with trio.move_on_after(START_TIMEOUT):
                    await self._listener.wait_up()
                task_status.started(self)
                await trio.sleep_forever()
            finally:
                # A nursery takes no tasks once its last one has ended, a pass before its block does.
                self._nursery = None

    async def publish(
        self,
        channel: str | bytes,
        payload: bytes | str,
        *,
        timeout: float = PUBLISH_TIMEOUT,
        fence: Fence | None = None,
    ) -> int:
        """Publish one message, and return the number of Redis clients that received it.

        If the buffer is full, this first waits for room, within the same ``timeout``. A cancellation ends the
        wait only; the message may still be sent.

        Args:
            channel: for example ``to:system:clock``; see ``tangram.bus.topics.to_channel``.
            payload: bytes, or text that is encoded as UTF-8.
            timeout: seconds for all of it.
            fence: the right to publish, of a plugin that runs on one of several nodes.

        Raises:
            BrokerUnavailable: Redis is away, or does not answer within ``timeout`` seconds.
            BrokerRefused: Redis refuses the command, for example to this account, or the fence is too old.
        """
        if fence is not None:
            return await self._publish_fenced(channel, payload, fence, timeout)
        if self._history is not None:
            function = self._history.publishing(channel, payload)
            if function is not None:
                return self._history.published(await self._publisher.call(function, timeout=timeout))
        return await self._publisher.publish(channel, payload, timeout=timeout)

    async def _publish_fenced(
        self, channel: str | bytes, payload: bytes | str, fence: Fence, timeout: float
    ) -> int:
        history = self._history
        recording = None if history is None else history.publishing(channel, payload)
        call = fence.guard(channel, payload, recording)
        answer = await self._publisher.call(call, timeout=timeout)
        if history is None or recording is None:
            return int(answer)
        return history.published(answer)

    def words(self, function: FunctionCall) -> Words:
        """Return the command that calls a function, for a client with another connection.

        Raises:
            BrokerUnavailable: no Redis has been reached yet that has the function.
        """
        return self._publisher.words(function)

    async def call(self, function: FunctionCall, *, timeout: float = PUBLISH_TIMEOUT) -> Any:
        """Call a function on Redis, in order with all messages, and return its answer.

        Raises:
            BrokerUnavailable: Redis is away, or does not answer within ``timeout`` seconds.
            BrokerRefused: Redis refuses the call.
        """
        return await self._publisher.call(function, timeout=timeout)

    def call_nowait(self, function: FunctionCall, done: Done) -> None:
        """Call a function on Redis without waiting, in order with all messages.

        Args:
            function: the call.
            done: called with Redis' answer, or with a ``BrokerUnavailable``; as for ``publish_nowait``.

        Raises:
            BrokerUnavailable: the bus is closed for good.
        """
        self._publisher.call_nowait(function, done)

    def publish_nowait(self, channel: str | bytes, payload: bytes | str, done: Done | None = None) -> None:
        """Publish one message without waiting, in order with all others.

        Args:
            channel: as for ``publish``.
            payload: as for ``publish``.
            done: called with the number of receivers, or with a ``BrokerUnavailable``. The call comes later,
                from the bus's task, or before this returns if the buffer is full. It must not block or raise.

        Raises:
            BrokerUnavailable: the bus is closed for good.
        """
        self._publisher.publish_nowait(channel, payload, done)

    def publish_all_nowait(
        self, messages: Sequence[tuple[str, bytes | Pieces]], done: DoneAll | None = None
    ) -> None:
        """Publish several messages in order without waiting; the buffer takes all or none.

        Args:
            messages: pairs of channel and payload; a large payload may be in pieces.
            done: called once, with the failures by position; an empty mapping means that none failed. As for
                ``publish_nowait``, it may be called before this returns, and must not block or raise.

        Raises:
            BrokerUnavailable: the bus is closed for good.
        """
        self._publisher.publish_all_nowait(messages, done)

    @property
    def congested(self) -> bool:
        """Whether more than half of the buffer is full; a caller that can wait should then wait."""
        return self._publisher.congested

    async def wait_uncongested(self) -> None:
        """Return once less than half of the buffer is full, or an outage has emptied it."""
        await self._publisher.wait_uncongested()

    def subscribe(
        self,
        *patterns: str,
        timeout: float = SUBSCRIBE_TIMEOUT,
        max_messages: int = MAX_MESSAGES,
        max_bytes: int = MAX_BYTES,
    ) -> Subscription:
        """Return a subscription to patterns: an async context manager and an async iterator.

        For example::

            async with bus.subscribe("from:system:*") as messages:
                async for message in messages:
                    ...
        """
        return Subscription(
            self._listener, patterns, timeout=timeout, max_messages=max_messages, max_bytes=max_bytes
        )

    @property
    def up(self) -> bool:
        """Whether the subscriber connection is open and every pattern is confirmed."""
        return self._listener.up

    async def wait_up(self) -> None:
        """Return once the bus is connected and subscribed."""
        await self._listener.wait_up()

    def statistics(self) -> BusStatistics:
        """Return a record of this moment."""
        listener, publisher = self._listener, self._publisher
        return BusStatistics(
            up=listener.up,
            publisher_up=publisher.up,
            cause=listener.cause,
            received=listener.received,
            batches=listener.batches,
            reconnects=listener.connection.reconnects,
            patterns=listener.patterns,
            dropped=listener.dropped,
            published=publisher.published,
            failed=publisher.failed,
            open_bytes=publisher.open_bytes,
        )

    async def lazy_part(self, key: object, run: Callable[..., Awaitable[object]], kind: type[T]) -> T:
        """Return the started value of a part that runs in the bus's own nursery.

        The first call starts the part. The part ends with the bus. If it ends earlier, an error is logged and
        the next call starts it again.

        Args:
            key: identifies the part, and names it in the log.
            run: an async function that reports its value with ``task_status.started(value)``.
            kind: the type of the value.

        Raises:
            BrokerUnavailable: the bus is not running.
        """
        async with self._lazy_part_lock:
            if self._nursery is None or self._nursery.cancel_scope.cancel_called:
                raise BrokerUnavailable("the bus is not running")
            if key not in self._lazy_parts:
                self._lazy_parts[key] = await self._nursery.start(self._run_lazy_part, key, run)
            value = self._lazy_parts[key]
        if not isinstance(value, kind):
            raise TypeError(f"the bus holds a {type(value).__name__} as {key!r}, not a {kind.__name__}")
        return value

    async def _run_lazy_part(
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
                raise  # to the caller that starts the part
            log.exception("bus part ended, the next use starts it again", part=str(key), cause=repr(exc))
        finally:
            self._lazy_parts.pop(key, None)

    async def _probe(self, channel: str) -> None:
        await self._publisher.probe(channel)

    def _on_up(self, up: bool) -> None:
        if up:
            # Redis is reachable: the publisher connection need not wait out its back-off.
            self._publisher.retry_now()
        if self._report_up is not None:
            self._report_up(up)
