"""Messages of plain ``PUBLISH`` that are not recorded yet, as one reader knows them.

1. Every reader sees the same messages in the same order, and so does the recorder. The recorder records them
   in this order and publishes how many. So each reader can remove them from the front of its queue.
2. A reader that began later than the recorder first has to be in step with it: it says hello in the feed, and
   the recorder answers once all messages before the hello are recorded. From then on the queue is exact.
3. A new recorder that was in step with the old one goes on with the same queue. If it was not, messages may
   have passed unrecorded, and every reader has to get in step again.
4. The queue is bounded. A reader whose queue overflows is not in step any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

__all__ = ["PlainMessage", "Unrecorded"]

MAX_BYTES: Final = 16 * 1024 * 1024
"""Bytes of the messages of one queue: several seconds without a recorder."""


class PlainMessage(NamedTuple):
    """One message of a topic."""

    topic: str
    event: str
    payload: bytes


class Unrecorded:
    """The queue of one reader of the feed.

    Args:
        name: a name that no other reader has.
        max_bytes: the bound of the queue.
    """

    def __init__(self, name: str, *, max_bytes: int = MAX_BYTES) -> None:
        self.recorder: int | None = None
        """The number of the recorder with which this reader is in step; None if with none."""
        self._name = name
        self._max_bytes = max_bytes
        self._hellos = 0
        self._entries: deque[PlainMessage] = deque()
        self._bytes = 0
        self._before: int | None = None
        """The number of entries before this reader's hello in the feed; None before it."""
        self._records = 0
        """Messages that were recorded since the hello."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> Sequence[PlainMessage]:
        """The queue, oldest first."""
        return self._entries

    def of_topic(self, topic: str) -> list[PlainMessage]:
        """Return the unrecorded messages of one topic, oldest first."""
        return [entry for entry in self._entries if entry.topic == topic]

    def add(self, entry: PlainMessage) -> None:
        """Add a message of the feed."""
        self._entries.append(entry)
        self._bytes += len(entry.payload) + 100
        if self._bytes > self._max_bytes:
            self.forget()

    def forget(self) -> None:
        """Drop everything: the feed was interrupted, or the queue is full."""
        self._entries.clear()
        self._bytes = 0
        self._out_of_step()

    def next_hello(self) -> str:
        """Return the nonce of a new hello, which is to be published."""
        self._hellos += 1
        self._before = None
        return self._nonce

    @property
    def _nonce(self) -> str:
        return f"{self._name}.{self._hellos}"

    def heard_hello(self, nonce: str) -> None:
        """Handle a hello of the feed."""
        if nonce == self._nonce and self.recorder is None:
            self._before = len(self._entries)
            self._records = 0

    def heard_in_step(self, nonce: str, number: int, after: int) -> None:
        """Handle the recorder's answer to a hello."""
        if nonce != self._nonce or self._before is None:
            return
        self._drop(self._before + max(0, self._records - after))
        self._before = None
        self.recorder = number

    def heard_recorded(self, number: int, count: int) -> None:
        """Handle a step of a recorder."""
        if self.recorder == number:
            if count > len(self._entries):
                self.forget()
            else:
                self._drop(count)
        elif self._before is not None:
            self._records += count

    def heard_lease(self, number: int, *, broke: bool, mine: bool = False) -> None:
        """Handle a change of the recorder.

        Args:
            number: the number of the new recorder.
            broke: whether messages may have passed without one.
            mine: whether this reader is the new recorder; its queue then counts.
        """
        if mine or (self.recorder == number - 1 and not broke):
            self.recorder = number
            self._before = None
        elif self.recorder != number:
            self._out_of_step()

    def _out_of_step(self) -> None:
        self.recorder = None
        self._before = None
        self._records = 0

    def _drop(self, count: int) -> None:
        for _ in range(min(count, len(self._entries))):
            self._bytes -= len(self._entries.popleft().payload) + 100
