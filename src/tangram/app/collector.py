"""The garbage collector waits while the tree restarts.

With 1,000 clients connected a full pass takes 50-150 ms, and a restart makes the garbage that starts one: it
would fall into the very milliseconds in which nobody is served. It is held until everything is up again.
"""

from __future__ import annotations

import gc

from tangram.supervision import SupervisionEvent

__all__ = ["CollectorPause"]

_OURS = frozenset({"root", "incarnation"})
"""The supervisors whose restarts are waited for by those who are outside."""


class CollectorPause:
    """Listens to the tree's events; ``end`` leaves the collector as it was found."""

    def __init__(self) -> None:
        self._held = False

    def __call__(self, event: SupervisionEvent) -> None:
        """Hold the collector from a restart's begin to its end."""
        if event.supervisor not in _OURS:
            return
        if event.kind in {"restarting", "planned"}:
            if not self._held and gc.isenabled():
                self._held = True
                gc.disable()
        elif event.kind in {"ready", "gave_up"}:
            self.end()

    def end(self) -> None:
        """Let the collector go on, if it was held here."""
        if self._held:
            self._held = False
            gc.enable()
