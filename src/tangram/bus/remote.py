"""Objects that live on the redis client's asyncio loop, and their faces on the Trio side: pipelines,
pub/sub, locks, iterators.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import trio

from tangram.bus.redis_loop import COMMAND_TIMEOUT, within
from tangram.errors import BrokerUnavailable

if TYPE_CHECKING:
    from tangram.bus.redis_loop import Lane

__all__ = ["Pipeline", "PubSub", "Remote", "RemoteIterator"]

LaneGetter = Callable[[], Awaitable["Lane"]]
Make = Callable[[Any], Any]

CLOSE_TIMEOUT = 2.0
"""Seconds for an object's clean-up, which happens under cancellation too."""


class Remote:
    """An object made on the loop when it is first used; each of its methods is awaited there."""

    def __init__(self, lane: LaneGetter, make: Make, name: str) -> None:
        self._lane = lane
        self._make = make
        self._name = name
        self._home: Lane | None = None
        self._object: Any = None

    async def _call(self, function: Callable[[Any], Any]) -> Any:
        lane = await self._lane()
        if self._home is None:
            self._home = lane
            self._object = self._make(lane.redis)
        elif self._home is not lane:
            raise BrokerUnavailable(f"this {self._name} belongs to a bus that has stopped; make a new one")
        return await lane.call(lambda _redis: function(self._object))

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
        # Its loop or its connection may be gone already, and with it what was to be cleaned up.
        with suppress(BrokerUnavailable), trio.move_on_after(CLOSE_TIMEOUT, shield=True):
            await self._call(function)


class PubSub(Remote):
    """redis-py's PubSub. Prefer ``state.subscribe(...)``."""

    def listen(self) -> AsyncIterator[Any]:
        """Messages as redis-py's dicts; BrokerUnavailable when Redis goes away."""
        return Messages(self)

    @property
    def subscribed(self) -> bool:
        return bool(self._object is not None and self._object.subscribed)

    @property
    def channels(self) -> Any:
        return self._object.channels if self._object is not None else {}

    @property
    def patterns(self) -> Any:
        return self._object.patterns if self._object is not None else {}

    async def _call(self, function: Callable[[Any], Any]) -> Any:
        try:
            return await super()._call(function)
        except BrokerUnavailable as exc:
            raise BrokerUnavailable(
                f"{exc}; state.subscribe(...) goes on when redis is back, a pubsub does not"
            ) from exc

    async def aclose(self) -> None:
        await self._clean_up(lambda made: made.aclose())

    close = reset = aclose

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


class Messages:
    """`PubSub.listen`: no generator, so that one that is left half-way leaves nothing to be finalised."""

    def __init__(self, pubsub: PubSub) -> None:
        self._pubsub = pubsub

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while (message := await self._pubsub.get_message(timeout=None)) is None:
            pass
        return message


class RemoteIterator:
    """An asynchronous generator of the loop's, iterated from Trio."""

    def __init__(self, lane: LaneGetter, make: Make) -> None:
        self._remote = Remote(lane, make, "iterator")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            # StopAsyncIteration cannot cross the border as an exception of a task: a mark stands for it.
            item = await within(COMMAND_TIMEOUT, "scan", self._remote._call, _next_or_end)  # noqa: SLF001
        except BaseException:
            await self.aclose()
            raise
        if item is END:
            raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        """Give it up; what it holds on the loop is closed."""
        await self._remote._clean_up(lambda made: made.aclose())  # noqa: SLF001 - its own part


END = object()


async def _next_or_end(iterator: AsyncIterator[Any]) -> Any:
    return await anext(iterator, END)


class Pipeline:
    """Commands collected here and sent together by `execute`.

    Nothing is opened until then, so a pipeline that is forgotten leaves nothing behind. After `watch`,
    commands run at once and return awaitables, until `multi` begins to collect again: redis-py's own rules.
    """

    def __init__(self, lane: LaneGetter, knows: Callable[[str], bool], *, transaction: bool) -> None:
        self._lane = lane
        self._knows = knows
        self._transaction = transaction
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
            if self._watching is not None and not self._collecting:
                return getattr(self._watching, name)(*args, **kwargs)
            self._commands.append((name, args, kwargs))
            return self

        return command

    async def watch(self, *names: Any) -> Any:
        """Watch keys: `execute` raises redis.exceptions.WatchError if one of them changes meanwhile."""
        if self._watching is None:
            self._watching = Remote(
                self._lane, lambda redis: redis.pipeline(transaction=self._transaction), "pipeline"
            )
            self._collecting = False
        return await self._watching.watch(*names)

    def multi(self) -> None:
        """Collect from here on."""
        self._collecting = True

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send what was collected; the answers in order.

        Raises:
            BrokerUnavailable: Redis is away or did not answer in time; whether the commands were carried
                out is not known then. redis.exceptions.ResponseError: one of the commands was refused,
                unless *raise_on_error* is false.
        """
        commands, self._commands = self._commands, []
        watching = self._watching
        remote = watching or Remote(
            self._lane, lambda redis: redis.pipeline(transaction=self._transaction), "pipeline"
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
        answers: list[Any] = await within(COMMAND_TIMEOUT, "execute", remote._call, run)  # noqa: SLF001
        return answers

    async def reset(self) -> None:
        """Forget what was collected and stop watching."""
        self._commands.clear()
        watching, self._watching, self._collecting = self._watching, None, True
        if watching is not None:
            await watching._clean_up(lambda made: made.reset())  # noqa: SLF001 - its own part
        else:
            await trio.lowlevel.checkpoint()

    aclose = discard = reset
