"""Positions in a topic's history: ``EPOCH.OFFSET``.

1. An epoch names one unbroken sequence of offsets. Positions of two epochs cannot be compared.
2. A position from outside may have any shape. One that no server made is no position, never an error.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple, Self

__all__ = ["Position", "Published", "parse_position"]

_POSITION: Final = re.compile(r"([0-9a-z]{1,16})\.(0|[1-9][0-9]{0,14})", re.ASCII)
"""Fifteen digits are exact in Lua, whose numbers are doubles."""


class Position(NamedTuple):
    """A place in the history of one topic: behind the message with this offset."""

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.offset}"


def parse_position(text: str) -> Position | None:
    """Return the position that a text denotes, or None."""
    found = _POSITION.fullmatch(text)
    return None if found is None else Position(found[1], int(found[2]))


class Published(int):
    """The outcome of a publication: the receivers, and the position in the history."""

    position: str | None
    """The position behind the message; None if the topic has no history."""

    def __new__(cls, receivers: int, position: str | None = None) -> Self:
        made = super().__new__(cls, receivers)
        made.position = position
        return made

    @property
    def receivers(self) -> int:
        """The number of Redis clients that received the message."""
        return int(self)

    def __repr__(self) -> str:
        return f"Published({int(self)}, position={self.position!r})"
