"""The requests of placed plugins that are answered here, and their planned end.

A plugin that is moved to another node answers the requests that it has begun; new ones wait for the other
node meanwhile. WebSockets are not waited for: they are closed with the plugin, and come back elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import trio

__all__ = ["InFlight"]


class InFlight:
    """Counts the requests of each plugin."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._draining: set[str] = set()
        self._ended = trio.Event()

    def takes(self, plugin: str) -> bool:
        """Return whether a plugin takes new requests."""
        return plugin not in self._draining

    def count(self, plugin: str) -> int:
        """Return the requests that a plugin is answering."""
        return self._counts[plugin]

    @contextmanager
    def answering(self, plugin: str) -> Iterator[None]:
        """Count one request until the end of the block."""
        self._counts[plugin] += 1
        try:
            yield
        finally:
            self._counts[plugin] -= 1
            if not self._counts[plugin]:
                del self._counts[plugin]
                self._ended.set()

    async def drain(self, plugin: str, seconds: float) -> bool:
        """Take no new requests for a plugin; return whether those in hand have ended."""
        self._draining.add(plugin)
        with trio.move_on_after(seconds):
            while self._counts[plugin]:
                self._ended = trio.Event()
                await self._ended.wait()
        return not self._counts[plugin]

    def resume(self, plugin: str) -> None:
        """Take requests again; called when the plugin starts."""
        self._draining.discard(plugin)
