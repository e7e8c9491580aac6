"""A connection that is dialled again, for ever, each time that it is lost.

Why the back-off is so short: once Redis is back, the first message should reach a browser within 250 ms in
99 of 100 cases, however long the outage was. A dial to a closed port fails at once, so the time to the next
dial is the back-off alone: at most ``BACKOFF_MAX`` x 1.2 = 180 ms. Dial, greeting and subscription are
three round trips: 1-5 ms on one machine, at most 60 ms in one region. The sum is below 250 ms for every
dial. A dial every 150 ms on both connections costs 1 % of a processor.

If dials hang (packets are dropped, a host is down), TCP sends again after 1 s or more. A new dial therefore
starts every ``STAGGER`` seconds beside the hanging ones, and the first that succeeds is used.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, NoReturn

import structlog
import trio

from tangram.bus.resp import CONNECT_TIMEOUT, LOST, Dial, Link, describe, open_link
from tangram.errors import BrokerUnavailable
from tangram.primary.locator import Locator, shared_locator
from tangram.redis_url import RedisAddress

__all__ = ["Reconnector"]

log = structlog.get_logger("tangram.bus")

BACKOFF_FIRST: Final = 0.05
"""Seconds before the second dial in a row; the first is at once."""
BACKOFF_MAX: Final = 0.15
"""Seconds of the longest delay before a dial."""
BACKOFF_JITTER: Final = 0.2
"""The share by which a delay is longer or shorter, so that many servers do not dial in step."""

BACKOFF_REFUSED: Final = 2.0
"""Seconds between dials while Redis refuses the credentials: each attempt fills its security log."""

STEADY: Final = 1.0
"""Seconds that a connection must last for the next back-off to start at zero. Otherwise a server that
accepts and closes would be dialled without a pause.
"""

REMIND: Final = 30.0
"""Seconds between log lines while Redis stays away."""

_CREDENTIALS: Final = ("NOAUTH", "WRONGPASS", "NOPERM", "ERR AUTH", "invalid password", "invalid username")


class Reconnector:
    """One connection to Redis, dialled again each time that it is lost.

    Args:
        address: the address of Redis.
        name: the name of the connection in log lines.
        dial: opens a connection.
        rng: the source of the back-off's jitter.
    """

    def __init__(
        self, address: RedisAddress, *, name: str, dial: Dial, rng: random.Random | None = None
    ) -> None:
        self.address = address
        self.name = name
        self.reconnects = 0
        """How often the connection was opened again after a loss."""
        self.cause = ""
        """Why the connection was lost, or could not be opened, the last time."""
        self.up = False
        """Whether the session has reported that the connection works."""
        self._dial = dial
        self._primary = ""
        self._rng = rng or random.Random()  # noqa: S311 - no secret
        self._tries = 0
        self._away_since: float | None = None
        self._up_since = 0.0
        self._reminded = 0.0
        self._pause: trio.CancelScope | None = None

    async def run(self, session: Callable[[Link], Awaitable[None]]) -> NoReturn:
        """Run a session on each connection in turn, until cancelled.

        Args:
            session: calls ``established`` once the connection works, and returns when it is lost.
        """
        self._away_since = trio.current_time()
        while True:
            cause = await self._run_session(session)
            self._record_loss(cause)
            await self._back_off(cause)

    def established(self) -> None:
        """Record that the connection works; log it after an outage."""
        now = trio.current_time()
        if self.cause:
            self.reconnects += 1
            away = round(now - self._away_since, 3) if self._away_since is not None else 0.0
            log.info(
                "redis connection restored",
                connection=self.name,
                url=self.address.shown,
                away=away,
                **({"primary": self._primary} if self._primary else {}),
            )
        self.up, self._up_since, self._away_since = True, now, None

    def retry_now(self) -> None:
        """End the current back-off, because another connection has reached Redis."""
        if self._pause is not None:
            self._pause.cancel()

    async def _run_session(self, session: Callable[[Link], Awaitable[None]]) -> str:
        """Dial, run one session, and return why it ended."""
        locator = shared_locator(self.address, self._dial)
        try:
            async with open_link(
                self.address, dial=self._dial, timeout=CONNECT_TIMEOUT, locator=locator
            ) as link:
                if locator.moves:
                    self._primary = f"{link.address.host}:{link.address.port}"
                    await link.share(session, partial(self._follow, locator))
                else:
                    await session(link)
                return link.cause or "the connection ended"
        except LOST as exc:
            return describe(exc)

    async def _follow(self, locator: Locator, link: Link) -> NoReturn:
        """End the connection when another Redis is the primary.

        A primary that was cut off keeps its connections and answers pings.
        """
        host, port = await locator.wait_moved(link.address, self._dial)
        raise BrokerUnavailable(f"the primary is now {host}:{port}")

    def _record_loss(self, cause: str) -> None:
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
            log.warning(
                "redis connection lost", connection=self.name, url=self.address.shown, cause=cause, away=away
            )

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
