"""The feed of one node: positions of messages, and places where members go live.

1. Batches of the bus go in, steps come out: messages for the hub, the places where members go live, and gaps.
2. Stamps are removed from the batch. Behind the last message of a followed topic in a batch comes its
   position, for the members that asked for positions.
3. A followed topic has such members. Each offset must follow the one before; otherwise a message was missed,
   and the step is a gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tangram.channels.hub import POSITION
from tangram.history.position import Position
from tangram.history.rules import STAMPS, Rules
from tangram.history.stamps import Recorded, Stamp, parse_stamp
from tangram.history.unrecorded import PlainMessage, Unrecorded

__all__ = ["Delivery", "Feed", "Gap", "Live", "Step"]

Message = tuple[bytes, bytes]


class Delivery(NamedTuple):
    """Step: deliver these messages of the feed to members."""

    batch: Sequence[Message]


class Live(NamedTuple):
    """Step: the members that wait for this marker go live here."""

    nonce: str
    topic: str
    position: Position
    waiting: Sequence[PlainMessage]
    """Messages before the marker that are not in the history yet."""
    in_step: bool
    """Whether ``waiting`` is known to be complete."""


class Gap(NamedTuple):
    """Step: members of the topic that asked for positions have missed a message."""

    topic: str


Step = Delivery | Live | Gap


class Feed:
    """The positions of one node, from the start of its subscription.

    Args:
        rules: which topics have a history.
        name: a name that no other feed has.
    """

    def __init__(self, rules: Rules, name: str) -> None:
        self.unrecorded = Unrecorded(name)
        self.expected: set[str] = set()
        """The nonces of markers for which members wait; their topics are followed from the marker on."""
        self._rules = rules
        self._followed: dict[str, Position] = {}
        self._stamp: tuple[str, Position] | None = None
        self._steps: list[Step] = []
        self._out: list[Message] = []
        self._marks: dict[str, tuple[int, Position]] = {}

    @property
    def followed(self) -> Mapping[str, Position]:
        """The topics with members that asked for positions, and the position of each."""
        return self._followed

    def unfollow(self, topic: str) -> None:
        """Watch a topic no longer."""
        self._followed.pop(topic, None)

    def interrupted(self) -> None:
        """Forget everything: messages may have been missed."""
        self.unrecorded.forget()
        self.expected.clear()
        self._followed.clear()
        self._stamp = None

    def take(self, batch: Sequence[Message]) -> Sequence[Step]:
        """Return the steps of a batch, in order."""
        place_of = self._rules.place
        out = self._out
        for message in batch:
            channel, payload = message
            if channel == STAMPS:
                stamp = parse_stamp(payload)
                if stamp is not None:
                    self._take_stamp(stamp)
                    out = self._out
                continue
            place = place_of(channel)
            if place is not None and payload:
                self._take_kept(place.topic, place.event, payload)
                out = self._out
            out.append(message)
        self._flush()
        steps, self._steps = self._steps, []
        return steps

    def _take_kept(self, topic: str, event: str, payload: bytes) -> None:
        """Note a message of a topic with a history; it is put out behind this."""
        stamp, self._stamp = self._stamp, None
        if stamp is None or stamp[0] != topic:
            self.unrecorded.add(PlainMessage(topic, event, payload))
        elif topic in self._followed:
            self._advance(topic, stamp[1], 1, behind=1)

    def _take_stamp(self, stamp: Stamp) -> None:
        if stamp.m is not None and stamp.t is not None:
            self._take_marker(stamp.m, stamp.t, Position(stamp.e, stamp.o))
        elif stamp.t is not None:
            self._stamp = (stamp.t, Position(stamp.e, stamp.o))
        elif stamp.r is not None:
            self._take_recorded(stamp.f, stamp.r)
        elif stamp.l is not None:
            self.unrecorded.heard_lease(stamp.l, broke=bool(stamp.b))
        elif stamp.h is not None:
            self.unrecorded.heard_hello(stamp.h)
        elif stamp.s is not None:
            self.unrecorded.heard_in_step(stamp.s, stamp.f, stamp.k)

    def _take_marker(self, nonce: str, topic: str, position: Position) -> None:
        known = self._followed.get(topic)
        if known is not None and known != position:
            self._report_gap(topic)
        self._flush()
        in_step = self.unrecorded.recorder is not None
        self._steps.append(Live(nonce, topic, position, self.unrecorded.of_topic(topic), in_step))
        if nonce in self.expected:
            self.expected.discard(nonce)
            self._followed[topic] = position

    def _take_recorded(self, number: int, rows: Sequence[Recorded]) -> None:
        in_step = self.unrecorded.recorder == number
        for row in rows:
            if row.topic not in self._followed:
                continue
            if in_step:
                self._advance(row.topic, Position(row.epoch, row.last), row.count)
            else:
                # The recorded messages may have been published before this feed began.
                self._report_gap(row.topic)
        self.unrecorded.heard_recorded(number, sum(row.count for row in rows))

    def _advance(self, topic: str, position: Position, count: int, *, behind: int = 0) -> None:
        """Move a followed topic to a position, ``count`` messages on."""
        known = self._followed[topic]
        if position.epoch != known.epoch or position.offset != known.offset + count:
            self._report_gap(topic)
            return
        self._followed[topic] = position
        self._marks[topic] = (len(self._out) + behind, position)

    def _report_gap(self, topic: str) -> None:
        self._marks.pop(topic, None)
        self._flush()
        self._followed.pop(topic, None)
        self._steps.append(Gap(topic))

    def _flush(self) -> None:
        """Put the messages so far into a step, each position behind the messages that it covers."""
        out, self._out = self._out, []
        marks, self._marks = self._marks, {}
        if marks:
            placed: list[Message] = []
            start = 0
            for topic, (index, position) in sorted(marks.items(), key=_index):
                placed += out[start:index]
                start = index
                placed.append((POSITION, b'%b\0{"at":"%b"}' % (topic.encode(), str(position).encode())))
            out = [*placed, *out[start:]]
        if out:
            self._steps.append(Delivery(out))


def _index(mark: tuple[str, tuple[int, Position]]) -> int:
    return mark[1][0]
