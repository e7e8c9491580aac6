"""A pause of the garbage collector while the tree restarts.

With 1,000 connected clients a full collection takes 50-150 ms, and a restart makes the garbage that starts
one: it would fall into the milliseconds in which no request is served. The collector pauses until every part
is up again and the waiting requests are answered, but not for more than `MAX_RESTARTS` restarts, because each
leaves about 120 KB of garbage.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Final

from tangram.supervision import SupervisionEvent

__all__ = ["ANSWER_TIME", "MAX_RESTARTS", "CollectorPause"]

ANSWER_TIME: Final = 0.1
"""Seconds after a restart in which the requests that waited for it are answered."""

MAX_RESTARTS: Final = 10
"""Restarts in quick succession after which the collector runs again."""

_SUPERVISORS: Final = frozenset({"root", "incarnation"})
"""The supervisors whose restarts delay requests."""


class CollectorPause:
    """A listener to the tree's events that disables and enables the garbage collector.

    Args:
        call_later: calls its argument `ANSWER_TIME` seconds later.
    """

    def __init__(self, call_later: Callable[[Callable[[], None]], None] = lambda call: call()) -> None:
        self._paused = False
        self._restarts = 0
        self._paused_at = 0
        """The number of the restart in which the pause began."""
        self._call_later = call_later

    def __call__(self, event: SupervisionEvent) -> None:
        """Begin the pause with a restart, and end it when the restart is over."""
        if event.supervisor not in _SUPERVISORS:
            return
        if event.kind in {"restarting", "planned"}:
            self._restarts += 1
            if not self._paused and gc.isenabled():
                self._paused = True
                self._paused_at = self._restarts
                gc.disable()
        elif event.kind == "gave_up":
            self.end()
        elif event.kind == "ready" and self._paused:
            if self._restarts - self._paused_at >= MAX_RESTARTS:
                self.end()
                return
            self._call_later(partial(self._end_after, self._restarts))

    def _end_after(self, restart: int) -> None:
        # Another restart may have begun meanwhile; then the end of that one ends the pause.
        if restart == self._restarts:
            self.end()

    def end(self) -> None:
        """Enable the collector again if this object disabled it."""
        if self._paused:
            self._paused = False
            gc.enable()
