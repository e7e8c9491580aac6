"""Subscriptions: the messages of patterns in order, in bounded queues, across reconnects."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import Final, NamedTuple, Protocol, Self

import trio

from tangram.errors import BrokerUnavailable

__all__ = ["MAX_BYTES", "MAX_MESSAGES", "Message", "Subscription", "SubscriptionSource"]

MAX_MESSAGES: Final = 4096
"""Messages that are kept for a slow consumer: two seconds of a busy feed."""

MAX_BYTES: Final = 16 * 1024 * 1024
"""Bytes of payload that are kept for a slow consumer; one message of any size is always kept."""

SUBSCRIBE_TIMEOUT: Final = 10.0
"""Seconds that ``async with`` waits for Redis to confirm: a restart or a failover takes less."""


class Message(NamedTuple):
    """One message from Redis."""

    channel: str
    """The full name, for example ``from:system:bound-box``. Bytes that are not UTF-8 appear as ``\\xNN``."""
    payload: bytes
    pattern: str
    """The pattern that matched; a message that matches two patterns comes twice."""

    @property
    def text(self) -> str:
        """The payload as text; raises ``UnicodeDecodeError`` if it is not UTF-8."""
        return self.payload.decode()


class SubscriptionSource(Protocol):
    """The reader of the connection that a subscription belongs to."""

    dropped: int
    """Messages that all subscriptions together have dropped."""

    @property
    def cause(self) -> str:
        """Why Redis is away; empty while it is connected."""

    def add(self, subscription: Subscription) -> None:
        """Deliver the messages of its patterns from now on."""

    def remove(self, subscription: Subscription) -> None:
        """Deliver nothing more."""

    async def wait_confirmed(self, patterns: Iterable[str]) -> None:
        """Return once Redis has confirmed all of the patterns."""


class Subscription:
    """The messages of some patterns: an async context manager and an async iterator.

    ``async with`` waits until Redis has confirmed the patterns, so every message that is published afterwards
    arrives. A plain ``async for message in bus.subscribe(...)`` subscribes with its first step, and may miss
    messages before the confirmation.

    Messages that are published during an outage of Redis are lost, as always with pub/sub. The iteration
    goes on when Redis is back. It ends with ``BrokerUnavailable`` when the bus stops, and with
    ``BrokerRefused`` when Redis refuses one of the patterns, also after a reconnect. If the consumer is too
    slow, the oldest messages are dropped; ``dropped`` counts them.

    Args:
        listener: reads from Redis.
        patterns: as for ``PSUBSCRIBE``.
        timeout: seconds that ``async with`` waits for the confirmation.
        max_messages: messages that are kept for a slow consumer.
        max_bytes: bytes of payload that are kept for it.
    """

    def __init__(
        self,
        listener: SubscriptionSource,
        patterns: tuple[str, ...],
        *,
        timeout: float = SUBSCRIBE_TIMEOUT,
        max_messages: int = MAX_MESSAGES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        if not patterns:
            raise ValueError("expected one or more patterns such as 'from:system:*', got none")
        self.patterns = patterns
        self.dropped = 0
        self._listener = listener
        self._timeout = timeout
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._queue: deque[Message] = deque()
        self._bytes = 0
        self._waiting = trio.lowlevel.ParkingLot()
        self._added = False
        self._ended = ""
        self._kind = BrokerUnavailable

    async def __aenter__(self) -> Self:
        self.begin()
        try:
            await self._confirmed()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        if not self._added and not self._ended:
            self.begin()
        await trio.lowlevel.checkpoint()
        while not self._queue:
            if self._ended == CLOSED:
                raise StopAsyncIteration
            self.check()
            await self._waiting.park()
        message = self._queue.popleft()
        self._bytes -= len(message.payload)
        return message

    def close(self) -> None:
        """End the subscription; its iterators stop. It may be called twice."""
        self._queue.clear()
        self.end(CLOSED)
        if self._added:
            self._added = False
            self._listener.remove(self)

    def push(self, message: Message) -> None:
        """Add one message, for the listener; drop the oldest if there is no room."""
        if self._ended:
            return  # a refused pattern ended it; the consumer gets the error after the queued messages
        self._queue.append(message)
        self._bytes += len(message.payload)
        while len(self._queue) > self._max_messages or (
            self._bytes > self._max_bytes and len(self._queue) > 1
        ):
            self._bytes -= len(self._queue.popleft().payload)
            self.dropped += 1
            self._listener.dropped += 1
        self._waiting.unpark()

    def check(self) -> None:
        """Raise the error with which the subscription ended, if it ended with one."""
        if self._ended and self._ended != CLOSED:
            raise self._kind(self._ended)

    def end(self, why: str, kind: type[BrokerUnavailable] = BrokerUnavailable) -> None:
        """End the subscription with an error, for the listener."""
        if not self._ended:
            self._ended, self._kind = why, kind
        self._waiting.unpark_all()

    async def _confirmed(self) -> None:
        with trio.move_on_after(self._timeout):
            await self._listener.wait_confirmed(self.patterns)
            return
        wanted, cause = ", ".join(self.patterns), self._listener.cause
        message = f"redis did not confirm the subscription to {wanted} within {self._timeout:g} s"
        raise BrokerUnavailable(f"{message}: {cause}" if cause else message)

    def begin(self) -> None:
        """Start to collect messages without waiting for Redis. Entering and iterating call this."""
        if not self._added:
            self._listener.add(self)
            self._added = True


CLOSED = "closed"
