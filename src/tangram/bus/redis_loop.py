"""A lane: one asyncio loop on top of Trio with a redis-py client on it, for the bus's own nursery.

`client` says what it takes care of, and why.
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
from tangram.redis_url import redact_url

if TYPE_CHECKING:
    import asyncio

    from redis.asyncio import Redis

__all__ = ["COMMAND_TIMEOUT", "Lane", "within"]

log = structlog.get_logger("tangram.bus")

T = TypeVar("T")

COMMAND_TIMEOUT = 10.0
"""Seconds for a command that does not wait on purpose. A script may take Redis one or two; who waits for
more than ten is better told."""

CLOSE_TIMEOUT = 2.0
"""Seconds for closing the lane's connections, and for commands under way to end."""


async def within(seconds: float, name: str, call: Callable[..., Awaitable[T]], *args: Any) -> T:
    """``await call(*args)``, or BrokerUnavailable after *seconds*."""
    with trio.move_on_after(seconds):
        return await call(*args)
    raise BrokerUnavailable(f"redis did not answer {name!r} within {seconds:g} s")


@contextmanager
def _told_clearly(url: str) -> Iterator[None]:
    """Turn redis-py's and the system's ways to say "away" into BrokerUnavailable; what Redis itself answers
    stays redis-py's exception.
    """
    import redis.exceptions

    away = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError)
    try:
        yield
    except away as exc:
        raise BrokerUnavailable(f"redis at {redact_url(url)} is away: {exc}") from exc


class Lane:
    """An asyncio loop on top of Trio with a redis-py client on it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.redis: Redis = cast("Redis", None)
        self.loop: asyncio.AbstractEventLoop = cast("asyncio.AbstractEventLoop", None)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    async def run(self, *, task_status: trio.TaskStatus[Lane]) -> None:
        import trio_asyncio

        async with trio_asyncio.open_loop() as loop:
            loop.set_exception_handler(_complain)
            self.loop = loop
            self.redis = _open_client(self.url)
            try:
                task_status.started(self)
                await trio.sleep_forever()
            finally:
                self._closing = True
                with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                    await self._close()

    async def call(self, function: Callable[[Redis], Any]) -> Any:
        """What *function* of the client gives, awaited on the loop if it is awaitable.

        Raises:
            BrokerUnavailable: Redis is away, or the lane is closed.
        """
        import asyncio

        import trio_asyncio

        if self._closing:
            raise BrokerUnavailable(CLOSED)
        # By name: the caller may stand outside the loop, where asyncio knows of none. On the asyncio side the
        # task finds its loop by itself.
        task = self.loop.create_task(_awaited(function, self.redis))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with _told_clearly(self.url):
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
                asyncio.ensure_future(_settled(set(self._tasks)), loop=self.loop)
            )
        closing = self.loop.create_task(
            _awaited(lambda redis: redis.aclose(close_connection_pool=True), self.redis)
        )
        await trio_asyncio.run_aio_future(closing)


CLOSED: Final = "the bus was stopped; its redis client is closed"


async def _awaited(function: Callable[[Redis], Any], redis: Redis) -> Any:
    """On the asyncio side: call and await."""
    result = function(redis)
    return await result if inspect.isawaitable(result) else result


async def _settled(tasks: set[asyncio.Task[Any]]) -> None:
    """On the asyncio side: wait for *tasks*, whatever becomes of them."""
    import asyncio

    await asyncio.wait(tasks)


def _complain(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    exc = context.get("exception")
    log.error(
        "an asyncio task of the redis client failed", cause=repr(exc or context.get("message")), exc_info=exc
    )


def _open_client(url: str) -> Redis:
    from redis.asyncio import Redis as AsyncRedis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return AsyncRedis.from_url(
        url,
        protocol=2,
        socket_connect_timeout=CONNECT_TIMEOUT,
        # Our own deadline tells blocking commands from others; this one does not.
        socket_timeout=None,
        # A command whose answer was lost may have been carried out; whether it may be repeated, its caller
        # knows.
        retry=Retry(NoBackoff(), 0),
    )
