"""Failures of plugins during an outage of Redis, which are not charged to the plugins.

A service that publishes fails when Redis is away. Counted as its crash, an outage of some seconds would spend
its plugin's budget and end in quarantine; and when the bus or the broker crashes, a plugin could be charged
before them. So a plugin's failure is held back for `SETTLE` seconds, in which the bus or the broker can fail
first and stop the plugin with the others. If Redis is away, or was until just now, the plugin waits for it
and is started again without a charge. A refusal by Redis (`BrokerRefused`) is an answer, and a crash.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Protocol

import structlog
import trio

from tangram.bus.publisher import PUBLISH_TIMEOUT
from tangram.bus.resp import PING_EVERY, PING_TIMEOUT
from tangram.errors import BrokerRefused, BrokerUnavailable
from tangram.groups import leaves
from tangram.supervision.records import cause_of
from tangram.task_status import RelayedStatus

__all__ = ["RedisOutage", "blames_redis"]

log = structlog.get_logger("tangram.app")

SETTLE: Final = 0.05
"""Seconds until every part has seen an outage: a connection that breaks is seen at once."""

NOTICE: Final = 2 * PING_EVERY + PING_TIMEOUT - PUBLISH_TIMEOUT + 0.5
"""Seconds for the bus to notice a Redis that is silent without closing connections.

A publish that begins just before the last bytes from Redis come fails after ``PUBLISH_TIMEOUT``. The bus may
see those bytes at the end of one interval, pings at the end of the next one, and then waits for the answer.
"""

RECENT: Final = 6.0
"""Seconds after an outage in which a failure still counts as its result: a publisher waits 5 s."""


class _Host(Protocol):
    @property
    def name(self) -> str: ...

    async def run(self, *, task_status: trio.TaskStatus[object]) -> None: ...


class RedisOutage:
    """Runs the hosts of plugins, and lets them wait for Redis.

    Args:
        is_connected: returns whether the bus is connected now.
    """

    def __init__(self, is_connected: Callable[[], bool]) -> None:
        self.waiting: set[str] = set()
        """The names of the plugins that wait for Redis."""
        self._is_connected = is_connected
        self._connected_at = -math.inf
        self._lost_at = -math.inf
        self._connected = trio.Event()

    def note(self, up: bool) -> None:
        """Note that the bus has connected to Redis or lost it."""
        self._connected_at = trio.current_time() if up else math.inf
        if not up:
            self._lost_at = trio.current_time()
        if up:
            self._connected.set()
            self._connected = trio.Event()

    async def run(self, host: _Host, *, task_status: trio.TaskStatus[object]) -> None:
        """Run one incarnation of a plugin; run its host again after a failure due to an outage."""
        status = RelayedStatus(task_status, repeatable=True)
        pause = 0.0
        while True:
            try:
                await host.run(task_status=status)
            except Exception as error:
                if not blames_redis(error):
                    raise
                if not (await self.settle() or await self._is_noticed()):
                    raise
                log.warning("plugin waits for redis", plugin=host.name, cause=cause_of(error))
                # The plugins that start after this one need not wait with it.
                status.started()
                if not self._is_connected():
                    pause = 0.0
                await self.wait(host.name, pause)
                pause = max(SETTLE, 2 * pause)
            else:
                return

    async def settle(self) -> bool:
        """Wait 50 ms, and return whether Redis is away, or was within the last seconds.

        The real culprit (bus or broker) fails within this time: it then cancels this task, and the plugin is
        not charged.
        """
        await trio.sleep(SETTLE)
        return not self._is_connected() or trio.current_time() - self._connected_at < RECENT

    async def _is_noticed(self) -> bool:
        """Return whether the bus notices within `NOTICE` seconds that Redis is away."""
        with trio.move_on_after(NOTICE):
            while self._is_connected():  # noqa: ASYNC110 - the event tells of connections alone
                await trio.sleep(SETTLE)
        return not self._is_connected()

    async def lost_since(self, began: float) -> bool:
        """Wait 50 ms, and return whether Redis is away, or was lost after *began* and is back."""
        return await self.settle() and (not self._is_connected() or self._lost_at >= began)

    async def wait(self, name: str, pause: float) -> None:
        """Wait for ``pause`` seconds, and then until Redis is connected.

        The pause slows down a plugin that goes on failing although Redis is there.
        """
        self.waiting.add(name)
        try:
            await trio.sleep(pause)
            while not self._is_connected():
                await self._connected.wait()
        finally:
            self.waiting.discard(name)


def blames_redis(error: BaseException | None) -> bool:
    """Return whether an exception, or one of its causes, means that Redis cannot be reached."""
    while error is not None:
        if isinstance(error, BaseExceptionGroup):
            return any(blames_redis(leaf) for leaf in leaves(error))
        if isinstance(error, BrokerRefused):
            return False
        kind = type(error)
        if isinstance(error, BrokerUnavailable) or (
            # The errors of redis-py in a plugin's own client, compared by name so that it is not imported.
            kind.__module__.startswith("redis.") and kind.__name__ in {"ConnectionError", "TimeoutError"}
        ):
            return True
        error = error.__cause__
    return False
