"""`Subscriber`: the base class by which plugins listen to Redis, as the plugin guide shows it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextvars import ContextVar
from typing import Generic, Self, TypeVar

import structlog
import trio

from tangram.bus.listener import Listener
from tangram.bus.resp import Dial, dial
from tangram.bus.subscriptions import Message, Subscription
from tangram.errors import BrokerRefused, ServiceError
from tangram.redis_url import parse_redis_url

__all__ = ["Subscriber", "service_nursery"]

log = structlog.get_logger("tangram.bus")

service_nursery: ContextVar[trio.Nursery | None] = ContextVar("service_nursery", default=None)
"""The nursery of the plugin service that is running; whoever runs services sets it."""

START_TIMEOUT = 2.0
"""Seconds that `Subscriber.subscribe` waits for Redis; one that is away for longer is waited for in the
background."""

STOP_TIMEOUT = 2.0
"""Seconds that `Subscriber.cleanup` waits for a handler to end, under cancellation too."""

StateT = TypeVar("StateT")


class Subscriber(ABC, Generic[StateT]):
    """Listens to *channels*, each a pattern as of ``PSUBSCRIBE``, on a connection of its own.

    Messages are handled one after another. A handler's error is logged and costs that message; so does a
    payload that is not UTF-8. When Redis goes away, the connection is made anew as soon as it is back. When
    it refuses a channel, the subscriber ends with BrokerRefused, and with it the service that it belongs to.
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
        """Handle one message: *event* is the full Redis channel, *payload* its text, *pattern* what it
        matched.
        """

    async def subscribe(self) -> None:
        """Start listening, in the nursery of the calling service. A second call only warns.

        Returns once subscribed, or after `START_TIMEOUT` seconds if Redis is away.

        Raises:
            ServiceError: called outside a service.
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
        """Stop listening, and wait until the handler has ended. Safe under cancellation, and more than
        once.
        """
        if self._scope is None:
            await trio.lowlevel.checkpoint()
            return
        self._scope.cancel()
        if trio.lowlevel.current_task() is self._task:
            return  # a handler stops its own subscriber: waiting for itself would be for ever
        with trio.move_on_after(STOP_TIMEOUT, shield=True):
            await self._ended.wait()
            return
        log.warning("a subscriber's handler does not end", subscriber=self.name, waited=STOP_TIMEOUT)

    def is_active(self) -> bool:
        """Whether it listens."""
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
            log.warning("a subscriber is started twice", subscriber=self.name)
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
                        refused = error  # to be told without the nursery's group around it
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
            payload = message.text
        except UnicodeDecodeError as exc:
            log.warning(
                "a message is not utf-8", subscriber=self.name, channel=message.channel, cause=str(exc)
            )
            return
        try:
            await self.message_handler(message.channel, payload, message.pattern, self.state)
        except Exception as exc:
            log.exception(
                "a subscriber's handler failed",
                subscriber=self.name,
                channel=message.channel,
                cause=repr(exc),
            )


class _OwnNursery:
    """A nursery whose block is the body of somebody else's ``async with``."""

    def __init__(self) -> None:
        self._manager = trio.open_nursery()

    async def open(self) -> trio.Nursery:
        self._nursery = await self._manager.__aenter__()
        return self._nursery

    async def close(self) -> None:
        # The body's exception is not handed in: it goes its own way, and would come back wrapped in a group.
        self._nursery.cancel_scope.cancel()
        await self._manager.__aexit__(None, None, None)
