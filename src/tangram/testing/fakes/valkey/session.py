"""What the server remembers of one connection. Answers are put into it, encoded; whoever owns the connection
takes them out, and is woken when there are some.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import attrs

from tangram.testing.fakes.valkey.wire import Reply, encode

__all__ = ["ClientState", "OutputLimit"]

CHUNK = 64 * 1024
"""Bytes taken out at once, or one answer if that is longer."""


@attrs.frozen(kw_only=True)
class OutputLimit:
    """What may wait for a subscriber that does not read (client-output-buffer-limit pubsub 32mb 8mb 60)."""

    hard: int = 32 * 1024 * 1024
    """Bytes at which it is thrown out."""
    soft: int = 8 * 1024 * 1024
    """Bytes above which it may not be for long."""
    seconds: float = 60.0
    """How long that is."""


class ClientState:
    """One connection. ``wake`` is called when there is something to send, ``drop`` when it is thrown out."""

    def __init__(self, number: int, wake: Callable[[], object], drop: Callable[[], object]) -> None:
        self.number = number
        self.protocol = 2
        self.database = 0
        self.name = b""
        self.channels: dict[bytes, None] = {}
        self.patterns: dict[bytes, None] = {}
        self.queue: list[list[bytes]] | None = None
        """What a transaction will do; None outside of one."""
        self.spoilt = False
        """Whether something was refused in it."""
        self.watched: dict[tuple[int, bytes], int] = {}
        """Keys, and how often each had been changed."""
        self.closing = False
        """Whether it ends when everything is sent."""
        self.waiting = 0
        """Bytes that are not sent yet."""
        self.over_since: float | None = None
        self._held: list[Reply] | None = None
        self._pending: deque[bytes] = deque()
        self._wake, self._drop = wake, drop

    @property
    def subscribed(self) -> int:
        """How many channels and patterns it is subscribed to."""
        return len(self.channels) + len(self.patterns)

    def emit(self, reply: Reply) -> None:
        """Answer."""
        if self.closing:
            return
        data = encode(reply, self.protocol)
        if data:
            self._pending.append(data)
            self.waiting += len(data)
            self._wake()

    def push(self, message: Reply, limit: OutputLimit, now: float) -> None:
        """Give it a message; it is thrown out if it does not read. Its own publish is answered first."""
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
        """From here on messages wait."""
        self._held = []

    def release(self) -> list[Reply]:
        """They wait no longer; what came meanwhile."""
        held, self._held = self._held or [], None
        return held

    def close(self) -> None:
        """Nothing more is answered; what is pending is sent still."""
        self.closing = True
        self._wake()

    def take(self) -> bytes:
        """What is to be sent next; empty where there is nothing. ``sent`` follows when it is."""
        parts: list[bytes] = []
        size = 0
        while self._pending and (not parts or size + len(self._pending[0]) <= CHUNK):
            parts.append(self._pending.popleft())
            size += len(parts[-1])
        return b"".join(parts)

    def sent(self, size: int) -> None:
        """So many bytes do not wait any more."""
        self.waiting -= size

    def reset(self) -> None:
        """Forget everything, as RESET says."""
        self.protocol, self.database, self.name = 2, 0, b""
        self.channels.clear()
        self.patterns.clear()
        self.leave()

    def leave(self) -> None:
        """Forget a transaction."""
        self.queue, self.spoilt = None, False
        self.watched.clear()
