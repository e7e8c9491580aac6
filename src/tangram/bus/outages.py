"""Outages of Redis as the bus sees them: when Redis was lost, and when it was back."""

from __future__ import annotations

import attrs
import trio

__all__ = ["Outage", "Outages"]


@attrs.frozen
class Outage:
    """One outage; times are those of ``trio.current_time()``."""

    lost_at: float
    """When the connection was lost, or the first attempt to connect began."""
    cause: str
    """Why, in one line."""
    back_at: float | None = None
    """When every subscription was confirmed again; None while the outage lasts."""


class Outages:
    """The current outage or the last one, and a way to wait for its end.

    A service that ends because its own connection was closed may do so a few milliseconds before the bus
    notices the same loss. Wait some 50 ms before you ask ``recent``.

    For example, to tell whether a failure belongs to an outage::

        await trio.sleep(0.05)
        if bus.outages.recent(within=5.0) is not None:
            await bus.outages.wait_over()
            ...  # start the service again
    """

    def __init__(self) -> None:
        self.count = 0
        """Outages so far."""
        self._last: Outage | None = None
        self._over = trio.Event()
        self._over.set()

    @property
    def current(self) -> Outage | None:
        """The outage that lasts now, if any."""
        return self._last if self._last is not None and self._last.back_at is None else None

    @property
    def last(self) -> Outage | None:
        """The latest outage, whether it lasts or not."""
        return self._last

    def recent(self, *, within: float) -> Outage | None:
        """Return the outage that lasts, or one that ended less than ``within`` seconds ago."""
        if self._last is None or self._last.back_at is None:
            return self._last
        return self._last if trio.current_time() - self._last.back_at < within else None

    async def wait_over(self) -> None:
        """Return once Redis is connected; at once if there is no outage."""
        await self._over.wait()

    def begin(self, lost_at: float, cause: str) -> None:
        """Record a loss, for the connection; a further cause of the same outage is ignored."""
        if self.current is None:
            self.count += 1
            self._last = Outage(lost_at, cause)
            self._over = trio.Event()

    def end(self) -> None:
        """Record the end of the outage, for the connection."""
        if self.current is not None:
            assert self._last is not None
            self._last = attrs.evolve(self._last, back_at=trio.current_time())
            self._over.set()
