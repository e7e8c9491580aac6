"""Trio's side of objects on the redis client's loop: pipelines, pub/sub, locks, iterators."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self

import trio

from tangram.bus.redis_loop import COMMAND_TIMEOUT, within
from tangram.errors import BrokerUnavailable

if TYPE_CHECKING:
    from tangram.bus.redis_loop import RedisLoop

__all__ = ["Pipeline", "PubSub", "Remote", "RemoteIterator"]

LoopGetter = Callable[[], Awaitable["RedisLoop"]]
Make = Callable[[Any], Any]

CLOSE_TIMEOUT: Final = 2.0
"""Seconds for an object's clean-up, which also happens under cancellation."""


class Remote:
    """An object on the loop, made by its first use; its methods are awaited there.

    Args:
        redis_loop: returns the loop of the running bus.
        make: makes the object from a redis-py client.
        name: the kind of the object, for error messages.
    """

    def __init__(self, redis_loop: LoopGetter, make: Make, name: str) -> None:
        self._redis_loop = redis_loop
        self._make = make
        self._name = name
        self._home: RedisLoop | None = None
        self._object: Any = None

    async def _call(self, function: Callable[[Any], Any]) -> Any:
        loop = await self._redis_loop()
        if self._home is None:
            self._home = loop
            self._object = self._make(loop.redis)
        elif self._home is not loop:
            raise BrokerUnavailable(f"this {self._name} belongs to a bus that has stopped; make a new one")
        return await loop.call(lambda _redis: function(self._object))

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return await self._call(lambda made: made(*args, **kwargs))

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        if name.startswith("_"):
            raise AttributeError(name)

        async def method(*args: Any, **kwargs: Any) -> Any:
            return await self._call(lambda made: getattr(made, name)(*args, **kwargs))

        return method

    async def __aenter__(self) -> Self:
        await self._call(lambda made: made.__aenter__())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._clean_up(lambda made: made.__aexit__(None, None, None))

    async def _clean_up(self, function: Callable[[Any], Any]) -> None:
        if self._home is None:
            await trio.lowlevel.checkpoint()
            return
        # The loop or the connection may have ended already, and the object with it.
        with suppress(BrokerUnavailable), trio.move_on_after(CLOSE_TIMEOUT, shield=True):
            await self._call(function)


class PubSub(Remote):
    """redis-py's PubSub. Prefer ``state.subscribe(...)``."""

    def listen(self) -> AsyncIterator[Any]:
        """Iterate over messages, which are redis-py's dicts.

        The iteration raises ``BrokerUnavailable`` when Redis goes away.
        """
        return Messages(self)

    @property
    def subscribed(self) -> bool:
        """Whether there is a subscription."""
        return bool(self._object is not None and self._object.subscribed)

    @property
    def channels(self) -> Any:
        """The subscribed channels."""
        return self._object.channels if self._object is not None else {}

    @property
    def patterns(self) -> Any:
        """The subscribed patterns."""
        return self._object.patterns if self._object is not None else {}

    async def _call(self, function: Callable[[Any], Any]) -> Any:
        try:
            return await super()._call(function)
        except BrokerUnavailable as exc:
            raise BrokerUnavailable(
                f"{exc}; a pubsub ends here, state.subscribe(...) goes on when redis is back"
            ) from exc

    async def aclose(self) -> None:
        """Close the connection."""
        await self._clean_up(lambda made: made.aclose())

    close = reset = aclose

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


class Messages:
    """The iterator of ``PubSub.listen``.

    It is not a generator, so that a loop may stop without finalising it.
    """

    def __init__(self, pubsub: PubSub) -> None:
        self._pubsub = pubsub

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while (message := await self._pubsub.get_message(timeout=None)) is None:
            pass
        return message


