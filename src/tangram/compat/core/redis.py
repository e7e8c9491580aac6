"""The module ``tangram_core.redis``: a ``Subscriber`` on asyncio that survives outages."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tangram.bus.redis_py import open_single
from tangram.redis_url import parse_redis_url

__all__ = ["Subscriber"]

log = structlog.get_logger("tangram.compat")

StateT = TypeVar("StateT")

RETRY_FIRST: Final = 0.05
RETRY_MOST: Final = 2.0
"""Seconds between attempts to reach Redis, doubling from the first to the most."""

STOP_SECONDS: Final = 2.0
"""Seconds for a handler to end in ``cleanup``."""


class Subscriber(ABC, Generic[StateT]):
    """Listens to *channels*, each a pattern as for ``PSUBSCRIBE``, on a connection of its own.

    Messages are handled one after another. A handler's exception is logged and costs that message; so does a
    payload that is not UTF-8. When Redis comes back after an outage, the subscriber connects again.
    """

    redis: Redis | None
    pubsub: PubSub | None
    task: asyncio.Task[None] | None

    def __init__(self, name: str, redis_url: str, channels: list[str], initial_state: StateT) -> None:
        self.name = name
        self.redis_url = redis_url
        self.channels = channels
        self.state = initial_state
        self.redis = None
        self.pubsub = None
        self.task = None

    @abstractmethod
    async def message_handler(self, event: str, payload: str, pattern: str, state: StateT) -> None:
        """Handle one message.

        Args:
            event: The full Redis channel.
            payload: The text of the message.
            pattern: The pattern that matched.
            state: The state of this subscriber.
        """

    async def subscribe(self) -> None:
        """Start listening; a second call only logs a warning.

        Raises:
            ConfigError: the URL is malformed.
            RedisError: Redis cannot be reached now.
        """
        if self.is_active():
            log.warning("subscriber started twice", subscriber=self.name)
            return
        parse_redis_url(self.redis_url, where=f"redis_url of subscriber {self.name}")
        self.redis = open_single(self.redis_url)
        try:
            self.pubsub = await self._open()
        except BaseException:
            await self._close()
            raise
        self.task = asyncio.create_task(self._listen(), name=f"subscriber {self.name}")

    async def cleanup(self) -> None:
        """Stop listening and close the connection. Safe under cancellation, and more than once."""
        task, self.task = self.task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.wait({task}, timeout=STOP_SECONDS)
            if not task.done():
                log.warning("subscriber handler does not end", subscriber=self.name, waited=STOP_SECONDS)
        await self._close()

    def is_active(self) -> bool:
        """Return whether the subscriber listens."""
        return self.task is not None and not self.task.done()

    async def _open(self) -> PubSub:
        assert self.redis is not None
        pubsub = self.redis.pubsub(ignore_subscribe_messages=True)
        await pubsub.psubscribe(*self.channels)
        return pubsub

    async def _listen(self) -> None:
        delay = RETRY_FIRST
        while True:
            try:
                if self.pubsub is None:
                    self.pubsub = await self._open()
                    log.info("subscriber connected again", subscriber=self.name)
                delay = RETRY_FIRST
                async for message in self.pubsub.listen():
                    await self._handle(message)
            except (RedisConnectionError, RedisTimeoutError, OSError) as error:
                log.warning("subscriber lost redis", subscriber=self.name, cause=str(error), again_in=delay)
            await self._drop_pubsub()
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_MOST)

    async def _handle(self, message: dict[str, Any]) -> None:
        if message["type"] != "pmessage":
            return
        channel = message["channel"].decode("utf-8", "replace")
        try:
            payload = message["data"].decode()
        except UnicodeDecodeError as error:
            log.warning("message is not utf-8", subscriber=self.name, channel=channel, cause=str(error))
            return
        try:
            await self.message_handler(
                channel, payload, message["pattern"].decode("utf-8", "replace"), self.state
            )
        except Exception as error:
            log.exception(
                "subscriber handler failed", subscriber=self.name, channel=channel, cause=repr(error)
            )

    async def _drop_pubsub(self) -> None:
        pubsub, self.pubsub = self.pubsub, None
        if pubsub is not None:
            with suppress(RedisError, OSError):
                await pubsub.aclose()  # type: ignore[no-untyped-call]

    async def _close(self) -> None:
        await self._drop_pubsub()
        redis, self.redis = self.redis, None
        if redis is not None:
            with suppress(RedisError, OSError):
                await redis.aclose()
