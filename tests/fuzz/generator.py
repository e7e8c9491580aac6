"""Generate inputs by mutation of a corpus that grows with each new kind of result."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from typing import Final

__all__ = ["MAX_INPUT", "Generator"]

MAX_INPUT: Final = 70_000
"""Bytes of an input: more than the largest frame that is buffered whole."""

KEPT: Final = 300
"""Inputs in the corpus of a target."""

ODD_BYTES: Final = b"\x00\x01\x09\x0a\x0d\x20\x22\x25\x2c\x3a\x5b\x5c\x5d\x7b\x7d\x7f\x80\xbf\xc0\xed\xff"
"""Bytes with a meaning in one of the formats, or at a border."""


class Generator:
    """Inputs for one target, the same for the same seed.

    An input with a new result joins the corpus, so that later inputs are built on it.
    """

    def __init__(self, corpus: Sequence[bytes], words: Sequence[bytes], seed: str) -> None:
        self._dice = random.Random(seed)
        self._corpus = list(corpus)
        self._words = list(words) or [b""]
        self._results: set[Hashable] = set()

    def next(self) -> bytes:
        """Return the next input."""
        dice = self._dice
        if dice.random() < 0.002:
            return self._dice.randbytes(dice.randrange(200))
        data = bytearray(self._corpus[int(dice.random() * len(self._corpus))])
        for _ in range(1 + int(dice.random() ** 3 * 8)):
            self._mutate(data)
        return bytes(data[:MAX_INPUT])

    def learn(self, data: bytes, result: Hashable) -> None:
        """Keep an input whose result is new."""
        if result not in self._results and len(self._corpus) < KEPT and len(data) < 4_000:
            self._results.add(result)
            self._corpus.append(data)

    def _mutate(self, data: bytearray) -> None:
        dice = self._dice
        at = int(dice.random() * (len(data) + 1))
        choice = dice.random()
        if choice < 0.3:
            data[at:at] = dice.choice(self._words)
        elif choice < 0.5:
            data[at : at + 1] = bytes([dice.choice(ODD_BYTES)])
        elif choice < 0.6 and at < len(data):
            data[at] ^= 1 << dice.randrange(8)
        elif choice < 0.75:
            del data[at : at + 1 + int(dice.random() ** 3 * 20)]
        elif choice < 0.87:
            self._splice(data, at)
        elif choice < 0.99:
            piece = bytes(data[at : at + 1 + int(dice.random() * 30)])
            data[at:at] = piece * dice.randrange(1, 4)
        else:
            piece = bytes(data[at : at + 1 + int(dice.random() * 30)]) or dice.choice(self._words)
            data[at:at] = piece * int(1 + 20_000 * dice.random() ** 2 / (len(piece) or 1))

    def _splice(self, data: bytearray, at: int) -> None:
        other = self._dice.choice(self._corpus)
        begin = self._dice.randrange(len(other) + 1)
        data[at : at + self._dice.randrange(10)] = other[begin : begin + self._dice.randrange(40)]
