"""The watch on an external Redis, which reports losses and returns, and never raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

import structlog
import trio

from tangram.broker.embedded import BrokerStatistics
from tangram.broker.ping import Probe, connect, open_probe
from tangram.broker.relay import Relay
from tangram.errors import BrokerUnavailable
from tangram.primary.locator import Locator
from tangram.redis_url import RedisAddress, parse_redis_url

__all__ = ["ExternalBroker"]

log = structlog.get_logger("tangram.broker")

_LOST: Final = (OSError, trio.BrokenResourceError)
"""The errors of a connection that ends."""
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

    If sentinels or a cluster name the primary, the clients of plugins get a URL on loopback that leads to it.

    Args:
        url: the URL of Redis.
        on_change: called with True when Redis is found, and with False when it is lost.

    Raises:
        ConfigError: the URL is malformed.
    """

    def __init__(self, url: str, *, on_change: Callable[[bool], None] = lambda _up: None) -> None:
        self._address = parse_redis_url(url)
        self._locator = Locator(self._address)
        self._relay = Relay(self._locator)
        self._on_change = on_change
        self._up = False
        self._finds = 0
        self._version: str | None = None
        self._last_error: str | None = None
        self._away_since: float | None = None
        self._reminded_at = 0.0

    @property
    def server_url(self) -> str:
        """The URL with which the server itself connects: as it is configured."""
        return self._address.url

    @property
    def cluster_url(self) -> str | None:
        """The URL of a Redis Cluster, for clients that follow it; None for any other Redis."""
        return self._address.url if self._address.kind == "cluster" else None

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
        """Watch until cancelled; report the URL for plugins as started at once."""
        if not self._locator.moves:
            task_status.started(self._address.url)
            await self._watch_for_ever()
        async with trio.open_nursery() as nursery:
            task_status.started(await nursery.start(self._relay.run))
            await self._watch_for_ever()

    async def _watch_for_ever(self) -> NoReturn:
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
                async with open_probe(self._address, self._locator) as probe:
                    await probe.ping()
                    info = await probe.info()
                    limit.deadline = float("inf")
                    self._record_find(info, probe.address)
                    if self._locator.moves:
                        return await self._await_move_or_loss(probe)
                    return await self._await_loss(probe)
        except trio.TooSlowError:
            return f"no answer within {_ASK_TIMEOUT:g} s"
        except BrokerUnavailable as error:
            return str(error)

    async def _await_move_or_loss(self, probe: Probe) -> str:
        causes: list[str] = []

        async def follow() -> None:
            host, port = await self._locator.wait_moved(probe.address, connect)
            causes.append(f"the primary is now {host}:{port}")
            nursery.cancel_scope.cancel()

        async def watch() -> None:
            try:
                causes.append(await self._await_loss(probe))
            except trio.TooSlowError:
                causes.append(f"no answer within {_ASK_TIMEOUT:g} s")
            except (*_LOST, BrokerUnavailable) as error:
                causes.append(str(error))
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            nursery.start_soon(watch)
        return causes[0]

    async def _await_loss(self, probe: Probe) -> str:
        while True:
            with trio.move_on_after(_PING_EVERY):
                await probe.wait_closed()
                return "the connection was closed"
            with trio.fail_after(_ASK_TIMEOUT):
                await probe.ping()

    def _record_find(self, info: dict[str, str], place: RedisAddress) -> None:
        name = info.get("server_name", "redis")
        # An account that may not use INFO does not know the version.
        self._version = f"{name} {info.get(f'{name}_version', '?')}" if info else None
        self._up, self._finds = True, self._finds + 1
        away: dict[str, object] = (
            {} if self._away_since is None else {"away_for": round(trio.current_time() - self._away_since, 1)}
        )
        if self._locator.moves:
            away["primary"] = f"{place.host}:{place.port}"
            self._relay.follow(place)
        log.info("redis found", url=self._address.shown, version=self._version, **away)
        self._away_since = None
        self._on_change(True)

    def _record_loss(self, cause: str) -> None:
        now = trio.current_time()
        self._last_error = cause
        was_up, self._up = self._up, False
        if was_up:
            # A demoted primary keeps its connections; clients must not stay there.
            self._relay.drop()
        if self._away_since is None:
            self._away_since, self._reminded_at = now, now
            log.warning("redis lost", url=self._address.shown, cause=cause)
        elif now - self._reminded_at >= _REMIND_EVERY:
            self._reminded_at = now
            away_for = round(now - self._away_since)
            log.warning("redis still away", url=self._address.shown, cause=cause, away_for=away_for)
        if was_up:
            self._on_change(False)
