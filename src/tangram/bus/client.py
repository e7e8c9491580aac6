"""`state.redis_client`: every command of redis-py's asyncio client, awaitable from plain Trio tasks.

`RedisClient` is a facade. `publish` goes down the bus's own pipeline, in order with everything else that is
published. Every other command runs on a `Lane`: one asyncio loop on top of Trio, with one redis-py client
on it, opened in the bus's nursery on first use and closed with the bus. Until then neither redis, nor
asyncio, nor trio-asyncio is imported: they cost 7 MB and 60-200 ms, and a server whose plugins
only publish never needs them.

What the lane takes care of, because each of these has bitten somebody:

1. A task that was started outside the loop, an HTTP handler for one, has no "current loop". Commands are
   therefore made tasks of the lane's loop by name, and never look for one.
2. A cancelled command leaves a connection with an answer still to come. Its connection is closed, so that
   the next command cannot get that answer for its own.
3. An error that nobody awaits ends a trio-asyncio loop, and with it everything on it. Here it is logged.
4. asyncio's CancelledError is a BaseException that Trio does not know. A command that the end of the loop
   cut off raises BrokerUnavailable.

One limit remains: an asyncio task that ignores its cancellation keeps the loop, and so the bus, from
ending. No force exists; the supervisor names the bus as stubborn then. No code of redis-py's does this.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeVar

import structlog
import trio

from tangram.bus.redis_loop import COMMAND_TIMEOUT, Lane, within
from tangram.errors import BrokerUnavailable

if TYPE_CHECKING:
    from redis.asyncio import Redis

    Facade = Redis
else:
    Facade = object

__all__ = ["Carrier", "RedisClient"]

log = structlog.get_logger("tangram.bus")

T = TypeVar("T")


BLOCKING: Final = frozenset(
    {
        "blmove", "blmpop", "blpop", "brpop", "brpoplpush", "bzmpop", "bzpopmax", "bzpopmin", "wait",
        "waitaof", "xread", "xreadgroup", "transaction" } )  # fmt: skip
"""Commands that may wait for somebody else, for as long as their caller says."""

FACTORIES: Final = frozenset({"lock", "register_script"})
"""Methods that give an object with commands of its own."""

UNBRIDGED: Final = {
    "monitor": "use redis-cli",
    "client": "several commands may run on one redis_client side by side",
    "keyspace_notifications": "use state.subscribe('__keyspace@0__:*')",
    "from_url": "make a redis.asyncio client of your own on a trio-asyncio loop",
    "from_pool": "make a redis.asyncio client of your own on a trio-asyncio loop",
}
"""Methods that cannot be carried over, and what to do instead."""


class Carrier(Protocol):
    """What the client needs of a bus that runs."""

    url: str

    async def publish(self, channel: bytes | str, payload: bytes | str) -> int:
        """How many Redis clients got it."""

    async def annex(self, key: object, run: Callable[..., Awaitable[object]], kind: type[T]) -> T:
        """What *run* reports as its started value; started when it is first asked for."""


class RedisClient(Facade):
    """redis-py's asyncio client for Trio: ``await state.redis_client.get("key")``; answers are bytes.

    *bus* gives the bus of now, or None while there is none, so a client outlives a restart of the bus.
    Commands may run side by side, from any task. Every command but a blocking one has `COMMAND_TIMEOUT`
    seconds.

    Raises, from every command:
        BrokerUnavailable: Redis is away or did not answer in time, or the bus is not running.
        redis.exceptions.ResponseError: Redis refused the command.
    """

    def __init__(self, bus: Callable[[], Carrier | None]) -> None:
        self._bus = bus

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
        """Do nothing: the bus owns the connections, and other tasks use them."""
        await trio.lowlevel.checkpoint()

    async def close(self, close_connection_pool: bool | None = None) -> None:  # noqa: ARG002 - redis-py's
        """Do nothing, like `aclose`."""
        await trio.lowlevel.checkpoint()

    async def publish(self, channel: Any, message: Any, **kwargs: Any) -> int:  # noqa: ARG002 - redis-py's
        """Publish down the bus's pipeline; the number of Redis clients that got it.

        Raises:
            BrokerUnavailable: Redis is away, refuses, or does not answer in time.
        """
        return await self._current_bus().publish(_encoded(channel), _encoded(message))

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:  # noqa: ARG002
        """Commands that go out together: ``async with client.pipeline() as pipe: pipe.set(...); await
        pipe.execute()``.
        """
        from tangram.bus.remote import Pipeline

        return Pipeline(self._lane, _pipelined, transaction=transaction)

    def pubsub(self, **kwargs: Any) -> Any:
        """redis-py's PubSub on a connection of its own. It ends when Redis goes away; ``state.subscribe``
        does not, and needs no asyncio.
        """
        from tangram.bus.remote import PubSub

        return PubSub(self._lane, lambda redis: redis.pubsub(**kwargs), "pubsub")

    async def _lane(self) -> Lane:
        """The loop and client of the present bus, opened if this is the first use."""
        bus = self._current_bus()
        return await bus.annex("redis client", Lane(bus.url).run, Lane)

    async def _command(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the command *name* within its deadline."""
        word = str(args[0]).partition(" ")[0].lower() if name == "execute_command" and args else name

        def call(redis: Redis) -> Any:
            return getattr(redis, name)(*args, **kwargs)

        lane = await self._lane()
        if word in BLOCKING:
            return await lane.call(call)
        return await within(COMMAND_TIMEOUT, name, lane.call, call)

    def _current_bus(self) -> Carrier:
        bus = self._bus()
        if bus is None:
            raise BrokerUnavailable("the bus is not running")
        return bus

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            return _method(self._lane, self._command, name)


def _pipelined(name: str) -> bool:
    """Whether redis-py's pipelines have the command *name*."""
    from redis.asyncio.client import Pipeline

    return callable(getattr(Pipeline, name, None))


def _encoded(value: Any) -> bytes | str:
    """What redis-py takes as a value: bytes, text and numbers."""
    if isinstance(value, bytes | str):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    raise TypeError(
        f"cannot publish {value!r}; expected bytes, str or a number: encode it first, as JSON say"
    )


def _method(lane: Callable[[], Awaitable[Lane]], run: Callable[..., Awaitable[Any]], name: str) -> Any:
    """The facade's attribute *name*: of the same kind as redis-py's, for Trio."""
    if name.startswith("_"):
        raise AttributeError(f"'RedisClient' object has no attribute {name!r}")
    if name in UNBRIDGED:
        raise AttributeError(f"redis_client.{name} cannot be used from Trio; {UNBRIDGED[name]}")
    from redis.asyncio import Redis as AsyncRedis

    from tangram.bus.remote import Remote, RemoteIterator

    target = getattr(AsyncRedis, name, None)
    if not callable(target):
        raise AttributeError(  # noqa: TRY004 - what a missing attribute is
            f"redis_client has no command {name!r}; it has those of redis.asyncio.Redis"
        )

    if inspect.isasyncgenfunction(target):

        def iterate(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            return RemoteIterator(lane, lambda redis: getattr(redis, name)(*args, **kwargs))

        return iterate
    if name in FACTORIES:

        def make(*args: Any, **kwargs: Any) -> Remote:
            return Remote(lane, lambda redis: getattr(redis, name)(*args, **kwargs), name)

        return make

    async def command(*args: Any, **kwargs: Any) -> Any:
        return await run(name, args, kwargs)

    command.__name__ = command.__qualname__ = name
    return command
