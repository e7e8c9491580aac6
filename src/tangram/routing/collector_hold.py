"""Full passes of the garbage collector are put off while large values live.

A full pass visits every array and object of a value: 50 ms for the JSON of one body of 2 MiB, and while such
a value is made there are several. JSON has no cycles, so that these passes find nothing in it. The young
generations are collected as ever, in passes of a fraction of a millisecond.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

__all__ = ["LONGEST", "CollectorHold", "hold"]

LONGEST: Final = 5.0
"""Seconds after which one full pass may be made although large values live: there is other garbage."""
_NEVER: Final = 2**31 - 1
"""A threshold that is not reached."""


class CollectorHold:
    """Puts off full passes while at least one ``with`` block of it runs.

    The collector is that of the process, so that all parts use ``hold``.

    Args:
        clock: returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._blocks = 0
        self._threshold = 0
        """The threshold of full passes outside of the blocks."""
        self._until = 0.0

    def __enter__(self) -> None:
        with self._lock:
            self._blocks += 1
            if self._blocks == 1:
                self._threshold = gc.get_threshold()[2]
                self._put_off()
                gc.callbacks.append(self._watch)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._blocks -= 1
            if not self._blocks:
                gc.callbacks.remove(self._watch)
                _set(self._threshold)

    def _put_off(self) -> None:
        self._until = self._clock() + LONGEST
        _set(_NEVER)

    def _watch(self, phase: str, info: dict[str, Any]) -> None:
        """Allow a full pass when it is time, and none after it."""
        if phase == "stop" and info["generation"] == 2:
            self._put_off()
        elif phase == "start" and self._clock() >= self._until:
            _set(self._threshold)


def _set(third: int) -> None:
    first, second, _ = gc.get_threshold()
    gc.set_threshold(first, second, third)


hold: Final = CollectorHold()
"""The hold of this process."""
