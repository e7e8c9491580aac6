"""Messages of presence for many members, put in slices between the messages of others.

1. A message to 1,000 members takes 8 ms. One that costs more than a slice waits here, and ``put_slice`` puts
   a slice of it; the caller calls it once in each pass of the event loop.
2. Messages of one topic keep their order: ``finish`` puts all of a topic that wait, before another message.
3. A member that has left gets nothing more. One that gets the list of members meanwhile gets only what was
   added later, because the list contains the rest: an older difference would bring back who has left.
4. At most ``MAX_WAITING`` messages wait; further ones are put at the cost of the pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import attrs

from tangram.channels.catchup import Form
from tangram.channels.destinations import Topic
from tangram.channels.frames import Run
from tangram.channels.membership import Membership
from tangram.channels.outbox import put_run_all

__all__ = ["MAX_WAITING", "SEND_COST", "SLICE", "Slices"]

SEND_COST: Final = 8192
"""Bytes that a message of presence counts for beside its own: the time of a write that holds nothing."""
SLICE: Final = 1024 * 1024
"""Bytes of a slice: 128 small messages, about a millisecond."""
MAX_WAITING: Final = 64
"""Messages that wait at once; there are 20 a second for each topic."""


@attrs.define(eq=False)
class _Waiting:
    """A message for the members that have not got it yet."""

    topic: Topic
    number: int
    parts: list[tuple[Run, list[Membership]]]
    """The message in each form, with the members that need it."""


class Slices:
    """The messages of presence that wait.

    Args:
        form: returns the form that a member needs.
        size: bytes of a slice.
    """

    def __init__(self, form: Callable[[Membership], Form], size: int = SLICE) -> None:
        self._form = form
        self._size = size
        self._waiting: deque[_Waiting] = deque()
        self.number = 0
        """The number of messages that were added so far."""
        self.wake: Callable[[], None] = lambda: None
        """Called when a message waits, and none did; it must not block."""

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, topic: Topic, members: Sequence[Membership], event: str, payload: bytes) -> int:
        """Put a message at once if it costs no more than a slice, else add it.

        Returns:
            The bytes of the message for all members.
        """
        parts, size = [], 0
        groups: dict[Form, list[Membership]] = {}
        for member in members:
            groups.setdefault(self._form(member), []).append(member)
        for (serializer, join_ref, _), group in groups.items():
            run = Run([serializer.encode_text(join_ref, None, topic.name, event, payload)])
            parts.append((run, group))
            size += run.size * len(group)
        self.number += 1
        message = _Waiting(topic, self.number, parts)
        if not topic.unfinished and size + SEND_COST * len(members) <= self._size:
            self._put(message, None)
            return size
        self._waiting.append(message)
        topic.unfinished += 1
        topic.groups = None  # so that the hub looks here before its next message to all of them
        if len(self._waiting) == 1:
            self.wake()
        while len(self._waiting) > MAX_WAITING:
            self._finish_first()
        return size

    def put_slice(self) -> None:
        """Put one slice."""
        left = self._size
        while self._waiting and left > 0:
            message = self._waiting[0]
            left = self._put(message, left)
            if not message.parts:
                self._waiting.popleft()
                message.topic.unfinished -= 1

    def finish(self, topic: Topic) -> None:
        """Put all messages of a topic that wait."""
        for message in [one for one in self._waiting if one.topic is topic]:
            self._finish(message)
            self._waiting.remove(message)

    def stated(self, members: Iterable[Membership]) -> None:
        """Note that members get the list, or the number of members, now."""
        for member in members:
            member.stated = self.number

    def _finish_first(self) -> None:
        self._finish(self._waiting.popleft())

    def _finish(self, message: _Waiting) -> None:
        self._put(message, None)
        message.topic.unfinished -= 1

    def _put(self, message: _Waiting, left: int | None) -> int:
        """Put a message until ``left`` bytes are used, or None for all; return how many are left."""
        parts, budget = message.parts, self._size if left is None else left
        while parts and budget > 0:
            run, members = parts[-1]
            cost = run.size + SEND_COST
            count = len(members) if left is None else max(1, budget // cost)
            now = members[:count]
            del members[:count]
            put_run_all([one.outbox for one in now if one.alive and one.stated < message.number], run)
            if left is not None:
                budget -= cost * len(now)
            if not members:
                parts.pop()
        return budget
