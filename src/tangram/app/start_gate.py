"""A gate at which the services of existing plugins start together.

Plugins start one after another. A service that registers with another plugin at its start, and tries again
after 15 seconds, would lose this time if the other plugin stood after its own in ``[core] plugins``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import trio

__all__ = ["StartGate"]

TOGETHER_SECONDS: Final = 1.0
"""Seconds that services wait for the start of other plugins: several plugins start in less, and a plugin with
a slow lifespan must not delay the others for long.
"""


class StartGate:
    """Holds services until every existing plugin of the incarnation has entered its lifespan.

    They are released in the order in which they came: that of the plugins, and of the priorities within each.

    Args:
        names: The names of these plugins.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._expected = set(names)
        self._present: set[str] = set()
        self._changed = trio.Event()
        self._last_begun: trio.Event | None = None

    def is_last(self, name: str) -> bool:
        """Return whether all other plugins have arrived; then services start within this start."""
        return self._present.union([name]).issuperset(self._expected)

    def arrive(self, name: str) -> None:
        """Note that a plugin is ready to start its services."""
        self._present.add(name)
        self._notify()

    def leave(self, name: str) -> None:
        """Note that a plugin has ended, so that the next start waits for it again."""
        self._present.discard(name)

    def give_up(self, name: str) -> None:
        """Note that a plugin will not start, for example because it is quarantined."""
        self._expected.discard(name)
        self._notify()

    async def wait_turn(self, begun: trio.Event) -> None:
        """Wait until all plugins have arrived and the service before has begun; at most 1 s.

        Args:
            begun: Set by the caller when its service has begun, or will not begin.
        """
        before, self._last_begun = self._last_begun, begun
        with trio.move_on_after(TOGETHER_SECONDS):
            while not self._present.issuperset(self._expected):
                await self._changed.wait()
            if before is not None:
                await before.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
