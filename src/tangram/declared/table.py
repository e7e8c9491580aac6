"""Find the declaration of a push by its topic and event, for all plugins.

A topic is matched once and then kept, because topics are joined seldom and pushed to often. The memory for
that is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from tangram.declared.channel import DeclaredChannel, Incoming

__all__ = ["Declaration", "DeclaredTable"]

MAX_TOPICS: Final = 10_000
"""Topics that are kept; with more all are forgotten and found anew."""


class Declaration(NamedTuple):
    """The declaration of a push, and where it comes from."""

    plugin: str
    incoming: Incoming
    parameters: dict[str, str]
    """The parameters of the topic."""


class DeclaredTable:
    """The pushes that plugins have declared.

    Args:
        channels: pairs of a plugin's name and its channels, in the order of the plugins. The first one that
            has declared the event of a topic gets its pushes.
    """

    def __init__(self, channels: Iterable[tuple[str, Iterable[DeclaredChannel]]]) -> None:
        self._channels = [(plugin, one) for plugin, some in channels for one in some if one.incoming]
        self._topics: dict[str, dict[str, Declaration]] = {}

    def __bool__(self) -> bool:
        return bool(self._channels)

    def find(self, topic: str, event: str) -> Declaration | None:
        """Return the declaration of a push, or None."""
        events = self._topics.get(topic)
        if events is None:
            events = self._add(topic)
        return events.get(event)

    def _add(self, topic: str) -> dict[str, Declaration]:
        if len(self._topics) >= MAX_TOPICS:
            self._topics.clear()
        events: dict[str, Declaration] = {}
        for plugin, channel in self._channels:
            parameters = channel.template.match(topic)
            for event, incoming in channel.incoming.items() if parameters is not None else ():
                events.setdefault(event, Declaration(plugin, incoming, parameters or {}))
        self._topics[topic] = events
        return events
