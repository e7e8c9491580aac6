"""The history for plugins: read it, and ask for the position of a topic."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Self

import attrs

from tangram.bus.scripts import FunctionCall
from tangram.history.replay import Replay, parse_replay, read_call
from tangram.history.rules import History, Rules

__all__ = ["HistoryPage", "HistoryStore"]

ALL: Final = 2**40
"""Bytes of a replay that is not for a browser: no bound but the history's size."""


@attrs.frozen
class HistoryPage:
    """Messages of a topic in order."""

    position: str
    """The position behind the last message."""
    complete: bool
    """Whether every message behind ``since`` is there; without ``since``, whether none was left out."""
    events: Sequence[tuple[str, bytes]]
    """Events and payloads."""


class HistoryStore:
    """Reads the histories of topics.

    Args:
        rules: which topics have a history.
        call: calls a function on Redis.
    """

    def __init__(self, rules: Rules, call: Callable[[FunctionCall], Awaitable[Any]]) -> None:
        self.rules = rules
        self._call = call

    @classmethod
    def none(cls) -> Self:
        """Return the store of a server without histories."""

        async def refuse(_call: FunctionCall) -> Any:
            raise AssertionError("no topic has a history")

        return cls(Rules(), refuse)

    async def history(self, topic: str, since: str | None = None, limit: int = 100) -> HistoryPage:
        """Return the newest messages of a topic; see ``BackendState.history``."""
        found = attrs.evolve(self._find(topic), max_bytes=ALL)
        replay = parse_replay(await self._call(read_call(self.rules, topic, found, since)))
        kept = replay.events[max(0, len(replay.events) - limit) :]
        complete = len(kept) == len(replay.events) and replay.recovered
        return HistoryPage(str(replay.position), complete, kept)

    async def newest(self, topic: str, limit: int, max_bytes: int) -> Replay:
        """Return the newest messages of a topic, without a read of all the others.

        Args:
            topic: the topic.
            limit: messages at most.
            max_bytes: bytes of the messages together. If there are more, the reason is ``too_much``.

        Raises:
            LookupError: the topic has no history.
        """
        found = attrs.evolve(self._find(topic), max_bytes=max_bytes)
        behind = 0
        if found.mode == "stream":
            # Offsets have no gap here; with ``latest`` each replaced message leaves one.
            top = parse_replay(await self._call(read_call(self.rules, topic, found, ""))).position
            behind = max(0, top.offset - limit)
        replay = parse_replay(await self._call(read_call(self.rules, topic, found, behind)))
        replay.events = replay.events[-limit:]
        return replay

    async def position(self, topic: str) -> str:
        """Return the position behind the newest message of a topic."""
        call = read_call(self.rules, topic, self._find(topic), "")
        return str(parse_replay(await self._call(call)).position)

    def _find(self, topic: str) -> History:
        found = self.rules.find(topic)
        if found is None:
            raise LookupError(
                f"topic {topic!r} has no history: add a [[channel.history]] that matches it, "
                "or declare Plugin(history=...)"
            )
        return found
