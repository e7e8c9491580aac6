"""``state.redis_client``: the commands of redis-py's asyncio client, for Trio tasks.

``RedisClient`` is a facade. Its ``publish`` uses the bus's own publisher, in order with all other messages.
Every other command runs on a ``RedisLoop``: one asyncio loop on top of Trio with one redis-py client on it.
The loop is opened in the bus's nursery on first use, and closed with the bus. Until then neither redis, nor
asyncio, nor trio-asyncio is imported: they cost 7 MB and 60-200 ms, and a server whose plugins only publish
never needs them.

The duties of the loop, each of which prevents a known failure:

1. A task that was started outside the loop, for example an HTTP handler, has no current asyncio loop.
   Commands are therefore made tasks of this loop explicitly.
2. A cancelled command leaves a connection on which its answer is still to come. The connection is closed, so
   that the next command cannot take that answer for its own.
3. An error in a task that no other task awaits would end a trio-asyncio loop and all its tasks. Here it is
   logged.
4. asyncio's ``CancelledError`` is a ``BaseException`` that Trio does not know. A command that is cut off by
   the end of the loop raises ``BrokerUnavailable`` instead.

One limit remains: an asyncio task that ignores its cancellation keeps the loop, and so the bus, from
ending. It cannot be forced; the supervisor then reports the bus as stubborn. No code of redis-py does this.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeVar

import structlog
import trio

from tangram.bus.redis_loop import COMMAND_TIMEOUT, RedisLoop, within
from tangram.bus.scripts import Words, is_publication
from tangram.errors import BrokerUnavailable

if TYPE_CHECKING:
    from redis.asyncio import Redis

    Facade = Redis
else:
    Facade = object

__all__ = ["RedisClient", "RunningBus"]

log = structlog.get_logger("tangram.bus")

T = TypeVar("T")


BLOCKING: Final = frozenset(
    {
        "blmove", "blmpop", "blpop", "brpop", "brpoplpush", "bzmpop", "bzpopmax", "bzpopmin", "wait",
        "waitaof", "xread", "xreadgroup", "transaction" } )  # fmt: skip
"""Commands that may block for as long as their caller says; they have no deadline here."""

FACTORIES: Final = frozenset({"lock", "register_script"})
"""Methods that return an object with commands of its own."""

UNBRIDGED: Final = {
    "monitor": "use redis-cli",
    "client": "several commands may run on one redis_client side by side",
    "keyspace_notifications": "use state.subscribe('__keyspace@0__:*')",
    "from_url": "make a redis.asyncio client of your own on a trio-asyncio loop",
    "from_pool": "make a redis.asyncio client of your own on a trio-asyncio loop",
}
"""Methods that cannot be used from Trio, and the alternative to each."""


class RunningBus(Protocol):
    """The part of a running bus that the client uses."""

    url: str

    async def publish(self, channel: bytes | str, payload: bytes | str) -> int:
        """Publish one message, and return the number of receivers."""

    async def lazy_part(self, key: object, run: Callable[..., Awaitable[object]], kind: type[T]) -> T:
        """Return the started value of a part of the bus that is started by its first use."""


class RedisClient(Facade):
    """redis-py's asyncio client for Trio; answers are bytes.

    For example, ``await state.redis_client.get("key")``.

    Commands may run side by side, from any task. Each command except the blocking ones has
    ``COMMAND_TIMEOUT`` seconds. Every command may raise:

    - ``BrokerUnavailable``: Redis is away or did not answer in time, or the bus is not running.
    - ``redis.exceptions.ResponseError``: Redis refused the command.

    Args:
        bus: returns the running bus, or None between two of them. So a client outlives a restart of the bus.
        publish: publishes instead of the bus, for example with the token of a placed plugin.
        guard: returns the command that a pipeline sends instead of a publication; None for the publication.
    """

    def __init__(
        self,
        bus: Callable[[], RunningBus | None],
        *,
        publish: Callable[[str | bytes, str | bytes], Awaitable[int]] | None = None,
        guard: Callable[[str | bytes, str | bytes], Words | None] = lambda _channel, _payload: None,
    ) -> None:
        self._bus = bus
        self._publish = publish
        self._guard = guard

    def __repr__(self) -> str:
        return "<tangram RedisClient>"

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self, close_connection_pool: bool | None = None) -> None:  # noqa: ARG002 - redis-py's
        """Do nothing: the connections belong to the bus, and other tasks use them."""
        await trio.lowlevel.checkpoint()

    async def close(self, close_connection_pool: bool | None = None) -> None:  # noqa: ARG002 - redis-py's
        """Do nothing, like ``aclose``."""
        await trio.lowlevel.checkpoint()

    async def publish(self, channel: Any, message: Any, **kwargs: Any) -> int:  # noqa: ARG002 - redis-py's
        """Publish one message through the bus, and return the number of receivers.

        Raises:
            BrokerUnavailable: Redis is away, refuses, or does not answer in time.
        """
        publish = self._publish or self._current_bus().publish
        return await publish(_encoded(channel), _encoded(message))

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:  # noqa: ARG002 - the signature of the replaced method
        """Return a pipeline, whose commands are sent together.

        For example::

            async with state.redis_client.pipeline() as pipe:
                pipe.set("a", 1)
                pipe.incr("b")
                answers = await pipe.execute()
        """
        from tangram.bus.remote import Pipeline

        return Pipeline(self._redis_loop, _pipelined, transaction=transaction, guard=self._guarded)

    def _guarded(self, words: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Return the command that is sent instead of a publication, or None."""
        return self._guard(_encoded(words[1]), _encoded(words[2])) if is_publication(words) else None

    def pubsub(self, **kwargs: Any) -> Any:
        """Return redis-py's PubSub, on a connection of its own.

        It ends when Redis goes away. ``state.subscribe`` does not, and needs no asyncio.
        """
        from tangram.bus.remote import PubSub

        return PubSub(self._redis_loop, lambda redis: redis.pubsub(**kwargs), "pubsub")

    async def _redis_loop(self) -> RedisLoop:
        """Return the loop of the running bus; the first use opens it."""
        bus = self._current_bus()
        return await bus.lazy_part("redis client", RedisLoop(bus.url).run, RedisLoop)

    async def _command(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one command within its deadline."""
        if name == "execute_command" and is_publication(args):
            return await self.publish(args[1], args[2])
        word = str(args[0]).partition(" ")[0].lower() if name == "execute_command" and args else name

        def call(redis: Redis) -> Any:
            return getattr(redis, name)(*args, **kwargs)

        loop = await self._redis_loop()
        if word in BLOCKING:
            return await loop.call(call)
        return await within(COMMAND_TIMEOUT, name, loop.call, call)

    def _current_bus(self) -> RunningBus:
        bus = self._bus()
        if bus is None:
            raise BrokerUnavailable("the bus is not running")
        return bus

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            return _method(self._redis_loop, self._command, name)


def _pipelined(name: str) -> bool:
    """Return whether redis-py's pipelines have a command."""
    from redis.asyncio.client import Pipeline

    return callable(getattr(Pipeline, name, None))


def _encoded(value: Any) -> bytes | str:
    """Return a value as redis-py would encode it: bytes, text or a number."""
    if isinstance(value, bytes | str):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    raise TypeError(
        f"cannot publish {value!r}; expected bytes, str or a number: encode it first, for example as JSON"
    )


def _method(
    redis_loop: Callable[[], Awaitable[RedisLoop]], run: Callable[..., Awaitable[Any]], name: str
) -> Any:
    """Return the attribute of the facade with a name: the counterpart of redis-py's, for Trio."""
    if name.startswith("_"):
        raise AttributeError(f"'RedisClient' object has no attribute {name!r}")
    if name in UNBRIDGED:
        raise AttributeError(f"redis_client.{name} cannot be used from Trio; {UNBRIDGED[name]}")
    from redis.asyncio import Redis as AsyncRedis

    from tangram.bus.remote import Remote, RemoteIterator

    target = getattr(AsyncRedis, name, None)
    if not callable(target):
        raise AttributeError(  # noqa: TRY004 - a missing attribute
            f"redis_client has no command {name!r}; it has those of redis.asyncio.Redis"
        )

    if inspect.isasyncgenfunction(target):

        def iterate(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            return RemoteIterator(redis_loop, lambda redis: getattr(redis, name)(*args, **kwargs))

        return iterate
    if name in FACTORIES:

        def make(*args: Any, **kwargs: Any) -> Remote:
            return Remote(redis_loop, lambda redis: getattr(redis, name)(*args, **kwargs), name)

        return make

    async def command(*args: Any, **kwargs: Any) -> Any:
        return await run(name, args, kwargs)

    command.__name__ = command.__qualname__ = name
    return command
