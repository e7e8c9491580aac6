"""The judgement of one page's numbers on one topic of a history, without I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import attrs


@attrs.define
class Watched:
    """What one page has received on one topic.

    A number may be missing if a join has said so, and come again if it came after the last position that the
    page had seen: those are the messages of the last write.
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
    _since_position: int = 0
    _may_repeat: int = 0
    _gap: bool = True

    def take(self, said: Mapping[str, Any]) -> None:
        """Take one line of the page."""
        if "n" in said:
            self._take_number(said["n"])
        elif "at" in said:
            self._since_position = self._may_repeat = 0
        else:
            self.joins += 1
            self._may_repeat, self._since_position = self._since_position, 0
            self.recovered += bool(said["recovered"])
            if not said["recovered"]:
                self.told += said.get("reason") is not None
                self._gap = True

    def _take_number(self, number: int) -> None:
        last = self.last
        self.numbers += 1
        self._since_position += 1
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
        self.last, self._gap = number, False
