"""The watch on an external Redis, which reports losses and returns, and never raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog
import trio

from tangram.broker.embedded import BrokerStatistics
from tangram.broker.ping import Probe, open_probe
from tangram.errors import BrokerUnavailable
from tangram.redis_url import parse_redis_url

__all__ = ["ExternalBroker"]

log = structlog.get_logger("tangram.broker")

_PING_EVERY: Final = 5.0
"""Seconds between pings. A closed connection is noticed at once; the pings find a Redis that hangs."""
_ASK_TIMEOUT: Final = 2.0
"""Seconds for an answer."""
_FIRST_WAIT: Final = 0.1
"""Seconds before the second dial of an outage; each further wait is twice as long."""
_LONGEST_WAIT: Final = 2.0
"""Seconds of the longest wait between two dials."""
_REMIND_EVERY: Final = 60.0
"""Seconds between log lines during an outage: an hour gives 60 lines instead of 1,800."""


class ExternalBroker:
    """Watches an external Redis on a connection of its own.

    Args:
        url: the URL of Redis.
        on_change: called with True when Redis is found, and with False when it is lost.

    Raises:
        ConfigError: the URL is malformed.
    """

    def __init__(self, url: str, *, on_change: Callable[[bool], None] = lambda _up: None) -> None:
        self._address = parse_redis_url(url)
        self._on_change = on_change
        self._up = False
        self._finds = 0
        self._version: str | None = None
        self._last_error: str | None = None
        self._away_since: float | None = None
        self._reminded_at = 0.0

    @property
    def server_url(self) -> str:
        """The URL with which the server itself connects: the same as for plugins."""
        return self._address.url

    def statistics(self) -> BrokerStatistics:
        """Return a record of this moment."""
        return BrokerStatistics(
            kind="external",
            url=self._address.shown,
            up=self._up,
            version=self._version,
            starts=self._finds,
            last_error=self._last_error,
        )

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled; report the URL as started at once."""
        task_status.started(self._address.url)
        wait = _FIRST_WAIT
        while True:
            finds = self._finds
            cause = await self._watch()
            self._record_loss(cause)
            wait = _FIRST_WAIT if self._finds > finds else min(wait * 2, _LONGEST_WAIT)
            await trio.sleep(wait)

    async def _watch(self) -> str:
        """Connect, wait until Redis is lost, and return the cause."""
        try:
            with trio.fail_after(_ASK_TIMEOUT) as limit:
                async with open_probe(self._address) as probe:
                    await probe.ping()
                    info = await probe.info()
                    limit.deadline = float("inf")
                    self._record_find(info)
                    return await self._await_loss(probe)
        except trio.TooSlowError:
            return f"no answer within {_ASK_TIMEOUT:g} s"
        except BrokerUnavailable as error:
            return str(error)

    async def _await_loss(self, probe: Probe) -> str:
        while True:
            with trio.move_on_after(_PING_EVERY):
                await probe.wait_closed()
                return "the connection was closed"
            with trio.fail_after(_ASK_TIMEOUT):
                await probe.ping()

    def _record_find(self, info: dict[str, str]) -> None:
        name = info.get("server_name", "redis")
        # An account that may not use INFO does not know the version.
        self._version = f"{name} {info.get(f'{name}_version', '?')}" if info else None
        self._up, self._finds = True, self._finds + 1
        away = (
            {} if self._away_since is None else {"away_for": round(trio.current_time() - self._away_since, 1)}
        )
        log.info("redis found", url=self._address.shown, version=self._version, **away)
        self._away_since = None
        self._on_change(True)

    def _record_loss(self, cause: str) -> None:
        now = trio.current_time()
        self._last_error = cause
        was_up, self._up = self._up, False
        if self._away_since is None:
            self._away_since, self._reminded_at = now, now
            log.warning("redis lost", url=self._address.shown, cause=cause)
        elif now - self._reminded_at >= _REMIND_EVERY:
            self._reminded_at = now
            away_for = round(now - self._away_since)
            log.warning("redis still away", url=self._address.shown, cause=cause, away_for=away_for)
        if was_up:
            self._on_change(False)
