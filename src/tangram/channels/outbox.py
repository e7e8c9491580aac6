"""The messages that wait for one connection: bounded in bytes, taken all at once.

1. An outbox never blocks and never waits. A client that is too far behind loses its connection, with a named
   disconnect, so that the messages of other clients are not late.
2. The bound counts the bytes *behind* the first message, so that an empty outbox takes one message of any
   allowed size. Bytes that a transport has taken but not yet written still count.
3. ``wake`` is called when an outbox that was idle has work. It must not block and must not touch memberships.
4. A broadcast to clients that keep up does not pass through outboxes: ``put_run_all`` hands the framed bytes
   to the transport's ``express`` at once. That is set only while nothing waits, so that nothing is overtaken;
   bytes that it does not take are counted as if they had been put. ``join`` frames the run for the first one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import attrs

from tangram import defaults
from tangram.channels.disconnects import OVERLOAD, Disconnect
from tangram.channels.frames import Encoded, Run
from tangram.channels.serializers import V2, Serializer

__all__ = ["Outbox", "OutboxStatistics", "put_replies", "put_run_all"]

MAX_EXEMPT: Final = 100
"""Messages exempt from the bound that may wait at once: one for each join that a socket may have.
A client that joins and leaves without reading must not fill memory with them.
"""

LARGE: Final = 65_536
"""Bytes from which on a message to one client is not joined: the copy costs more than the other call."""


@attrs.frozen
class OutboxStatistics:
    """The numbers of one outbox now."""

    pending: int
    """Bytes that wait, including those that the transport has taken and not yet written."""
    conflated: int
    """Messages that were replaced by a newer one of the same key."""
    disconnect: Disconnect | None
    """Why the outbox takes no more messages; None while it does."""


class Outbox:
    """The messages that wait for one connection."""

    __slots__ = (
        "_exempt",
        "_items",
        "_keys",
        "_limit",
        "_total",
        "conflated",
        "corked",
        "disconnect",
        "express",
        "express_parts",
        "join",
        "max_backlog",
        "max_exempt",
        "resume",
        "serializer",
        "wake",
    )

    def __init__(
        self,
        wake: Callable[[], None],
        *,
        max_backlog: int = defaults.MAX_BACKLOG,
        max_exempt: int = MAX_EXEMPT,
        serializer: Serializer = V2,
    ) -> None:
        self.serializer = serializer
        """Encodes the messages of this connection."""
        self.wake = wake
        self.max_backlog = max_backlog
        self.max_exempt = max_exempt
        self.corked = False
        """Whether writes wait, while the frames of one read are handled: their replies go out together."""
        self._exempt = 0
        self.express: Callable[[bytes], int] | None = None
        """Sends framed bytes without blocking, and returns how many it took; None while anything waits."""
        self.express_parts: Callable[[Encoded], int] | None = None
        """Frames and sends a message like ``express``, without joining its parts; returns how many bytes are
        left."""
        self.join: Callable[[Run], bytes] | None = None
        """Frames a run for ``express``, and stores the bytes in ``run.wire``."""
        self.resume: Callable[[bytes, int, int], None] | None = None
        """Sends the rest of framed bytes: ``resume(wire, sent, size)`` after ``express`` has taken a part."""
        self.disconnect: Disconnect | None = None
        self.conflated = 0
        # A Run is shared with other outboxes: it is replaced by a private list before it is changed.
        self._items: list[Encoded] | Run = []
        self._keys: dict[str, int] = {}
        self._total = 0
        self._limit = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def pending(self) -> int:
        """The number of bytes that wait or are being written."""
        return self._total

    @property
    def free(self) -> int:
        """The number of bytes that still fit."""
        return max(self._limit, self.max_backlog) - self._total

    def put(self, item: Encoded) -> None:
        """Add one message; if it does not fit, close with ``OVERLOAD``."""
        if self.disconnect is not None:
            return
        total = self._total + item.size
        if item.key is not None and self._replace(item):
            return
        if total > self._limit and not self._widen(item.size):
            return
        items = self._items
        idle = not items
        self.express = None
        if type(items) is list:
            items.append(item)
        else:
            self._own().append(item)
        self._total = total
        if idle:
            self.wake()

    def put_run(self, run: Run) -> None:
        """Add all messages of a run, which must have no keys, so that they go out together."""
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
        self.express = None
        if self._items:
            self._own().extend(run)
        else:
            self._items = run
            self.wake()

    def _own(self) -> list[Encoded]:
        """Return the waiting messages as a private list, to which messages may be added."""
        items = self._items
        if not isinstance(items, list):
            items = self._items = list(items)
        return items

    def put_exempt(self, item: Encoded) -> None:
        """Add a message that the bound must not refuse; only ``max_exempt`` of them may wait.

        It is for the presence state, which is sent once for each join: with it refused, no join to a large
        topic could succeed.
        """
        if self._total and self._exempt < self.max_exempt:
            self._exempt += 1
            self._limit += item.size
        self.put(item)

    def _widen(self, size: int) -> bool:
        """Set the bound behind the first message of an empty outbox; else close with overload."""
        if self._total == 0:
            self._limit = self.max_backlog + size
            return True
        self._items = []
        self._keys.clear()
        self.close(OVERLOAD)
        return False

    def _replace(self, item: Encoded) -> bool:
        """Replace the waiting message with the key of ``item``; return False if there is none."""
        assert item.key is not None
        index = self._keys.get(item.key)
        if index is None:
            self._keys[item.key] = len(self._items)
            return False
        items = self._own()
        growth = item.size - items[index].size
        if growth > 0 and self._total + growth > self._limit:
            return False
        self._total += growth
        items[index] = item
        self.conflated += 1
        return True

    def take_all(self) -> list[Encoded] | Run:
        """Remove and return all waiting messages; a Run if nothing else waits.

        The caller must report the payload bytes to ``written`` once they have left.
        """
        items, self._items = self._items, []
        if self._keys:
            self._keys.clear()
        return items

    def sent_part(self, run: Run, sent: int) -> None:
        """Note that ``express`` has taken ``sent`` bytes of a run; the transport sends the rest."""
        assert run.wire is not None
        assert self.resume is not None
        self.express = None
        self._total = run.size
        self._limit = self.max_backlog + run.first
        self.resume(run.wire, sent, run.size)

    def written(self, size: int) -> None:
        """Note that ``size`` bytes have left.

        ``size`` is the sum of ``item.size``, without frame headers.
        """
        self._total -= size
        if self._total <= 0:
            self._total = 0
            self._limit = 0
            self._exempt = 0

    def close(self, disconnect: Disconnect) -> None:
        """Refuse further messages; the waiting ones may still be taken.

        If it is called again, the first reason stays.
        """
        if self.disconnect is None:
            self.express = None
            self.disconnect = disconnect
            self.wake()

    def statistics(self) -> OutboxStatistics:
        """Return the numbers of this outbox now."""
        return OutboxStatistics(pending=self._total, conflated=self.conflated, disconnect=self.disconnect)


def put_run_all(outboxes: Sequence[Outbox], run: Run) -> None:
    """Add all messages of a run, which must have no keys, to many outboxes."""
    if (
        run.size >= LARGE
        and run.only is not None
        and len(outboxes) == 1
        and _put_parts(outboxes[0], run.only, run)
    ):
        return
    behind = run.size - run.first
    wire: bytes | None = None
    length = 0
    for outbox in outboxes:
        express = outbox.express
        if express is None or behind > outbox.max_backlog:
            outbox.put_run(run)
            continue
        if wire is None:
            assert outbox.join is not None
            wire = run.wire or outbox.join(run)
            length = len(wire)
        try:
            sent = express(wire)
        except OSError:
            # The socket takes nothing, or has gone: the transport handles both.
            outbox.put_run(run)
            continue
        if sent != length:
            outbox.sent_part(run, sent)


def put_replies(outbox: Outbox, run: Run) -> None:
    """Add replies, which leave at once unless other messages wait or the outbox is corked."""
    if outbox.corked:
        outbox.put_run(run)
    else:
        put_run_all((outbox,), run)


def _put_parts(outbox: Outbox, item: Encoded, run: Run) -> bool:
    """Send a large message to its only receiver; return False if it has to wait."""
    if outbox.express is None or outbox.express_parts is None:
        return False
    try:
        left = outbox.express_parts(item)
    except OSError:
        return False
    if left:
        assert outbox.join is not None
        outbox.sent_part(run, len(outbox.join(run)) - left)
    return True
