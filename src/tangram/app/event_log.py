"""The record of supervision events: kept for the status pages, and handed to listeners.

Listeners publish them to the members of ``admin``, for example. The supervisors write the same events to the
log themselves.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Final

import trio

from tangram.channels.codec import encode_json
from tangram.supervision import SupervisionEvent

__all__ = ["KEPT", "EventLog", "admin_message"]

KEPT: Final = 256
"""The number of events kept: enough for several plugins from their first crash to their quarantine."""


class EventLog:
    """Takes every event of every supervisor of one server, over all incarnations."""

    def __init__(self) -> None:
        self._events: deque[SupervisionEvent] = deque(maxlen=KEPT)
        self._counts: Counter[str] = Counter()
        self._listeners: list[Callable[[SupervisionEvent], None]] = []
        self._changed = trio.Event()

    def listen(self, listener: Callable[[SupervisionEvent], None]) -> None:
        """Call ``listener`` for each event from now on; it must not block."""
        self._listeners.append(listener)

    def __call__(self, event: SupervisionEvent) -> None:
        """Take one event; this is the ``on_event`` of a supervisor."""
        self._events.append(event)
        self._counts[event.kind] += 1
        for listener in self._listeners:
            listener(event)
        self._changed.set()
        self._changed = trio.Event()

    async def wait_event(self) -> None:
        """Wait for the next event."""
        await self._changed.wait()

    @property
    def events(self) -> Sequence[SupervisionEvent]:
        """The last `KEPT` events, oldest first."""
        return tuple(self._events)

    @property
    def counts(self) -> dict[str, int]:
        """The number of events of each kind since the server started."""
        return dict(self._counts)


def admin_message(event: SupervisionEvent) -> tuple[str, bytes]:
    """Return the Redis channel and the payload that publish an event on the topic ``admin``."""
    return f"to:admin:supervisor.{event.kind}", encode_json(event.to_dict())
