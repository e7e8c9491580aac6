"""The requests of placed plugins that are answered here, and their planned end.

A plugin that is moved to another node answers the requests that it has begun; new ones wait for the other
node meanwhile. They look again after each `InFlight.notify`: when the placement may have changed, and when a
plugin runs here. WebSockets are not waited for: they are closed with the plugin, and come back elsewhere.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import trio

__all__ = ["InFlight"]


class InFlight:
    """Counts the requests of each plugin."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._draining: set[str] = set()
        self._ended = trio.Event()
        self._news: trio.Event | None = None

    def notify(self) -> None:
        """Wake the requests that wait for a plugin: it runs here by now, or on another node."""
        if self._news is not None:
            self._news.set()
            self._news = None

    async def wait_news(self, deadline: float) -> None:
        """Return after the next `notify`, at the deadline at the latest.

        Args:
            deadline: the time, on Trio's clock.
        """
        if self._news is None:
            self._news = trio.Event()
        with trio.move_on_at(deadline):
            await self._news.wait()

    def takes(self, plugin: str) -> bool:
        """Return whether a plugin takes new requests."""
        return plugin not in self._draining

    def count(self, plugin: str) -> int:
        """Return the requests that a plugin is answering."""
        return self._counts.get(plugin, 0)

    def answering(self, plugin: str) -> AbstractContextManager[None]:
        """Count one request until the end of the block."""
        return _Answering(self, plugin)

    def begin(self, plugin: str) -> None:
        """Count a request."""
        self._counts[plugin] = self._counts.get(plugin, 0) + 1

    def end(self, plugin: str) -> None:
        """Count a request no longer."""
        left = self._counts[plugin] - 1
        if left:
            self._counts[plugin] = left
        else:
            del self._counts[plugin]
            self._ended.set()

    async def drain(self, plugin: str, seconds: float) -> bool:
        """Take no new requests for a plugin; return whether those in hand have ended."""
        self._draining.add(plugin)
        with trio.move_on_after(seconds):
            while plugin in self._counts:
                self._ended = trio.Event()
                await self._ended.wait()
        return plugin not in self._counts

    def resume(self, plugin: str) -> None:
        """Take requests again; called when the plugin starts."""
        self._draining.discard(plugin)
        self.notify()


class _Answering(AbstractContextManager[None]):
    """One counted request. Each request makes one: a generator would cost three times as much."""

    __slots__ = ("_in_flight", "_plugin")

    def __init__(self, in_flight: InFlight, plugin: str) -> None:
        self._in_flight = in_flight
        self._plugin = plugin

    def __enter__(self) -> None:
        self._in_flight.begin(self._plugin)

    def __exit__(self, *_exception: object) -> None:
        self._in_flight.end(self._plugin)
