"""A Redis that somebody else runs: watched, and talked about while it is away; never a reason to crash."""

from collections.abc import Callable

import structlog
import trio

from tangram.broker.embedded import BrokerStatistics
from tangram.broker.ping import Probe, open_probe
from tangram.errors import BrokerUnavailable
from tangram.redis_url import parse_redis_url, redact_url

__all__ = ["ExternalBroker"]

log = structlog.get_logger("tangram.broker")

# A closed connection is seen at once; the pings find a Redis that hangs.
_PING_EVERY = 5.0
_ASK_TIMEOUT = 2.0
_FIRST_WAIT = 0.1
_LONGEST_WAIT = 2.0
# Said once when it goes, then as a reminder: an outage of an hour is 60 lines, not 1,800.
_REMIND_EVERY = 60.0


class ExternalBroker:
    """Watches the Redis at ``url``; ``on_change`` is told True when it is back, False when it goes."""

    def __init__(self, url: str, *, on_change: Callable[[bool], None] = lambda _up: None) -> None:
        self._address = parse_redis_url(url)
        self._url = url
        self._on_change = on_change
        self._up = False
        self._finds = 0
        self._version: str | None = None
        self._last_error: str | None = None
        self._away_since: float | None = None
        self._reminded_at = 0.0

    def statistics(self) -> BrokerStatistics:
        """A record of this moment."""
        return BrokerStatistics(
            kind="external",
            url=redact_url(self._url),
            up=self._up,
            version=self._version,
            starts=self._finds,
            last_error=self._last_error,
        )

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """``started(url)`` at once; then watches until cancelled. Its absence raises nothing."""
        task_status.started(self._url)
        wait = _FIRST_WAIT
        while True:
            finds = self._finds
            cause = await self._watch()
            self._tell_away(cause)
            wait = _FIRST_WAIT if self._finds > finds else min(wait * 2, _LONGEST_WAIT)
            await trio.sleep(wait)

    async def _watch(self) -> str:
        """Until it goes; the reason."""
        try:
            with trio.fail_after(_ASK_TIMEOUT) as limit:
                async with open_probe(self._address) as probe:
                    await probe.ping()
                    info = await probe.info()
                    limit.deadline = float("inf")
                    self._tell_up(info)
                    return await self._stay(probe)
        except trio.TooSlowError:
            return f"no answer within {_ASK_TIMEOUT:g} s"
        except BrokerUnavailable as error:
            return str(error)

    async def _stay(self, probe: Probe) -> str:
        while True:
            with trio.move_on_after(_PING_EVERY):
                await probe.wait_closed()
                return "the connection was closed"
            with trio.fail_after(_ASK_TIMEOUT):
                await probe.ping()

    def _tell_up(self, info: dict[str, str]) -> None:
        name = info.get("server_name", "redis")
        # An account that may not ask for INFO does not know it.
        self._version = f"{name} {info.get(f'{name}_version', '?')}" if info else None
        self._up, self._finds = True, self._finds + 1
        away = (
            {} if self._away_since is None else {"away_for": round(trio.current_time() - self._away_since, 1)}
        )
        log.info("redis is there", url=redact_url(self._url), version=self._version, **away)
        self._away_since = None
        self._on_change(True)

    def _tell_away(self, cause: str) -> None:
        now = trio.current_time()
        self._last_error = cause
        was_up, self._up = self._up, False
        if self._away_since is None:
            self._away_since, self._reminded_at = now, now
            log.warning("redis is away", url=redact_url(self._url), cause=cause)
        elif now - self._reminded_at >= _REMIND_EVERY:
            self._reminded_at = now
            log.warning(
                "redis is still away",
                url=redact_url(self._url),
                cause=cause,
                away_for=round(now - self._away_since),
            )
        if was_up:
            self._on_change(False)
