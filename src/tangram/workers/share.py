"""The open connections of each worker, in memory that all of them share.

All workers wait for the same listening sockets, and the kernel wakes each of them for a new connection. The
first one to run gets it, so that one process could collect most of the long connections. Each therefore
writes its own number where the others read it. Reading and writing are plain memory accesses.
"""

from __future__ import annotations

import heapq
import mmap
import os
from typing import Final

from tangram.workers.rules import ABSENT, pause_before_accept

__all__ = ["PLACES", "Share", "ShareTable"]

PLACES: Final = 511
"""Processes of one parent at the same time: during a replacement each worker has two."""

_BYTES: Final = (PLACES + 1) * 8
"""The first number is the highest place that was ever taken, so that few are read."""


class ShareTable:
    """The parent's side: makes the memory, and gives each process a place in it."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("tangram-workers", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, _BYTES)
        self._memory = mmap.mmap(self.descriptor, _BYTES)
        self._counts = memoryview(self._memory).cast("q")
        self._free = list(range(1, PLACES + 1))

    def take(self) -> int:
        """Return the lowest free place."""
        index = heapq.heappop(self._free)
        self._counts[index] = ABSENT
        self._counts[0] = max(self._counts[0], index)
        return index

    def give_back(self, index: int) -> None:
        """Free the place of a process that has ended, also by SIGKILL."""
        self._counts[index] = ABSENT
        heapq.heappush(self._free, index)

    def counts(self) -> list[int]:
        """Return the connections of each process that accepts."""
        return [count for count in self._counts[1 : self._counts[0] + 1] if count != ABSENT]

    def close(self) -> None:
        """Release the memory."""
        self._counts.release()
        self._memory.close()
        os.close(self.descriptor)


class Share:
    """A worker's side.

    Args:
        descriptor: the memory, which this closes once it is mapped.
        index: the worker's place in it.
    """

    def __init__(self, descriptor: int, index: int) -> None:
        self._memory = mmap.mmap(descriptor, _BYTES)
        os.close(descriptor)
        self._counts = memoryview(self._memory).cast("q")
        self._index = index

    def pause(self, connections: int) -> float:
        """Publish the number of connections; return the seconds to wait before an accept."""
        counts = self._counts
        counts[self._index] = ABSENT
        wait = pause_before_accept(connections, counts[1 : counts[0] + 1])
        counts[self._index] = connections
        return wait

    def leave(self) -> None:
        """Note that this process accepts no more connections."""
        self._counts[self._index] = ABSENT
