"""One asyncio loop on top of Trio with a redis-py client, in the bus's own nursery.

The docstring of ``tangram.bus.client`` lists its duties and their reasons.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import structlog
import trio

from tangram.bus.resp import CONNECT_TIMEOUT
from tangram.errors import BrokerUnavailable
from tangram.redis_url import parse_redis_url, redact_url

if TYPE_CHECKING:
    import asyncio

    from redis.asyncio import Redis

__all__ = ["COMMAND_TIMEOUT", "RedisLoop", "within"]

log = structlog.get_logger("tangram.bus")

T = TypeVar("T")

COMMAND_TIMEOUT: Final = 10.0
"""Seconds for a command that does not block on purpose. A script may keep Redis busy for one or two; after
ten an error is more useful than waiting.
"""

CLOSE_TIMEOUT: Final = 2.0
"""Seconds to cancel running commands and to close the connections."""


async def within(seconds: float, name: str, call: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Await ``call(*args)``.

    Raises:
        BrokerUnavailable: it took longer than ``seconds``; ``name`` is the command in the message.
    """
    with trio.move_on_after(seconds):
        return await call(*args)
    raise BrokerUnavailable(f"redis did not answer {name!r} within {seconds:g} s")


@contextmanager
def _translated_outages(url: str) -> Iterator[None]:
    """Turn connection errors of redis-py and of the system into ``BrokerUnavailable``.

    Error answers of Redis stay exceptions of redis-py.
    """
    import redis.exceptions

    away = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError)
    try:
        yield
    except away as exc:
        raise BrokerUnavailable(f"redis at {redact_url(url)} is away: {exc}") from exc


class RedisLoop:
    """An asyncio loop on top of Trio with a redis-py client on it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.redis: Redis = cast("Redis", None)
        self.loop: asyncio.AbstractEventLoop = cast("asyncio.AbstractEventLoop", None)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    async def run(self, *, task_status: trio.TaskStatus[RedisLoop]) -> None:
        """Run the loop until cancelled; then end running commands and close the connections."""
        import trio_asyncio

        # Outside of the loop's nursery: an error must reach the caller without an exception group.
        self.redis = _open_client(self.url)
        async with trio_asyncio.open_loop() as loop:
            loop.set_exception_handler(_log_failed_task)
            self.loop = loop
            try:
                task_status.started(self)
                await trio.sleep_forever()
            finally:
                self._closing = True
                with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                    await self._close()

    async def call(self, function: Callable[[Redis], Any]) -> Any:
        """Call a function with the client on the loop, await its result, and return it.

        Raises:
            BrokerUnavailable: Redis is away, or the loop is closed.
        """
        import asyncio

        import trio_asyncio

        if self._closing:
            raise BrokerUnavailable(CLOSED)
        # On this loop explicitly: the caller may run outside of it, where asyncio has no current loop.
        task = self.loop.create_task(_call_and_await(function, self.redis))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with _translated_outages(self.url):
            try:
                return await trio_asyncio.run_aio_future(task)
            except asyncio.CancelledError:
                raise BrokerUnavailable(CLOSED) from None

    async def _close(self) -> None:
        import asyncio

        import trio_asyncio

        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await trio_asyncio.run_aio_future(
                asyncio.ensure_future(_wait_for(set(self._tasks)), loop=self.loop)
            )
        closing = self.loop.create_task(_call_and_await(_close_client, self.redis))
        await trio_asyncio.run_aio_future(closing)


async def _close_client(redis: Redis) -> None:
    """Close a client, and the connections to sentinels that it opened; runs on asyncio."""
    pool = getattr(redis, "connection_pool", None)  # the client of a cluster has none
    manager = getattr(pool, "sentinel_manager", None)
    for sentinel in [] if manager is None else manager.sentinels:
        await sentinel.aclose()
    await (redis.aclose() if pool is None else redis.aclose(close_connection_pool=True))


CLOSED: Final = "the bus was stopped; its redis client is closed"


async def _call_and_await(function: Callable[[Redis], Any], redis: Redis) -> Any:
    """Call a function and await its result; runs on asyncio."""
    result = function(redis)
    return await result if inspect.isawaitable(result) else result


async def _wait_for(tasks: set[asyncio.Task[Any]]) -> None:
    """Wait for tasks to end, with or without errors; runs on asyncio."""
    import asyncio

    await asyncio.wait(tasks)


def _log_failed_task(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    exc = context.get("exception")
    log.error("redis client task failed", cause=repr(exc or context.get("message")), exc_info=exc)


def _open_client(url: str) -> Redis:
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    from tangram.bus.redis_py import open_client

    client = open_client(
        url,
        protocol=2,
        socket_connect_timeout=CONNECT_TIMEOUT,
        # ``COMMAND_TIMEOUT`` leaves blocking commands alone; this timeout would end them too.
        socket_timeout=None,
        # A command without an answer may have been carried out; only its caller knows whether to repeat it.
        retry=Retry(NoBackoff(), 0),
    )
    if parse_redis_url(url).password is None and hasattr(client, "connection_pool"):
        # redis-py would log in with the name and an empty password, which Redis refuses.
        client.connection_pool.connection_kwargs.pop("username", None)
    return client
