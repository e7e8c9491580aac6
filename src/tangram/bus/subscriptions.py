"""What `Bus.subscribe` gives: messages of some patterns, in order, bounded, over reconnects."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import trio

from tangram.errors import BrokerUnavailable

__all__ = ["MAX_BYTES", "MAX_MESSAGES", "Feed", "Message", "Subscription"]

MAX_MESSAGES = 4096
"""Messages kept for a consumer that is behind: two seconds of a busy feed."""

MAX_BYTES = 16 * 1024 * 1024
"""Bytes of payload kept for it; one message of any size is always kept."""

SUBSCRIBE_TIMEOUT = 10.0
"""Seconds that ``async with`` waits for Redis to confirm: an outage of the usual length (a restart, a
failover) fits in."""


class Message(NamedTuple):
    """One message from Redis."""

    channel: str
    """The full name, ``from:system:bound-box``. Bytes that are no UTF-8 are shown as ``\\xNN``."""
    payload: bytes
    pattern: str
    """The pattern through which it came; a message that fits two patterns comes twice."""

    @property
    def text(self) -> str:
        """The payload as text; raises UnicodeDecodeError where it is none."""
        return self.payload.decode()


class Feed(Protocol):
    """What a subscription needs of whoever reads from Redis for it."""

    dropped: int
    """Messages dropped for all subscriptions together."""

    @property
    def cause(self) -> str:
        """Why Redis is away; empty while it is there."""

    def add(self, subscription: Subscription) -> None:
        """Give it its messages from now on."""

    def remove(self, subscription: Subscription) -> None:
        """Give it no more."""

    async def wait_confirmed(self, patterns: Iterable[str]) -> None:
        """Return when Redis has confirmed all of the patterns."""


class Subscription:
    """Messages of *patterns* (as of ``PSUBSCRIBE``), an async context manager and an async iterator.

    ``async with`` waits until Redis has confirmed, so a message published afterwards arrives. A plain
    ``async for message in bus.subscribe(...)`` begins with its first turn and promises nothing about what
    was published before. What is published while Redis is away is lost, as ever with pub/sub; the iteration
    goes on when Redis is back; it ends with BrokerUnavailable when the bus itself is stopped, and with
    BrokerRefused when Redis refuses one of the patterns, also after a reconnect. The oldest messages are
    dropped when the consumer is too far behind; `dropped` counts them.
    """

    def __init__(
        self,
        listener: Feed,
        patterns: tuple[str, ...],
        *,
        timeout: float = SUBSCRIBE_TIMEOUT,
        max_messages: int = MAX_MESSAGES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        if not patterns:
            raise ValueError("no pattern to subscribe to; expected one or more like 'from:system:*'")
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
        """End it: waiting consumers finish. May be called twice."""
        self._queue.clear()
        self.end(CLOSED)
        if self._added:
            self._added = False
            self._listener.remove(self)

    def push(self, message: Message) -> None:
        """Of the listener: one more message, at the cost of the oldest where there is no room."""
        if self._ended:
            return  # by one of its patterns; who is to hear of that must come to the end of the queue
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
        """Raise why no more messages will come, unless they will, or it was closed."""
        if self._ended and self._ended != CLOSED:
            raise self._kind(self._ended)

    def end(self, why: str, kind: type[BrokerUnavailable] = BrokerUnavailable) -> None:
        """Of the listener: no more messages will come."""
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
        """Start to collect, without waiting for Redis. Iterating and entering do so by themselves."""
        if not self._added:
            self._listener.add(self)
            self._added = True


CLOSED = "closed"
