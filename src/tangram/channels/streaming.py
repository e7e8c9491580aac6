"""Streams whose browser has vanished: back-end plugins publish to ``streaming-<id>`` until somebody tells
them.

A browser says ``join-streaming`` once and forgets it when its laptop closes. So: an id without any member on
its topic for the grace time gets ``from:system:leave-streaming`` in its name, and when it comes back,
``join-streaming``. Pure; ``now`` is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tangram.channels import codec
from tangram.channels.hub import Publication
from tangram.channels.policy import STREAMING

__all__ = ["StreamWatch"]

MAX_REMEMBERED: Final = 10_000
"""Ids told to have left, kept for their return. The oldest is forgotten first."""


class StreamWatch:
    """Compares the topics that have members now with those of the last look."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._present: set[str] = set()
        self._vanished: dict[str, float] = {}
        self._told: dict[str, None] = {}

    def look(self, topics: Iterable[str], now: float) -> list[Publication]:
        """What to publish, given the topics that have members now."""
        present = {topic.removeprefix(STREAMING) for topic in topics if topic.startswith(STREAMING)}
        told = []
        for id_ in present - self._present:
            self._vanished.pop(id_, None)
            if id_ in self._told:
                del self._told[id_]
                told.append(_tell("join-streaming", id_))
        for id_ in self._present - present:
            self._vanished[id_] = now + self._grace
        self._present = present
        for id_ in [id_ for id_, due in self._vanished.items() if due <= now]:
            del self._vanished[id_]
            self._told[id_] = None
            told.append(_tell("leave-streaming", id_))
        while len(self._told) > MAX_REMEMBERED:
            del self._told[next(iter(self._told))]
        return told


def _tell(event: str, id_: str) -> Publication:
    return Publication(f"from:system:{event}", codec.encode_json({"connectionId": id_}))
