"""The recorder's decisions: it keeps the messages of plain ``PUBLISH``.

1. Each node with histories reads the feed and keeps a queue of unrecorded messages. One node holds the lease,
   and records its queue. It begins behind the marker of its lease, because the records of the recorder before
   it come before that marker in the feed.
2. One step is in flight at a time, and its messages leave the queue when its record comes back in the feed.
   If the answer of a step is lost, the lease is renewed under a new number, and behind its marker the queue
   is exact.
3. A node whose feed was interrupted is not in step, and gives the lease away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

from tangram.bus.scripts import FunctionCall
from tangram.history.library import GUARD, LEASE, data_key, state_key
from tangram.history.rules import STAMPS, Rules, limits
from tangram.history.stamps import Stamp, in_step, parse_stamp
from tangram.history.unrecorded import PlainMessage, Unrecorded

__all__ = ["LEASE_TIME", "Recorder"]

LEASE_TIME: Final = 3.0
"""Seconds for which a lease lasts without a renewal: a node that hangs for longer has lost messages."""
STEP_MESSAGES: Final = 200
"""Messages of one step: Redis serves nothing else for the millisecond that they take."""
STEP_BYTES: Final = 1024 * 1024
"""Bytes of one step, unless its first message is longer."""


class _Hello(NamedTuple):
    """A reader that is to be brought in step."""

    nonce: str
    due: int
    """The number of recorded messages at which all messages before the hello are recorded."""
    after: int
    """Messages before the hello whose records come behind it in the feed."""


class Recorder:
    """The recorder of one node.

    Args:
        rules: which topics have a history.
        node: a name that no other node has.
    """

    def __init__(self, rules: Rules, node: str) -> None:
        self.node = node
        self.unrecorded = Unrecorded(node)
        self.number: int | None = None
        """The number under which this node records; None while another node does."""
        self._rules = rules
        self._published = ""
        """The topic whose next message was published by the functions."""
        self._recorded = 0
        self._in_flight = 0
        self._hellos: deque[_Hello] = deque()

    def interrupted(self) -> None:
        """Forget everything: messages may have been missed."""
        self.unrecorded.forget()
        self._stop()
        self._published = ""

    def _stop(self) -> None:
        self.number = None
        self._in_flight = 0
        self._hellos.clear()

    def take(self, pattern: bytes, channel: bytes, payload: bytes) -> None:
        """Handle one message of the feed."""
        if channel == STAMPS:
            stamp = parse_stamp(payload) if pattern == STAMPS else None
            if stamp is not None:
                self._take_stamp(stamp)
            return
        place = self._rules.place(channel)
        if place is None or not payload or self._rules.pattern_of(channel) != pattern:
            return
        published, self._published = self._published, ""
        if published != place.topic:
            self.unrecorded.add(PlainMessage(place.topic, place.event, payload))
            if not len(self.unrecorded):  # the queue was full, so that it is not complete any more
                self._stop()

    def _take_stamp(self, stamp: Stamp) -> None:
        if stamp.t is not None:
            self._published = stamp.t if stamp.m is None else self._published
        elif stamp.r is not None:
            self._take_recorded(stamp.f, sum(row.count for row in stamp.r))
        elif stamp.l is not None:
            mine = stamp.n == self.node
            self.unrecorded.heard_lease(stamp.l, broke=bool(stamp.b), mine=mine)
            self._stop()
            self.number = stamp.l if mine else None
        elif stamp.h is not None:
            waiting = len(self.unrecorded)
            if self.number is not None:
                self._hellos.append(_Hello(stamp.h, self._recorded + waiting, waiting))
            self.unrecorded.heard_hello(stamp.h)
        elif stamp.s is not None:
            self.unrecorded.heard_in_step(stamp.s, stamp.f, stamp.k)

    def _take_recorded(self, number: int, count: int) -> None:
        self.unrecorded.heard_recorded(number, count)
        if number == self.number:
            self._recorded += count
            self._in_flight = 0

    def answers(self) -> Iterator[bytes]:
        """Yield the answers to hellos that are due."""
        while self._hellos and self.number is not None and self._recorded >= self._hellos[0].due:
            one = self._hellos.popleft()
            yield in_step(one.nonce, self.number, one.after)

    @property
    def behind(self) -> bool:
        """Whether this node records, and has more messages than one step takes."""
        return self.number is not None and len(self.unrecorded) > STEP_MESSAGES

    def next_step(self) -> FunctionCall | None:
        """Return the call that records the oldest messages, or None."""
        if self.number is None or self._in_flight or not len(self.unrecorded):
            return None
        entries: list[PlainMessage] = []
        size = 0
        for entry in islice(self.unrecorded.entries, STEP_MESSAGES):
            size += len(entry.payload)
            if entries and size > STEP_BYTES:
                break
            entries.append(entry)
        self._in_flight = len(entries)
        return self._record_call(self.number, entries)

    def _record_call(self, number: int, entries: Sequence[PlainMessage]) -> FunctionCall:
        topics = list(dict.fromkeys(entry.topic for entry in entries))
        keys = [GUARD]
        words: list[str | bytes] = [str(number), str(len(topics))]
        for topic in topics:
            history = self._rules.find(topic)
            assert history is not None
            keys += [data_key(topic, history.mode), state_key(topic)]
            words += [topic, self._rules.new_epoch(), history.mode, *limits(history)]
        for entry in entries:
            words += [str(topics.index(entry.topic) + 1), entry.event, entry.payload]
        return FunctionCall("tangram_record", keys, words)

    def step_answered(self, answer: object) -> bool:
        """Handle the answer to a step; return whether the lease needs a new number.

        Args:
            answer: Redis' answer, or the error because of which there is none.
        """
        if answer == 1:
            return False
        number, self.number = self.number, None
        self._in_flight = 0
        # 0 means that another recorder has a higher number; an error, that the step may have been made.
        return number is not None and answer != 0

    def lease_call(self, *, force: bool = False) -> FunctionCall:
        """Return the call that takes or renews the lease."""
        known = self.unrecorded.recorder
        words = (self.node, str(round(LEASE_TIME * 1000)), "" if known is None else str(known))
        return FunctionCall("tangram_lease", (LEASE, GUARD), (*words, "force" if force else ""))

    def release_call(self) -> FunctionCall:
        """Return the call that gives the lease away."""
        return FunctionCall("tangram_release", (LEASE,), (self.node,))
