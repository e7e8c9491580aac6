"""The garbage collector waits while the tree restarts.

With 1,000 clients connected a full pass takes 50-150 ms, and a restart makes the garbage that starts one: it
would fall into the very milliseconds in which nobody is served. It is held until everything is up again, and
those who waited meanwhile have been answered; but not over more than `MANY` restarts, of which each leaves
some 120 KB of garbage.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial

from tangram.supervision import SupervisionEvent

__all__ = ["ANSWERS", "CollectorPause"]

ANSWERS = 0.1
"""Seconds in which those who waited for the restart are answered."""

MANY = 10
"""Restarts on one another's heels after which the collector goes on all the same."""

_OURS = frozenset({"root", "incarnation"})
"""The supervisors whose restarts are waited for by those who are outside."""


class CollectorPause:
    """Listens to the tree's events; ``end`` leaves the collector as it was found."""

    def __init__(self, later: Callable[[Callable[[], None]], None] = lambda call: call()) -> None:
        """``later`` calls what it is given, `ANSWERS` seconds later."""
        self._held = False
        self._restarts = 0
        self._held_since = 0
        self._later = later

    def __call__(self, event: SupervisionEvent) -> None:
        """Hold the collector from a restart's begin to its end."""
        if event.supervisor not in _OURS:
            return
        if event.kind in {"restarting", "planned"}:
            self._restarts += 1
            if not self._held and gc.isenabled():
                self._held = True
                self._held_since = self._restarts
                gc.disable()
        elif event.kind == "gave_up":
            self.end()
        elif event.kind == "ready" and self._held:
            if self._restarts - self._held_since >= MANY:
                self.end()
                return
            self._later(partial(self._end_after, self._restarts))

    def _end_after(self, restart: int) -> None:
        # Another restart may have begun meanwhile: its own end lets the collector go on.
        if restart == self._restarts:
            self.end()

    def end(self) -> None:
        """Let the collector go on, if it was held here."""
        if self._held:
            self._held = False
            gc.enable()