class RemoteIterator:
    """An asynchronous generator on the loop, iterated from Trio."""

    def __init__(self, redis_loop: LoopGetter, make: Make) -> None:
        self._remote = Remote(redis_loop, make, "iterator")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            # StopAsyncIteration cannot be an exception of a task; ``END`` stands for it.
            item = await within(COMMAND_TIMEOUT, "scan", self._remote._call, _next_or_end)  # noqa: SLF001 - its own part
        except BaseException:
            await self.aclose()
            raise
        if item is END:
            raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        """Close the generator on the loop."""
        await self._remote._clean_up(lambda made: made.aclose())  # noqa: SLF001 - its own part


END: Final = object()


async def _next_or_end(iterator: AsyncIterator[Any]) -> Any:
    return await anext(iterator, END)


class Pipeline:
    """Commands that are collected here and sent together by ``execute``.

    No connection is used until then, so a pipeline needs no clean-up. After ``watch``, commands run at once
    and return awaitables until ``multi`` collects again, as in redis-py.
    """

    def __init__(
        self,
        redis_loop: LoopGetter,
        knows: Callable[[str], bool],
        *,
        transaction: bool,
        guard: Callable[[tuple[Any, ...]], tuple[Any, ...] | None] = lambda _words: None,
    ) -> None:
        self._redis_loop = redis_loop
        self._knows = knows
        self._transaction = transaction
        self._guard = guard
        self._commands: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self._watching: Remote | None = None
        self._collecting = True

    def __len__(self) -> int:
        return len(self._commands)

    def __bool__(self) -> bool:
        return True

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        await trio.lowlevel.checkpoint()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.reset()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_") or not self._knows(name):
            raise AttributeError(
                f"a pipeline has no command {name!r}; it has those of redis.asyncio.client.Pipeline"
            )

        def command(*args: Any, **kwargs: Any) -> Any:
            call = (name, args, kwargs)
            if name in {"publish", "execute_command"}:
                words = self._guard((name, *args, *kwargs.values()) if name == "publish" else args)
                call = call if words is None else ("execute_command", words, {})
            if self._watching is not None and not self._collecting:
                return getattr(self._watching, call[0])(*call[1], **call[2])
            self._commands.append(call)
            return self

        return command

    async def watch(self, *names: Any) -> Any:
        """Watch keys.

        ``execute`` raises ``redis.exceptions.WatchError`` if one of them changes before it.
        """
        if self._watching is None:
            self._watching = Remote(
                self._redis_loop, lambda redis: redis.pipeline(transaction=self._transaction), "pipeline"
            )
            self._collecting = False
        return await self._watching.watch(*names)

    def multi(self) -> None:
        """Collect the following commands."""
        self._collecting = True

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send the collected commands, and return their answers in order.

        Raises:
            BrokerUnavailable: Redis is away or did not answer in time; the commands may have been carried
                out.
            redis.exceptions.ResponseError: a command was refused, unless ``raise_on_error`` is false.
        """
        commands, self._commands = self._commands, []
        watching = self._watching
        remote = watching or Remote(
            self._redis_loop, lambda redis: redis.pipeline(transaction=self._transaction), "pipeline"
        )

        async def run(pipe: Any) -> Any:
            try:
                if watching is not None:
                    pipe.multi()
                for name, args, kwargs in commands:
                    getattr(pipe, name)(*args, **kwargs)
                return await pipe.execute(raise_on_error=raise_on_error)
            finally:
                await pipe.reset()

        self._watching, self._collecting = None, True
        answers: list[Any] = await within(COMMAND_TIMEOUT, "execute", remote._call, run)  # noqa: SLF001 - its own part
        return answers

    async def reset(self) -> None:
        """Discard the collected commands and stop watching."""
        self._commands.clear()
        watching, self._watching, self._collecting = self._watching, None, True
        if watching is not None:
            await watching._clean_up(lambda made: made.reset())  # noqa: SLF001 - its own part
        else:
            await trio.lowlevel.checkpoint()

    aclose = discard = reset
