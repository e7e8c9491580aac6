"""What waits for one connection: bounded in bytes, drained whole.

1. An outbox never blocks and never waits: whoever is too far behind loses the connection, by a named
   disconnect, and nobody else's messages are late.
2. The bound counts what lies *behind* the first message: one message of any allowed size goes to an empty
   outbox. Bytes that a transport has taken but could not write yet still count.
3. ``wake`` is called when there is something new to do for an outbox that was idle. It must not block and
   must not touch memberships.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from tangram.channels.disconnects import OVERLOAD, Disconnect
from tangram.channels.frames import Encoded, Run

__all__ = ["Outbox", "OutboxStatistics"]

MAX_EXEMPT = 100
"""Messages that the bound did not refuse and that may wait at once: one for each join that a socket may have.
Who joins and leaves without reading must not fill memory with them.
"""

MAX_BACKLOG = 262_144
"""Bytes behind the message in flight: 256 KiB is some 1,300 messages of 200 bytes, more than a second of all
but the heaviest streams, and 10,000 stuck clients still fit into memory."""


@attrs.frozen
class OutboxStatistics:
    """What one outbox holds now."""

    pending: int
    """Bytes that wait, those taken by the transport and not written yet included."""
    conflated: int
    """Messages that were replaced by a newer one of the same key."""
    disconnect: Disconnect | None
    """Why it takes nothing more."""


class Outbox:
    """The messages of one connection on their way out."""

    __slots__ = (
        "_exempt",
        "_items",
        "_keys",
        "_limit",
        "_total",
        "conflated",
        "disconnect",
        "max_backlog",
        "max_exempt",
        "wake",
    )

    def __init__(
        self, wake: Callable[[], None], *, max_backlog: int = MAX_BACKLOG, max_exempt: int = MAX_EXEMPT
    ) -> None:
        self.wake = wake
        self.max_backlog = max_backlog
        self.max_exempt = max_exempt
        self._exempt = 0
        self.disconnect: Disconnect | None = None
        self.conflated = 0
        # A Run is everybody's: it is replaced by a list of our own before anything is added to it.
        self._items: list[Encoded] | Run = []
        self._keys: dict[str, int] = {}
        self._total = 0
        self._limit = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def pending(self) -> int:
        """Bytes that wait or are being written."""
        return self._total

    @property
    def room(self) -> int:
        """Bytes that still fit behind what waits."""
        return max(self._limit, self.max_backlog) - self._total

    def put(self, item: Encoded) -> None:
        """Take one message, or give the connection up if it does not fit."""
        if self.disconnect is not None:
            return
        total = self._total + len(item.data)
        if item.key is not None and self._replace(item):
            return
        if total > self._limit and not self._widen(len(item.data)):
            return
        items = self._items
        idle = not items
        if type(items) is list:
            items.append(item)
        else:
            self._own().append(item)
        self._total = total
        if idle:
            self.wake()

    def put_run(self, run: Run) -> None:
        """As ``put`` for each, but they go out together. None of them may have a key."""
        if self.disconnect is not None:
            return
        total = self._total + run.size
        if total > self._limit:
            if self._total or total - run.first > self.max_backlog:
                for item in run:
                    self.put(item)
                return
            self._limit = self.max_backlog + run.first
        self._total = total
        if self._items:
            self._own().extend(run)
        else:
            self._items = run
            self.wake()

    def _own(self) -> list[Encoded]:
        """What waits, as a list that may be added to."""
        items = self._items
        if not isinstance(items, list):
            items = self._items = list(items)
        return items

    def put_exempt(self, item: Encoded) -> None:
        """Take a message that the bound must not refuse: it comes once a join, and no join could succeed
        without. Only ``max_exempt`` of them may wait.
        """
        if self._total and self._exempt < self.max_exempt:
            self._exempt += 1
            self._limit += len(item.data)
        self.put(item)

    def _widen(self, size: int) -> bool:
        """The bound starts anew behind the first message of an outbox that was empty."""
        if self._total == 0:
            self._limit = self.max_backlog + size
            return True
        self._items = []
        self._keys.clear()
        self.close(OVERLOAD)
        return False

    def _replace(self, item: Encoded) -> bool:
        """Put ``item`` into the place of its forerunner, if one still waits."""
        assert item.key is not None
        index = self._keys.get(item.key)
        if index is None:
            self._keys[item.key] = len(self._items)
            return False
        items = self._own()
        growth = len(item.data) - len(items[index].data)
        if growth > 0 and self._total + growth > self._limit:
            return False
        self._total += growth
        items[index] = item
        self.conflated += 1
        return True

    def take_all(self) -> list[Encoded] | Run:
        """Everything that waits: a Run, where that is all there is. Say ``written`` with the payload bytes
        once they are out.
        """
        items, self._items = self._items, []
        if self._keys:
            self._keys.clear()
        return items

    def written(self, size: int) -> None:
        """``size`` bytes of what was taken have left: the sum of ``len(item.data)``, without frame
        headers.
        """
        self._total -= size
        if self._total <= 0:
            self._total = 0
            self._limit = 0
            self._exempt = 0

    def close(self, disconnect: Disconnect) -> None:
        """Nothing more goes in; what waits may still be taken, then the connection ends. The first reason
        stays.
        """
        if self.disconnect is None:
            self.disconnect = disconnect
            self.wake()

    def statistics(self) -> OutboxStatistics:
        return OutboxStatistics(pending=self._total, conflated=self.conflated, disconnect=self.disconnect)
