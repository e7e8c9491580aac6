"""``Subscriber``: the base class with which plugins listen to Redis."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextvars import ContextVar
from typing import Final, Generic, Self, TypeVar

import structlog
import trio

from tangram.bus.listener import Listener
from tangram.bus.resp import Dial, dial
from tangram.bus.subscriptions import Message, Subscription
from tangram.errors import BrokerRefused, ServiceError
from tangram.redis_url import parse_redis_url

__all__ = ["Subscriber", "service_nursery"]

log = structlog.get_logger("tangram.bus")

service_nursery: Final[ContextVar[trio.Nursery | None]] = ContextVar("service_nursery", default=None)
"""The nursery of the running plugin service; the plugin's host sets it."""

START_TIMEOUT: Final = 2.0
"""Seconds that ``Subscriber.subscribe`` waits for Redis; after that it waits in the background."""

STOP_TIMEOUT: Final = 2.0
"""Seconds that ``Subscriber.cleanup`` waits for a handler to end, also under cancellation."""

StateT = TypeVar("StateT")


class Subscriber(ABC, Generic[StateT]):
    """A task that calls ``message_handler`` for each message of some channels.

    It has a connection of its own.

    Messages are handled one after another. An error of the handler is logged, and the next message follows.
    A payload that is not UTF-8 is logged and skipped. After an outage of Redis the subscriber reconnects.
    If Redis refuses a channel, the subscriber ends with ``BrokerRefused``, and its service with it.

    Args:
        name: the name in log lines.
        redis_url: usually ``state.config.core.redis_url``.
        channels: patterns as for ``PSUBSCRIBE``, for example ``["from:system:*"]``.
        initial_state: passed to each call of the handler.

    Raises:
        ServiceError: ``redis_url`` is None.
        ConfigError: ``redis_url`` is malformed.

    Example:
        In a service::

            class Clicks(tangram.Subscriber[list[str]]):
                async def message_handler(self, event, payload, pattern, state):
                    state.append(payload)

            await Clicks("clicks", state.config.core.redis_url, ["from:demo:*"], []).subscribe()
    """

    def __init__(self, name: str, redis_url: str | None, channels: list[str], initial_state: StateT) -> None:
        # The type of ``config.core.redis_url``, which is None only before there is a broker.
        if redis_url is None:
            raise ServiceError(f"subscriber {name!r} has no redis_url; build it in a service or a lifespan")
        self.name = name
        self.redis_url = redis_url
        self.channels = channels
        self.state = initial_state
        self._address = parse_redis_url(redis_url, where=f"redis_url of subscriber {name}")
        self._dial: Dial = dial
        self._scope: trio.CancelScope | None = None
        self._ended = trio.Event()
        self._task: trio.lowlevel.Task | None = None
        self._own: _OwnNursery | None = None

    @abstractmethod
    async def message_handler(self, event: str, payload: str, pattern: str, state: StateT) -> None:
        """Handle one message.

        Args:
            event: the full name of the Redis channel, for example ``from:demo:click``.
            payload: the text of the message.
            pattern: the entry of ``channels`` that matched.
            state: the ``initial_state``.
        """

    async def subscribe(self) -> None:
        """Start listening in the nursery of the calling service; a second call only warns.

        This returns once subscribed, or after ``START_TIMEOUT`` seconds if Redis is away.

        Raises:
            ServiceError: the caller is not a service.
            BrokerRefused: Redis refuses one of the channels.
        """
        nursery = service_nursery.get()
        if nursery is None:
            raise ServiceError(
                f"subscriber {self.name!r} was started outside a service; "
                "call subscribe() in a service of a plugin, or use `async with subscriber:`"
            )
        await self._start(nursery)

    async def cleanup(self) -> None:
        """Stop listening, and wait until the handler has ended.

        It may be called more than once, and under cancellation.
        """
        if self._scope is None:
            await trio.lowlevel.checkpoint()
            return
        self._scope.cancel()
        if trio.lowlevel.current_task() is self._task:
            return  # the handler stops its own subscriber, and cannot wait for its own end
        with trio.move_on_after(STOP_TIMEOUT, shield=True):
            await self._ended.wait()
            return
        log.warning("subscriber handler does not end", subscriber=self.name, waited=STOP_TIMEOUT)

    def is_active(self) -> bool:
        """Return whether the subscriber is listening."""
        return self._scope is not None

    async def __aenter__(self) -> Self:
        self._own = _OwnNursery()
        nursery = await self._own.open()
        try:
            await self._start(nursery)
        except BaseException:
            await self._own.close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        own, self._own = self._own, None
        try:
            await self.cleanup()
        finally:
            if own is not None:
                await own.close()

    async def _start(self, nursery: trio.Nursery) -> None:
        if self.is_active():
            log.warning("subscriber already started", subscriber=self.name)
            await trio.lowlevel.checkpoint()
            return
        await nursery.start(self._run)

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        listener = Listener(self._address, dial=self._dial, name=f"subscriber {self.name}")
        subscription = Subscription(listener, tuple(self.channels))
        self._ended = trio.Event()
        self._task = trio.lowlevel.current_task()
        refused: BrokerRefused | None = None
        try:
            with trio.CancelScope() as self._scope:
                async with trio.open_nursery() as nursery:
                    subscription.begin()
                    nursery.start_soon(listener.run)
                    try:
                        await self._listen(listener, subscription, task_status)
                    except BrokerRefused as error:
                        refused = error  # raised below, without the nursery's group around it
                        nursery.cancel_scope.cancel()
        finally:
            self._scope = self._task = None
            self._ended.set()
        if refused is not None:
            raise refused

    async def _listen(
        self, listener: Listener, subscription: Subscription, task_status: trio.TaskStatus[None]
    ) -> None:
        with trio.move_on_after(START_TIMEOUT):
            await listener.wait_up()
        subscription.check()
        task_status.started()
        async for message in subscription:
            await self._handle(message)

    async def _handle(self, message: Message) -> None:
        try:
            payload = message.payload.decode()
        except UnicodeDecodeError as exc:
            log.warning("message is not utf-8", subscriber=self.name, channel=message.channel, cause=str(exc))
            return
        try:
            await self.message_handler(message.channel, payload, message.pattern, self.state)
        except (Exception, SystemExit) as exc:
            log.exception(
                "subscriber handler failed",
                subscriber=self.name,
                channel=message.channel,
                cause=repr(exc),
            )


class _OwnNursery:
    """A nursery around the body of the caller's ``async with``: two calls open and close it."""

    def __init__(self) -> None:
        self._manager = trio.open_nursery()

    async def open(self) -> trio.Nursery:
        """Open and return the nursery."""
        self._nursery = await self._manager.__aenter__()
        return self._nursery

    async def close(self) -> None:
        """Cancel the nursery and wait for its tasks."""
        # Without the body's exception: it propagates by itself, and would come back inside a group.
        self._nursery.cancel_scope.cancel()
        await self._manager.__aexit__(None, None, None)
