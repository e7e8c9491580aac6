"""The judgement of one page's numbers on one topic of a history, without I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import attrs


@attrs.define
class Watched:
    """What one page has received on one topic.

    A number may be missing if a join has said so, and come again if the page has seen no position that covers
    it: those are the messages of the last write, and those of ``PUBLISH`` that were not recorded yet. A
    position comes behind the messages that it covers, and perhaps behind one of ``PUBLISH`` that it does not.
    """

    sent: Collection[int] | None = None
    """Numbers that Redis has surely taken, in order; None if all numbers below the last one are."""
    last: int | None = None
    numbers: int = 0
    """Numbers that have come, repeats included."""
    joins: int = 0
    recovered: int = 0
    """Joins from a position of the page that missed nothing, as their replies said."""
    told: int = 0
    """Joins with a position that missed messages, and said so."""
    lost: int = 0
    disordered: int = 0
    repeated: int = 0
    excessive: int = 0
    """Repeats beyond the last write."""
    _covered: tuple[str, int] | None = None
    """Epoch and offset of the last position."""
    _uncovered: int = 0
    """Messages behind the last position."""
    _may_repeat: int = 0
    _gap: bool = True

    def take(self, said: Mapping[str, Any]) -> None:
        """Take one line of the page."""
        if "n" in said:
            self._take_number(said["n"])
        elif "at" in said:
            self._take_position(said["at"])
        else:
            self.joins += 1
            self._may_repeat = self._uncovered
            if not said["recovered"]:
                self._covered, self._uncovered = None, 0
            if "position" in said:
                self._take_position(said["position"])
            self.recovered += bool(said["recovered"])
            if not said["recovered"]:
                self.told += said.get("reason") is not None
                self._gap = True

    def _take_position(self, position: str) -> None:
        epoch, _, offset = position.rpartition(".")
        covered = epoch, int(offset)
        if self._covered is None or self._covered[0] != epoch:
            self._uncovered = 0
        else:  # offsets of one epoch count the messages without a gap
            self._uncovered = max(0, self._uncovered - (covered[1] - self._covered[1]))
        self._covered = covered

    def _take_number(self, number: int) -> None:
        last = self.last
        self.numbers += 1
        if last is not None and number <= last:
            self.repeated += 1
            if self._may_repeat > 0:
                self._may_repeat -= 1
            elif self.joins < 2:
                self.disordered += 1
            else:
                self.excessive += 1
            return
        if last is not None and not self._gap:
            between = range(last + 1, number)
            self.lost += len(between) if self.sent is None else sum(one in self.sent for one in between)
        self._uncovered += 1
        self.last, self._gap = number, False
