"""Joins of a crowd: each pass of the event loop handles a bounded number of them.

1. After a restart or a cut network thousands of clients join at once. Each join costs up to 0.1 ms, and all
   joins of one pass together would delay the messages of other clients by tens of milliseconds.
2. ``BUDGET`` of each ``WINDOW`` is for joins that are handled where they are read. Without a crowd these are
   all, at the cost of a comparison.
3. Further joins wait in line, first come, first served, and each pass handles ``BUDGET`` of them. While any
   wait, new ones go to the end of the line.
4. A join that waits is a join without a verdict: frames of its topic wait behind it, and frames of other
   topics do not (``channels/socket.py``).
5. Lists of presence wait until the line is empty, because a member that has its list gets each difference
   that the rest of the crowd makes. They wait for ``CROWD_TIME`` seconds at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import trio

__all__ = ["BUDGET", "CROWD_TIME", "DIRECT", "RECOVERY", "WINDOW", "JoinLine", "Joining"]

T = TypeVar("T")

DIRECT: Final = 2
"""The cost of a join that is answered at once: 45 µs."""
RECOVERY: Final = 1
"""The cost of a join that is answered later, with the messages that it missed."""
BUDGET: Final = 128
"""The cost of the joins that one pass handles: about three milliseconds."""
WINDOW: Final = 0.01
"""Seconds in which joins of this cost are handled at once: longer than a pass."""
CROWD_TIME: Final = 1.0
"""Seconds for which lists of presence wait: 9,900 clients have joined by then."""


class JoinLine(Generic[T]):
    """The order of joins and the number of them that are handled now, without a clock."""

    __slots__ = ("_began", "_spent", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[tuple[T, int]] = deque()
        self._began = -float("inf")
        self._spent = 0
        """The cost of the joins that were handled since ``_began``."""

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, join: T, cost: int, now: float) -> bool:
        """Add a join to the line; return False if it is to be handled at once."""
        if not self._waiting:
            if now - self._began >= WINDOW:
                self._began, self._spent = now, 0
            if self._spent < BUDGET:
                self._spent += cost
                return False
        self._waiting.append((join, cost))
        return True

    def take(self, now: float) -> list[T]:
        """Return the joins of this pass: the first ones of the line."""
        self._began, self._spent = now, 0
        joins = []
        while self._waiting and self._spent < BUDGET:
            join, cost = self._waiting.popleft()
            self._spent += cost
            joins.append(join)
        return joins


class Joining(Generic[T]):
    """The line of one part of the server, and the task that handles its joins.

    Args:
        handle: handles a join that has waited; it must neither block nor raise.
    """

    __slots__ = ("_calm", "_crowd", "_crowded_at", "_handle", "_line", "_running")

    def __init__(self, handle: Callable[[T], None]) -> None:
        self._handle = handle
        self._line: JoinLine[T] = JoinLine()
        self._crowd = trio.Event()
        """Set while joins wait."""
        self._calm = trio.Event()
        """Set while none do."""
        self._calm.set()
        self._crowded_at = -float("inf")
        self._running = False

    def put(self, join: T, cost: int) -> bool:
        """Add a join to the line; return False if the caller is to handle it now."""
        if not self._running:
            return False
        now = trio.current_time()
        waits = self._line.put(join, cost, now)
        if waits and self._calm.is_set():
            self._crowded_at = now
            self._calm = trio.Event()
            self._crowd.set()
        return waits

    @property
    def crowded(self) -> bool:
        """Whether joins wait, and have not done so for ``CROWD_TIME`` seconds."""
        return not self._calm.is_set() and trio.current_time() < self._crowded_at + CROWD_TIME

    async def wait_calm(self) -> None:
        """Return when it is no longer crowded."""
        if self.crowded:
            with trio.move_on_at(self._crowded_at + CROWD_TIME):
                await self._calm.wait()

    async def run(self) -> None:
        """Handle the joins that wait, until cancelled."""
        self._running = True
        try:
            while True:
                await self._crowd.wait()
                self._crowd = trio.Event()
                while len(self._line):
                    for join in self._line.take(trio.current_time()):
                        self._handle(join)
                    await trio.lowlevel.checkpoint()  # the next joins are handled in the next pass
                self._calm.set()
        finally:
            self._running = False
            self._calm.set()
