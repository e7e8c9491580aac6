"""What happened in the tree: one record an event, told to ``admin``'s members and to who asks later.

The supervisors write the same records to the log themselves.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence

import structlog
import trio

from tangram.channels.codec import encode_json
from tangram.supervision import SupervisionEvent

__all__ = ["KEPT", "EventLog"]

log = structlog.get_logger("tangram.app")

KEPT = 256
"""Events that are remembered: the whole story of a plugin that was restarted until its quarantine,
several times.
"""

Publish = Callable[[str, bytes], None]


class EventLog:
    """Takes every event of every supervisor of one server; outlives all restarts."""

    def __init__(self) -> None:
        self._events: deque[SupervisionEvent] = deque(maxlen=KEPT)
        self._counts: Counter[str] = Counter()
        self._listeners: list[Callable[[SupervisionEvent], None]] = []
        self._news = trio.Event()

    def listen(self, listener: Callable[[SupervisionEvent], None]) -> None:
        """Call ``listener`` for each event from now on; it must not block."""
        self._listeners.append(listener)

    def __call__(self, event: SupervisionEvent) -> None:
        """Take one event: a supervisor's ``on_event``."""
        self._events.append(event)
        self._counts[event.kind] += 1
        for listener in self._listeners:
            listener(event)
        self._news.set()
        self._news = trio.Event()

    async def wait_news(self) -> None:
        """Until the next event."""
        await self._news.wait()

    @property
    def events(self) -> Sequence[SupervisionEvent]:
        """The last ones, oldest first."""
        return tuple(self._events)

    @property
    def counts(self) -> dict[str, int]:
        """How many of each kind since the server began."""
        return dict(self._counts)


def admin_message(event: SupervisionEvent) -> tuple[str, bytes]:
    """The event as a message on ``admin``: Redis channel and payload."""
    return f"to:admin:supervisor.{event.kind}", encode_json(event.to_dict())
