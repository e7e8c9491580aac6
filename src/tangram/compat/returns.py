"""Decides whether a service of an existing plugin that has returned is called again.

Services written for ``tangram_core`` run for ever. Some of them return when Redis closes their connection, or
when they receive a message that they cannot decode, and the published server leaves such a plugin without its
service. Here

1. a service that returns while Redis is away, or within some seconds of an outage, is called again once
   Redis is back;
2. so is a service of a plugin with an extension module (Rust) that has run for a while, because its stream
   has ended by itself; after `MOST_CALLS` calls in `WINDOW_SECONDS` it is left finished;
3. any other return is the end of the service's work, as ``restart = "transient"`` says.

``[plugins.NAME] restart`` replaces 2 and 3: ``permanent`` makes each return outside of an outage a crash, and
``temporary`` leaves a service that has returned alone.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from typing import Final, Protocol

import trio

from tangram.compat.names import modules_of

__all__ = ["Outage", "Returns", "has_extension"]

STREAM_SECONDS: Final = 1.0
"""Seconds after which the return of an extension's service counts as the end of a stream."""

MOST_CALLS: Final = 5
WINDOW_SECONDS: Final = 60.0
"""A stream that ends more often than this is not mended by another call."""

PAUSE_FIRST: Final = 0.1
PAUSE_MOST: Final = 5.0
"""Seconds before the next call, doubling from the first to the most."""


class Outage(Protocol):
    """The state of Redis, as the server sees it."""

    async def lost_since(self, began: float) -> bool:
        """Wait until an outage is known; return whether Redis is away, or was lost since a time."""
        ...

    async def wait(self, name: str, pause: float) -> None:
        """Wait for ``pause`` seconds, and then until Redis is connected."""
        ...


class Returns:
    """The returns of one service in one incarnation of its plugin.

    Args:
        plugin: The name of the plugin.
        outage: The state of Redis, or ``None`` where there is none to ask.
        restart: The restart type of the service.
        streams: Returns whether the plugin has an extension module, which its service may import late.
    """

    def __init__(
        self, plugin: str, outage: Outage | None, *, restart: str, streams: Callable[[], bool]
    ) -> None:
        self._plugin = plugin
        self._outage = outage
        self._restart = restart
        self._streams = streams
        self._calls: deque[float] = deque(maxlen=MOST_CALLS)
        self._pause = PAUSE_FIRST

    async def reason(self, began: float) -> str | None:
        """Return why the service has to be called again, or ``None`` if its work is done.

        Args:
            began: The time of its last call.
        """
        ended = trio.current_time()
        if self._restart == "temporary":
            return None
        if self._outage is not None and await self._outage.lost_since(began):
            return "redis was away"
        if self._restart == "permanent" or ended - began < STREAM_SECONDS or not self._streams():
            return None
        oldest = self._calls[0] if len(self._calls) == MOST_CALLS else -math.inf
        return None if ended - oldest < WINDOW_SECONDS else "its stream ended"

    async def wait(self) -> None:
        """Wait before the next call: for a pause, and until Redis is connected."""
        self._calls.append(trio.current_time())
        if self._outage is None:
            await trio.sleep(self._pause)
        else:
            await self._outage.wait(self._plugin, self._pause)
        self._pause = min(2 * self._pause, PAUSE_MOST)


def has_extension(package: str) -> bool:
    """Return whether an imported module of a package is an extension module."""
    return any(
        str(getattr(module, "__file__", "")).endswith(tuple(EXTENSION_SUFFIXES))
        for module in modules_of(package)
    )
