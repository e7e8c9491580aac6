"""Counters of parts that live for one incarnation, summed over all incarnations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

__all__ = ["Carried"]

T = TypeVar("T")


class Carried(Generic[T]):
    """Sums counters, so that they never fall when a part is replaced by its next incarnation.

    A part that has ended may still count, for example while its connections are closed. It is read until it
    is over; then its numbers are kept, and it is forgotten.

    Args:
        read: returns the counters of a part.
        is_over: whether an ended part counts nothing more.
    """

    def __init__(
        self, read: Callable[[T], Mapping[Hashable, int]], is_over: Callable[[T], bool] = lambda _part: True
    ) -> None:
        self._read = read
        self._is_over = is_over
        self._parts: list[T] = []
        self._ended: list[T] = []
        self._kept: Counter[Hashable] = Counter()

    def add(self, part: T) -> None:
        """Count a part from now on."""
        self._parts.append(part)

    def end(self, part: T) -> None:
        """Note that a part has ended."""
        self._parts.remove(part)
        self._ended.append(part)

    def totals(self, known: tuple[T, Mapping[Hashable, int]] | None = None) -> Counter[Hashable]:
        """Return the sums over all parts ever added.

        Args:
            known: a part whose counters the caller has read already.
        """
        for part in [one for one in self._ended if self._is_over(one)]:
            self._ended.remove(part)
            self._kept.update(self._read(part))
        totals = self._kept.copy()
        for part in (*self._parts, *self._ended):
            if known is not None and part is known[0]:
                totals.update(known[1])
            else:
                totals.update(self._read(part))
        return totals
