"""One bound for the unfinished messages and bodies of all clients.

1. No I/O here: the transports report how many bytes they hold for a client, and are told to drop them.
2. The bound is a total. Bounds for each connection alone would have to be small, or would let 40 clients take
   40 times the largest message.
3. Over the bound the clients whose bytes are many and old go first: an attacker holds bytes for as long as it
   can, while those of other clients leave soon. The order is that of bytes times seconds.
4. A message or body has ``timeout`` seconds, and one more for each ``MIN_RATE`` bytes that have arrived.
   Traffic without progress, for example pings, does not extend the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog
import trio

from tangram.log_limit import LogLimit

__all__ = ["PendingBytes", "PendingItem"]

log = structlog.get_logger("tangram.http")

MIN_RATE: Final = 16384
"""Bytes that buy one second more: a telephone on a bad network still reaches them."""

RELIEF: Final = 0.9
"""The part of the bound to which the total is brought, so that the next bytes do not search again."""

_now = trio.current_time


class PendingItem:
    """The bytes that one client has sent of an unfinished message or body."""

    __slots__ = ("_ledger", "address", "drop", "expire", "since", "size")

    def __init__(self, ledger: PendingBytes, address: Callable[[], str], drop: Callable[[], None]) -> None:
        self._ledger = ledger
        self.address = address
        self.drop = drop
        self.expire: Callable[[], None] | None = None
        """Called by ``PendingBytes.expire`` when the message is late."""
        self.size = 0
        self.since = 0.0
        """The time of the first byte."""

    def update(self, size: int) -> None:
        """Report how many bytes are held now; 0 when the message or body is finished.

        May call ``drop`` of this item or of others.
        """
        ledger = self._ledger
        if size and not self.size:
            ledger.items[self] = None
            self.since = _now()
        elif self.size and not size:
            del ledger.items[self]
        ledger.total += size - self.size
        self.size = size
        if ledger.total > ledger.bound > 0:
            ledger.relieve()

    def restart(self) -> None:
        """Begin the time limit anew.

        Called when a message was finished, or when the server itself had paused reading.
        """
        self.since = _now()

    def is_late(self, now: float) -> bool:
        """Return whether an unfinished message has taken too long."""
        return self.size > 0 and now - self.since > self._ledger.time_for(self.size)


class PendingBytes:
    """The total of one engine."""

    def __init__(self, bound: int, timeout: float) -> None:
        """Make an empty total.

        Args:
            bound: bytes of all clients together; 0 is no bound.
            timeout: seconds for one message or body, apart from those that its bytes buy.
        """
        self.bound = bound
        self.timeout = timeout
        self.total = 0
        self.dropped = 0
        """Clients that lost their connection because of the bound."""
        self.items: dict[PendingItem, None] = {}
        self._log_limit = LogLimit()

    def time_for(self, size: int) -> float:
        """Return the seconds that a message or body of which ``size`` bytes have arrived may take."""
        return self.timeout + size / MIN_RATE

    def item(self, address: Callable[[], str], drop: Callable[[], None]) -> PendingItem:
        """Return a new item.

        Args:
            address: returns the client's address, for the log alone.
            drop: frees the bytes and closes the connection. It must not block, and may call ``update(0)``.
        """
        return PendingItem(self, address, drop)

    def relieve(self) -> None:
        """Drop items until the total is well below the bound."""
        now = _now()
        # One second more for each: an item of this very moment would otherwise weigh nothing.
        order = sorted(self.items, key=lambda item: item.size * (now - item.since + 1.0), reverse=True)
        for item in order:
            if self.total <= self.bound * RELIEF:
                break
            self.dropped += 1
            self._log(item, now)
            item.drop()
            item.update(0)

    def expire(self) -> None:
        """Call ``expire`` of each item that is late."""
        now = _now()
        for item in [item for item in self.items if item.expire is not None and item.is_late(now)]:
            assert item.expire is not None
            item.expire()

    def _log(self, item: PendingItem, now: float) -> None:
        address = item.address()
        if self._log_limit.allows("dropped", address, now):
            log.warning(
                "unfinished message dropped",
                address=address,
                bytes=item.size,
                seconds=round(now - item.since, 1),
                total=self.total,
                dropped=self.dropped,
                setting="server.max_pending_bytes",
            )
