"""The server's own sockets to Redis, which clean-ups leave alone."""

from __future__ import annotations

import os
import weakref
from typing import Final, Protocol

__all__ = ["mark_own", "own_inodes"]


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


_OWN: Final[weakref.WeakSet[_HasFileno]] = weakref.WeakSet()


def mark_own(sock: _HasFileno) -> None:
    """Remember a socket of the server until it is closed or collected."""
    _OWN.add(sock)


def own_inodes() -> set[int]:
    """Return the inodes of the open ones; a descriptor may be reused, an inode is not."""
    found = set[int]()
    for sock in list(_OWN):
        descriptor = sock.fileno()
        if descriptor >= 0:
            found.add(os.fstat(descriptor).st_ino)
    return found
