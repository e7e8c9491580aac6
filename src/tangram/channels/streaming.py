"""Announce for vanished browsers that they no longer need their stream.

Back-end plugins publish to ``streaming-<id>`` from the event ``join-streaming`` until ``leave-streaming``. A
browser sends ``join-streaming`` once, and sends nothing when its laptop is closed. Therefore the server
publishes ``from:system:leave-streaming`` for an id whose topic has had no member for the grace time, and
``from:system:join-streaming`` when the id returns. This module reads no clock; ``now`` is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tangram.channels import codec
from tangram.channels.hub import Publication
from tangram.channels.policy import STREAMING

__all__ = ["StreamWatch"]

MAX_REMEMBERED: Final = 10_000
"""Ids announced as left that are kept for their return. The oldest one is forgotten first."""


class StreamWatch:
    """Compare the topics that have members now with those of the previous call."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._present: set[str] = set()
        self._vanished: dict[str, float] = {}
        self._announced: dict[str, None] = {}

    def compare(self, topics: Iterable[str], now: float) -> list[Publication]:
        """Return the announcements that are due.

        Args:
            topics: all topics that have members now.
            now: seconds of a monotonic clock.
        """
        present = {topic.removeprefix(STREAMING) for topic in topics if topic.startswith(STREAMING)}
        publications = []
        for id_ in present - self._present:
            self._vanished.pop(id_, None)
            if id_ in self._announced:
                del self._announced[id_]
                publications.append(_announcement("join-streaming", id_))
        for id_ in self._present - present:
            self._vanished[id_] = now + self._grace
        self._present = present
        for id_ in [id_ for id_, due in self._vanished.items() if due <= now]:
            del self._vanished[id_]
            self._announced[id_] = None
            publications.append(_announcement("leave-streaming", id_))
        while len(self._announced) > MAX_REMEMBERED:
            del self._announced[next(iter(self._announced))]
        return publications


def _announcement(event: str, id_: str) -> Publication:
    return Publication(f"from:system:{event}", codec.encode_json({"connectionId": id_}))
