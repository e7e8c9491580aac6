"""Live tails of topics for the operator: the messages of browsers, as JSON lines.

1. A tail never costs the topic anything: it is bounded in bytes and in messages a second, and counts the
   messages that it leaves out.
2. A tail reads the batches of the bus before the hub, so that it also shows messages without a member.
3. ``deliver`` is called for each batch. Without an open tail the caller does not call it.
"""

from __future__ import annotations

import base64
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import trio

from tangram.bus.topics import parse_to

__all__ = ["HEARTBEAT", "MAX_BYTES", "MAX_RATE", "MAX_TAILS", "Tail", "Tails", "shown"]

MAX_TAILS: Final = 16
"""Tails at one time: each parses the names of all messages."""

MAX_RATE: Final = 500
"""Messages a second of one tail: more than a person reads, and a hundredth of the load of a busy topic."""

MAX_BYTES: Final = 1_048_576
"""Bytes that wait for the reader of one tail."""

HEARTBEAT: Final = 15.0
"""Seconds after which an idle tail sends an empty line, so that no proxy takes it for dead."""


class Tail:
    """The messages of one topic that wait for their reader.

    Args:
        topic: the exact topic.
        event: the exact event; None for all.
    """

    def __init__(self, topic: str, event: str | None) -> None:
        self._topic = topic
        self._event = event
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._dropped = 0
        self._second = 0
        self._in_second = 0
        self._closed = False
        self._news = trio.Event()

    def take(self, topic: str, event: str, payload: bytes, now: float) -> None:
        """Keep a message of the topic, or count it as dropped."""
        if topic != self._topic or self._event not in {None, event}:
            return
        if int(now) != self._second:
            self._second, self._in_second = int(now), 0
        self._in_second += 1
        if self._in_second > MAX_RATE or self._size + len(payload) > MAX_BYTES:
            self._dropped += 1
            return
        line = msgspec.json.encode({"time": now, "topic": topic, "event": event, "payload": shown(payload)})
        self._lines.append(line + b"\n")
        self._size += len(line)
        self._news.set()

    def close(self) -> None:
        """End the tail after the messages that wait."""
        self._closed = True
        self._news.set()

    async def next_lines(self) -> bytes | None:
        """Return the lines that wait, an empty line after a quiet time, or None at the end."""
        if not self._lines and not self._closed:
            self._news = trio.Event()
            with trio.move_on_after(HEARTBEAT):
                await self._news.wait()
        else:
            await trio.lowlevel.checkpoint()
        if not self._lines:
            return None if self._closed else b"\n"
        if self._dropped:
            self._lines.append(msgspec.json.encode({"time": time.time(), "dropped": self._dropped}) + b"\n")
        found = b"".join(self._lines)
        self._lines.clear()
        self._size = self._dropped = 0
        return found


class Tails:
    """The open tails of one incarnation."""

    def __init__(self) -> None:
        self._open: set[Tail] = set()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def full(self) -> bool:
        """Whether there are `MAX_TAILS` of them."""
        return len(self._open) >= MAX_TAILS

    @contextmanager
    def open(self, topic: str, event: str | None = None) -> Iterator[Tail]:
        """Open a tail for the block; ask ``full`` first."""
        tail = Tail(topic, event)
        self._open.add(tail)
        try:
            yield tail
        finally:
            self._open.discard(tail)

    def close(self) -> None:
        """End all tails, because the server stops or restarts."""
        for tail in self._open:
            tail.close()

    def deliver(self, batch: Sequence[tuple[bytes, bytes]]) -> None:
        """Hand a batch of (Redis channel, payload) to the tails."""
        now = time.time()
        for channel, payload in batch:
            found = parse_to(channel)
            if found is not None:
                for tail in self._open:
                    tail.take(*found, payload, now)


def shown(payload: bytes) -> Any:
    """Return a payload on one line: its JSON as it is, else its text, else base64."""
    try:
        return msgspec.Raw(msgspec.json.format(payload, indent=-1))
    except (msgspec.DecodeError, RecursionError, ValueError):
        pass
    try:
        return {"text": payload.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(payload).decode()}
