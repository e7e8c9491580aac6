"""The server's state of one connection.

Answers are put into it, encoded. The owner of the connection takes them out, and is woken when there
are some.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import attrs

from tangram.testing.fakes.valkey.wire import Reply, encode

__all__ = ["ClientState", "OutputLimit"]

CHUNK: Final = 64 * 1024
"""Bytes taken out at once, or one answer if that is longer."""


@attrs.frozen(kw_only=True)
class OutputLimit:
    """Bounds on the unread output of a subscriber.

    These are Valkey's defaults: client-output-buffer-limit pubsub 32mb 8mb 60.
    """

    hard: int = 32 * 1024 * 1024
    """Bytes at which it is disconnected."""
    soft: int = 8 * 1024 * 1024
    """Bytes above which it is disconnected after ``seconds``."""
    seconds: float = 60.0
    """Seconds for which it may be above ``soft``."""


class ClientState:
    """One connection: ``wake`` is called when there is output, ``drop`` to disconnect it."""

    def __init__(self, number: int, wake: Callable[[], object], drop: Callable[[], object]) -> None:
        self.number = number
        self.protocol = 2
        self.database = 0
        self.name = b""
        self.channels: dict[bytes, None] = {}
        self.patterns: dict[bytes, None] = {}
        self.queue: list[list[bytes]] | None = None
        """Requests of a transaction; None outside of one."""
        self.spoilt = False
        """Whether a request of the transaction was refused."""
        self.watched: dict[tuple[int, bytes], int] = {}
        """Watched keys, and how often each had changed."""
        self.closing = False
        """Whether the connection ends when all output is sent."""
        self.waiting = 0
        """Bytes of unsent output."""
        self.over_since: float | None = None
        self._held: list[Reply] | None = None
        self._pending: deque[bytes] = deque()
        self._wake, self._drop = wake, drop

    @property
    def subscribed(self) -> int:
        """Return the number of subscribed channels and patterns."""
        return len(self.channels) + len(self.patterns)

    def emit(self, reply: Reply) -> None:
        """Answer a request."""
        if self.closing:
            return
        data = encode(reply, self.protocol)
        if data:
            self._pending.append(data)
            self.waiting += len(data)
            self._wake()

    def push(self, message: Reply, limit: OutputLimit, now: float) -> None:
        """Send a message, and disconnect a subscriber that exceeds the limit.

        A message of its own publish follows the answer to that.
        """
        if self._held is not None:
            self._held.append(message)
            return
        self.emit(message)
        if self.waiting <= limit.soft:
            self.over_since = None
            return
        self.over_since = now if self.over_since is None else self.over_since
        if self.waiting > limit.hard or now - self.over_since > limit.seconds:
            self.closing = True
            self._drop()

    def hold(self) -> None:
        """Hold messages back from here on."""
        self._held = []

    def release(self) -> list[Reply]:
        """Hold messages no longer, and return the held ones."""
        held, self._held = self._held or [], None
        return held

    def close(self) -> None:
        """Answer nothing more; pending output is still sent."""
        self.closing = True
        self._wake()

    def take(self) -> bytes:
        """Return the next output, empty if there is none; call `sent` once it is sent."""
        parts: list[bytes] = []
        size = 0
        while self._pending and (not parts or size + len(self._pending[0]) <= CHUNK):
            parts.append(self._pending.popleft())
            size += len(parts[-1])
        return b"".join(parts)

    def sent(self, size: int) -> None:
        """Note that ``size`` bytes were sent."""
        self.waiting -= size

    def reset(self) -> None:
        """Forget everything, as RESET does."""
        self.protocol, self.database, self.name = 2, 0, b""
        self.channels.clear()
        self.patterns.clear()
        self.leave()

    def leave(self) -> None:
        """Forget the transaction."""
        self.queue, self.spoilt = None, False
        self.watched.clear()
