"""The pace at which a server that ends closes its WebSockets.

1. Each client comes back at once: phoenix.js tries again after 10 ms without jitter. Clients that are closed
   together come back together, and wait for each other where they join again.
2. A client that is not closed yet still receives everything. So where other nodes take the clients, they are
   closed no faster than those nodes take them: the time without a connection is short, and members of
   topics are back before the grace of presence is over. Presence tells the members that are back;
   clients without presence are closed at a fixed pace.
3. All are closed in the first part of the grace, however many there are: the last ones need the rest of it
   for their closing handshake.
4. No I/O here: the engine waits and closes.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Final

import attrs

__all__ = [
    "CLOSE_AGAIN",
    "CLOSE_EACH",
    "CLOSE_PAUSE",
    "LAST_REQUEST_TIME",
    "MOST_AWAY",
    "MOVE_EACH",
    "ClosePace",
    "Closing",
]

LAST_REQUEST_TIME: Final = 0.05
"""Seconds in which a kept connection may begin its last request after a stop has begun."""

CLOSE_PAUSE: Final = 0.02
"""Seconds between two batches."""

CLOSE_EACH: Final = 0.0004
"""Seconds for each WebSocket where no other node takes the clients: 1,000 are closed within 0.4 s."""

MOVE_EACH: Final = 0.002
"""Seconds for each WebSocket where other nodes take the clients. A join after a connect costs a node and its
balancer a millisecond of a processor, which they also need for other work.
"""

MOST_AWAY: Final = 100
"""Members that may be away before the next ones are closed."""

CLOSE_SHARE: Final = 0.6
"""Share of the grace in which WebSockets are closed at this pace."""

REST_SHARE: Final = 0.1
"""Share of the grace in which the others are closed after it."""

CLOSE_AGAIN: Final = 0.1
"""Seconds between two looks for connections that have become WebSockets meanwhile."""


async def _nothing() -> None:
    """Wait for nothing."""


@attrs.frozen
class Closing:
    """How an engine that ends gets rid of its clients, as its server decides at that time."""

    settle: Callable[[], Awaitable[None]] = _nothing
    """Awaited before the first one is closed, for clients that are about to join."""
    each: Callable[[], float] = lambda: CLOSE_EACH
    """Returns the seconds for each: `CLOSE_EACH` or `MOVE_EACH`."""
    away: Callable[[], int] = lambda: 0
    """Returns the members that were closed, and have not joined another node yet, as far as is known."""
    last_request_time: Callable[[], float] = lambda: LAST_REQUEST_TIME
    """Returns the seconds in which a kept connection may begin its last request after a stop has begun."""


class ClosePace:
    """The pace of one stop.

    Args:
        each: seconds for each WebSocket.
        grace: seconds that their connections have.
        now: the time of the first close, in seconds.
    """

    def __init__(self, each: float, grace: float, now: float) -> None:
        self._each = each
        self._until = now + grace * CLOSE_SHARE
        self._end = self._until + grace * REST_SHARE

    def next_batch(self, left: int, away: int, now: float) -> int:
        """Return how many to close now, 0 to wait for clients; `CLOSE_PAUSE` follows.

        Args:
            left: WebSockets that are still to be closed.
            away: members that were closed, and have not joined another node yet.
            now: the time in seconds.
        """
        if now < self._until and away >= MOST_AWAY:
            return 0
        seconds = min(left * self._each, (self._until if now < self._until else self._end) - now)
        return math.ceil(left * CLOSE_PAUSE / seconds) if seconds > CLOSE_PAUSE else left
