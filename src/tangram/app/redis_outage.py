"""Plugins and a Redis that is away: what fails because of that is no crash of the plugin's.

A service that publishes fails when Redis goes. Counted as its crash, an outage of some seconds would spend
its plugin's budget and end in quarantine; and when the bus or the broker crashes, the plugins would be
blamed before them. So the plugin's failure is set aside for a moment, in which the true cause is seen and
ends the plugin with the others; if Redis is (or was just now) away, the plugin waits and begins anew, and
no window is charged. That Redis says no (`BrokerRefused`) is an answer, and the plugin's crash.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import structlog
import trio

from tangram.errors import BrokerRefused, BrokerUnavailable
from tangram.groups import leaves
from tangram.task_status import RelayedStatus

__all__ = ["RedisOutage", "blames_redis"]

log = structlog.get_logger("tangram.app")

SETTLE = 0.05
"""Seconds until an outage is known to everybody: a connection that breaks is seen in the same moment."""

RECENT = 6.0
"""Seconds for which an outage that is over still excuses: a message's answer is waited for 5 s."""


class _Host(Protocol):
    @property
    def name(self) -> str: ...

    async def run(self, *, task_status: trio.TaskStatus[object]) -> None: ...


class RedisOutage:
    """Runs plugins' hosts, and waits for Redis on their behalf."""

    def __init__(self, is_there: Callable[[], bool]) -> None:
        """``is_there`` tells whether the bus is connected now."""
        self.waiting: set[str] = set()
        """Plugins that wait for Redis."""
        self._is_there = is_there
        self._back_at = -math.inf
        self._back = trio.Event()

    def note(self, up: bool) -> None:
        """The bus lost Redis, or has it (again)."""
        self._back_at = trio.current_time() if up else math.inf
        if up:
            self._back.set()
            self._back = trio.Event()

    async def run(self, host: _Host, *, task_status: trio.TaskStatus[object]) -> None:
        """One incarnation of a plugin."""
        status = RelayedStatus(task_status, repeatable=True)
        pause = 0.0
        while True:
            try:
                await host.run(task_status=status)
            except Exception as error:
                if not blames_redis(error):
                    raise
                # Whoever brought Redis down is seen meanwhile; then this is cancelled, and nobody's crash.
                await trio.sleep(SETTLE)
                if not self._excuses():
                    raise
                log.warning("a plugin waits for redis", plugin=host.name, cause=str(error))
                # The others need not wait with it.
                status.started()
                if not self._is_there():
                    pause = 0.0
                await self._wait(host.name, pause)
                pause = max(SETTLE, 2 * pause)
            else:
                return

    def _excuses(self) -> bool:
        return not self._is_there() or trio.current_time() - self._back_at < RECENT

    async def _wait(self, name: str, pause: float) -> None:
        """For ``pause`` seconds, and until Redis is there: who goes on failing although it is does not do so
        as fast as it can.
        """
        self.waiting.add(name)
        try:
            await trio.sleep(pause)
            while not self._is_there():
                await self._back.wait()
        finally:
            self.waiting.discard(name)


def blames_redis(error: BaseException | None) -> bool:
    """Whether an exception, or what caused it, says that Redis cannot be reached."""
    while error is not None:
        if isinstance(error, BaseExceptionGroup):
            return any(blames_redis(leaf) for leaf in leaves(error))
        if isinstance(error, BrokerRefused):
            return False
        kind = type(error)
        if isinstance(error, BrokerUnavailable) or (
            # redis-py's own, which a plugin's own client raises; it is not imported for this.
            kind.__module__.startswith("redis.") and kind.__name__ in {"ConnectionError", "TimeoutError"}
        ):
            return True
        error = error.__cause__
    return False
