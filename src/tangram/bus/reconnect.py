"""A connection that is kept: dial, run a session on it, and when it is lost dial again, for ever.

Why the back-off is so short. Once Redis is back, the first message should be at a browser within 250 ms in
99 of 100 cases, however long it was away. A dial that meets a closed port fails at once, so what passes
until the next one is the back-off alone: at most `BACKOFF_MAX` x 1.2 = 180 ms. Dialling, greeting and
subscribing again are three round trips, 1-5 ms on one machine and at most 60 in one region. That stays
below 250 with every dial, not only with 99 of 100; and a dial every 150 ms on both connections costs 1 % of
a processor. Where dials *hang* instead (packets are dropped, a host is down), waiting for one would mean
waiting for TCP's own retransmission, 1 s and more, so a new dial is started every `STAGGER` seconds beside
the ones that hang; the first to come through wins.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog
import trio

from tangram.bus.resp import CONNECT_TIMEOUT, LOST, Dial, Link, describe, open_link
from tangram.redis_url import RedisAddress

__all__ = ["Keeper"]

log = structlog.get_logger("tangram.bus")

BACKOFF_FIRST = 0.05
BACKOFF_MAX = 0.15
BACKOFF_JITTER = 0.2
"""Share of the delay by which it is longer or shorter, so that many servers do not come back in step."""

BACKOFF_REFUSED = 2.0
"""Seconds between dials while Redis refuses our credentials: no outage, and each attempt fills its security
log."""

STEADY = 1.0
"""Seconds that a connection must have lived for the next back-off to start from zero. Without it, a server
that accepts and closes would be dialled without pause."""

REMIND = 30.0
"""Seconds between log lines while Redis stays away."""

_CREDENTIALS = ("NOAUTH", "WRONGPASS", "NOPERM", "ERR AUTH", "invalid password", "invalid username")


class Keeper:
    """Keeps one connection to *address*; *name* is what log lines call it."""

    def __init__(
        self, address: RedisAddress, *, name: str, dial: Dial, rng: random.Random | None = None
    ) -> None:
        self.address = address
        self.name = name
        self.reconnects = 0
        """How often the connection was there again after a loss."""
        self.cause = ""
        """Why it is away, or was the last time."""
        self.up = False
        self._dial = dial
        self._rng = rng or random.Random()  # noqa: S311 - no secret
        self._tries = 0
        self._away_since: float | None = None
        self._up_since = 0.0
        self._reminded = 0.0
        self._pause: trio.CancelScope | None = None

    async def run(self, session: Callable[[Link], Awaitable[None]]) -> NoReturn:
        """Run *session* on each connection in turn. It calls `established` when the connection does its
        work, and returns when it is lost.
        """
        self._away_since = trio.current_time()
        while True:
            cause = await self._once(session)
            self._lost(cause)
            await self._back_off(cause)

    def established(self) -> None:
        """The connection does its work: tell so, and count."""
        now = trio.current_time()
        if self.cause:
            self.reconnects += 1
            away = round(now - self._away_since, 3) if self._away_since is not None else 0.0
            log.info("redis is back", connection=self.name, url=self.address.shown, away=away)
        self.up, self._up_since, self._away_since = True, now, None

    def hurry(self) -> None:
        """Redis was just seen elsewhere: end the present back-off."""
        if self._pause is not None:
            self._pause.cancel()

    async def _once(self, session: Callable[[Link], Awaitable[None]]) -> str:
        try:
            async with open_link(self.address, dial=self._dial, timeout=CONNECT_TIMEOUT) as link:
                await session(link)
                return link.cause or "the connection ended"
        except LOST as exc:
            return describe(exc)

    def _lost(self, cause: str) -> None:
        now = trio.current_time()
        if self.up and now - self._up_since >= STEADY:
            self._tries = 0
        if self._away_since is None:
            self._away_since = now
        news = self.up or not self.cause
        self.up, self.cause = False, cause
        if news or now - self._reminded >= REMIND:
            self._reminded = now
            away = round(now - self._away_since, 3)
            log.warning("redis is away", connection=self.name, url=self.address.shown, cause=cause, away=away)

    async def _back_off(self, cause: str) -> None:
        with trio.CancelScope() as self._pause:
            await trio.sleep(self._delay(cause))
        self._pause = None

    def _delay(self, cause: str) -> float:
        tries, self._tries = self._tries, self._tries + 1
        if any(word in cause for word in _CREDENTIALS):
            return BACKOFF_REFUSED
        if tries == 0:
            return 0.0
        delay: float = min(BACKOFF_FIRST * 2 ** min(tries - 1, 10), BACKOFF_MAX)
        return delay * self._rng.uniform(1 - BACKOFF_JITTER, 1 + BACKOFF_JITTER)
