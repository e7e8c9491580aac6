"""The decisions about workers: names, rolling restarts, fair accepting. No I/O.

1. A rolling restart replaces one worker after the other, so that all but one serve at any time. The old
   process goes on until the new one is ready.
2. If a new process does not start, the rest keeps its configuration, and the places that have the new one
   get the old one back, latest first. So a faulty configuration leaves everything as it is.
3. A place that does not take the old configuration back keeps its process: two configurations are better
   than a missing worker.
4. A worker with more connections than its share leaves a new one to the others for a moment. It takes the
   connection afterwards if none of them has, so that no client waits for a worker that is blocked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, Literal

import attrs

__all__ = [
    "ABSENT",
    "LEAVE_SECONDS",
    "Names",
    "Rolling",
    "RollingStep",
    "pause_before_accept",
    "worker_count",
]

ABSENT: Final = -1
"""The number of connections in the place of a process that does not accept."""

LEAVE_SECONDS: Final = 0.002
"""Seconds for which a worker leaves a connection to the others: the pass of a busy loop takes less."""

SPARE: Final = 4
"""Connections above the mean that are no imbalance yet, so that a quiet server never waits."""


def worker_count(wanted: int | Literal["auto"], cores: int) -> int:
    """Return the number of workers for ``[server] workers``; ``auto`` is one for each core."""
    return max(1, cores) if wanted == "auto" else wanted


def pause_before_accept(mine: int, others: Iterable[int]) -> float:
    """Return the seconds to wait before accepting a connection.

    Args:
        mine: this worker's open connections.
        others: those of each other process, `ABSENT` for one that does not accept.
    """
    present = [count for count in others if count != ABSENT]
    if not present:
        return 0.0
    mean = (mine + sum(present)) / (len(present) + 1)
    return LEAVE_SECONDS if mine > mean + SPARE else 0.0


class Names:
    """The names of workers.

    The first process in place 2 is ``2``, the next one ``2-2``. Each has a name of its own, because two of
    them run side by side during a replacement, and the keys of one that was killed outlive it in Redis.
    """

    def __init__(self) -> None:
        self._used: dict[int, int] = {}

    def next_name(self, place: int) -> str:
        """Return the name of the next process in a place."""
        count = self._used[place] = self._used.get(place, 0) + 1
        return str(place) if count == 1 else f"{place}-{count}"


@attrs.frozen
class RollingStep:
    """One step of a rolling restart."""

    place: int
    back: bool
    """Whether the place gets the old configuration back."""


class Rolling:
    """One rolling restart, as a sequence of steps.

    The caller takes `step`, carries it out, and reports the result, until `step` is None.

    Args:
        places: the places of the workers, in the order in which they are replaced.
    """

    def __init__(self, places: Sequence[int]) -> None:
        self._steps = deque(RollingStep(place, back=False) for place in places)
        self._renewed: list[int] = []
        self.cause: str | None = None
        """Why the new configuration was given up; None if it was not."""
        self.kept_new: list[int] = []
        """The places that did not take the old configuration back."""

    @property
    def step(self) -> RollingStep | None:
        """The step to carry out now, or None at the end."""
        return self._steps[0] if self._steps else None

    def done(self) -> None:
        """Note that the new process of the step is ready."""
        step = self._steps.popleft()
        if not step.back:
            self._renewed.append(step.place)

    def failed(self, cause: str) -> None:
        """Note that the new process of the step did not start; the place still has its old one."""
        step = self._steps.popleft()
        if step.back:
            self.kept_new.append(step.place)
            return
        self.cause = cause
        self._steps = deque(RollingStep(place, back=True) for place in reversed(self._renewed))
