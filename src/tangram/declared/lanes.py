"""The pushes that wait for the handlers of one plugin: their order, bounds and turns.

1. No I/O and no clock: ``pool.py`` takes the lanes and runs the handlers.
2. A lane has the pushes of one connection, in order. One lane is served by one task at a time, so that the
   pushes of one sender are handled in order, and those of other senders meanwhile.
3. Lanes take turns: one that has had ``TURN`` pushes handled goes to the end of the line.
4. Two bounds. A connection with ``MAX_UNANSWERED`` pushes is not read, so that its client slows down. A
   plugin with ``MAX_WAITING`` pushes of all connections refuses more: clients that connect again and again
   must not fill memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from tangram.channels.frames import SocketMessage
from tangram.declared.binding import Handler

__all__ = ["MAX_UNANSWERED", "MAX_WAITING", "TURN", "Answers", "Lane", "Lanes", "Unanswered", "WaitingPush"]

MAX_UNANSWERED: Final = 64
"""Pushes of one connection that are not answered; the rest of a read comes on top of it."""
MAX_WAITING: Final = 20_000
"""Pushes of all connections that wait for one plugin."""
TURN: Final = 50
"""Pushes of a lane that are handled before the next lane has its turn: less than a millisecond of checks."""


class Answers(Protocol):
    """The replies to the pushes of one connection."""

    def add(self, push: SocketMessage, status: str, response: bytes) -> None:
        """Add a reply, which ``flush`` sends."""

    def flush(self) -> None:
        """Put all replies into the outbox, so that they go out in one write."""


class WaitingPush(NamedTuple):
    """One push that waits for its handler."""

    handler: Handler
    arguments: dict[str, Any]
    """The arguments beside the message."""
    message: SocketMessage
    deadline: float
    """The time at which it gets an error reply."""


class Unanswered:
    """The number of pushes of one connection that are not answered."""

    __slots__ = ("_on_room", "count", "limit")

    def __init__(self, limit: int = MAX_UNANSWERED) -> None:
        self.count = 0
        self.limit = limit
        self._on_room: Callable[[], object] | None = None

    @property
    def full(self) -> bool:
        """Whether no more pushes should be read from the connection."""
        return self.count >= self.limit

    def when_room(self, call: Callable[[], object]) -> None:
        """Call ``call`` once half of the pushes are answered."""
        self._on_room = call

    def answered(self) -> None:
        """Note that one push is answered."""
        self.count -= 1
        if self._on_room is not None and self.count <= self.limit // 2:
            call, self._on_room = self._on_room, None
            call()


class Lane:
    """The pushes of one connection for one plugin."""

    __slots__ = ("answers", "current", "known", "pushes", "scheduled", "unanswered")

    def __init__(self, answers: Answers, unanswered: Unanswered) -> None:
        self.answers = answers
        self.unanswered = unanswered
        self.pushes: deque[WaitingPush] = deque()
        self.current: WaitingPush | None = None
        """The push that is being handled."""
        self.scheduled = False
        """It stands in line, or is being served."""
        self.known: dict[tuple[str, str], tuple[object, dict[str, Any]]] = {}
        """The arguments by topic and event, with the membership that they were made for."""

    def reply(self, push: WaitingPush, status: str, response: bytes) -> None:
        """Answer a push, with the next ``answers.flush``."""
        self.answers.add(push.message, status, response)
        self.unanswered.answered()


class Lanes:
    """The lanes of one plugin that have pushes."""

    __slots__ = ("_active", "_line", "waiting")

    def __init__(self) -> None:
        self._line: deque[Lane] = deque()
        self._active: set[Lane] = set()
        self.waiting = 0
        """Pushes in all lanes."""

    @property
    def full(self) -> bool:
        """Whether no further push is taken."""
        return self.waiting >= MAX_WAITING

    @property
    def ready(self) -> bool:
        """Whether a lane stands in line."""
        return bool(self._line)

    def put(self, lane: Lane, push: WaitingPush) -> bool:
        """Add a push, and return whether its lane has come into the line by that."""
        lane.pushes.append(push)
        lane.unanswered.count += 1
        self.waiting += 1
        if lane.scheduled:
            return False
        lane.scheduled = True
        self._active.add(lane)
        self._line.append(lane)
        return True

    def take(self) -> Lane:
        """Remove and return the first lane of the line."""
        return self._line.popleft()

    def next_push(self, lane: Lane) -> WaitingPush:
        """Remove and return the first push of a lane."""
        push = lane.current = lane.pushes.popleft()
        self.waiting -= 1
        return push

    def put_back(self, lane: Lane) -> None:
        """End the turn of a lane: to the end of the line if it has pushes left."""
        lane.current = None
        if lane.pushes:
            self._line.append(lane)
        else:
            lane.scheduled = False
            self._active.discard(lane)

    def take_all(self) -> list[tuple[Lane, WaitingPush]]:
        """Remove and return all pushes, those being handled included, in the order of each lane."""
        found = []
        for lane in self._active:
            found += [(lane, push) for push in ((lane.current,) if lane.current else ())]
            found += [(lane, push) for push in lane.pushes]
            lane.pushes.clear()
            lane.current, lane.scheduled = None, False
        self._line.clear()
        self._active.clear()
        self.waiting = 0
        return found
