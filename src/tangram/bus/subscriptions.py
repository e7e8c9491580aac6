"""Subscriptions: the messages of patterns in order, in bounded queues, across reconnects."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, Self, TypeVar, overload

import msgspec
import structlog
import trio

from tangram.bus.topics import parse_from, parse_to
from tangram.errors import BadMessage, BrokerUnavailable
from tangram.log_limit import LogLimit

__all__ = ["MAX_BYTES", "MAX_MESSAGES", "Message", "Subscription", "SubscriptionSource"]

MAX_MESSAGES: Final = 4096
"""Messages that are kept for a slow consumer: two seconds of a busy feed."""

MAX_BYTES: Final = 16 * 1024 * 1024
"""Bytes of payload that are kept for a slow consumer; one message of any size is always kept."""

log = structlog.get_logger("tangram.bus")

T = TypeVar("T")

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
        """The payload as text; bytes that are not UTF-8 are replaced by ``\ufffd``."""
        return self.payload.decode(errors="replace")

    @property
    def topic(self) -> str | None:
        """The topic: ``secret:x`` of ``from:secret:x:cmd``; None for names without a topic.

        Compare it before you act on a message. A pattern does not tell topics apart: ``from:secret:*`` also
        matches the events of the topic ``secret:x``, for which other tokens are given out.
        """
        split = parse_to(self.channel.encode()) or parse_from(self.channel.encode())
        return None if split is None else split[0]

    @property
    def event(self) -> str | None:
        """The event: ``cmd`` of ``from:secret:x:cmd``; None for a name that is not of a topic."""
        split = parse_to(self.channel.encode()) or parse_from(self.channel.encode())
        return None if split is None else split[1]

    @property
    def sender(self) -> str:
        """The origin: "client", "server", or "redis" for a name without a topic."""
        kind = self.channel.partition(":")[0]
        return {"from": "client", "to": "server"}.get(kind, "redis") if self.topic is not None else "redis"

    @overload
    def json(self) -> Any: ...
    @overload
    def json(self, type: type[T]) -> T: ...
    def json(self, type: Any = Any) -> Any:  # noqa: A002 - the same
        """Return the payload, decoded from JSON.

        Example::

            @dataclass
            class Ask:
                name: str

            ask = message.json(Ask)

        Args:
            type: the expected type: a dataclass, an attrs class, a TypedDict, ``list[int]`` and so on.

        Raises:
            BadMessage: the payload is not JSON, or does not fit the type.
        """
        try:
            return msgspec.json.decode(self.payload, type=type)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            text = f"message on {self.channel!r}: {error}"
            raise BadMessage(text, channel=self.channel, sender=self.sender, topic=self.topic) from error


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
        self._log_limit = LogLimit()

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

    @overload
    def decoded(self) -> AsyncIterator[tuple[Message, Any]]: ...
    @overload
    def decoded(self, type: type[T]) -> AsyncIterator[tuple[Message, T]]: ...
    async def decoded(self, type: Any = Any) -> AsyncIterator[tuple[Message, Any]]:  # noqa: A002 - as in json
        """Iterate over messages and their payloads, decoded from JSON.

        A message that is not JSON, or does not fit the type, is skipped. The first such message of a topic
        and event is logged, then at most one a minute.

        Example::

            async for message, ask in messages.decoded(Ask):
                await state.publish("to:chat:answer", json.dumps({"you": ask.name}))

        Args:
            type: as for ``Message.json``.
        """
        async for message in self:
            try:
                value = message.json(type)
            except BadMessage as error:
                self._log_bad(message, error)
                continue
            yield message, value

    def _log_bad(self, message: Message, error: BadMessage) -> None:
        # A client chooses its events: the limit bounds the lines also for very many of them.
        if self._log_limit.allows("message dropped", message.channel, trio.current_time()):
            log.warning(
                "message dropped",
                sender=error.sender,
                topic=error.topic,
                cause=str(error)[:200],
            )

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


CLOSED: Final = "closed"
