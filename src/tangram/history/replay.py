"""The replay of one join: the request to Redis, and its answer.

1. ``recovered`` is true only if Redis proves it: the position's epoch is the topic's, and every offset
   behind the position is there.
2. Any other case names its reason, and sends no events, except ``latest``, which always shows the newest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import attrs

from tangram.bus.scripts import FunctionCall
from tangram.history.library import GUARD, data_key, state_key
from tangram.history.position import Position, parse_position
from tangram.history.rules import History, Rules, limits

__all__ = ["Replay", "parse_replay", "read_call"]

_REASONS: Final = frozenset({"epoch", "too_old", "too_much"})
_NOWHERE: Final = Position("0", 0)
"""Stands for a text that is no position: no epoch has this name."""


@attrs.define(eq=False)
class Replay:
    """The history of one topic behind a position."""

    position: Position
    """The position behind the last event."""
    recovered: bool
    reason: str | None
    """Why it is not recovered; None also for a first join."""
    certain: bool
    """Whether all messages so far were published by the functions, so that no recorder is needed."""
    events: Sequence[tuple[str, bytes]]
    """Events and payloads in order."""

    def response(self) -> dict[str, object]:
        """Return the fields of the join's reply."""
        fields: dict[str, object] = {"position": str(self.position), "recovered": self.recovered}
        if self.reason is not None:
            fields["reason"] = self.reason
        return fields


def read_call(
    rules: Rules, topic: str, history: History, since: str | int | None, nonce: str = ""
) -> FunctionCall:
    """Return the call that reads the history of a topic.

    Args:
        rules: names new epochs.
        topic: the topic.
        history: its settings.
        since: the position behind which to read, in any shape; empty for a first join, None for
            everything that is kept, and a number for everything that is kept behind this offset.
        nonce: a name for the marker that Redis publishes in the same step; empty for none.
    """
    if since is None or isinstance(since, int):
        epoch, offset = "*", since or 0
    elif not since:
        epoch, offset = "", 0
    else:
        epoch, offset = parse_position(since) or _NOWHERE
    _, ttl = limits(history)
    words = (topic, epoch, str(offset), rules.new_epoch(), history.mode, ttl, str(history.max_bytes), nonce)
    return FunctionCall("tangram_read", (data_key(topic, history.mode), state_key(topic), GUARD), words)


def parse_replay(answer: Any) -> Replay:
    """Return the replay from Redis' answer to ``read_call``."""
    status, epoch, top, certain, entries = answer
    name = status.decode()
    return Replay(
        position=Position(epoch.decode(), int(top)),
        recovered=name == "ok",
        reason=name if name in _REASONS else None,
        certain=bool(certain),
        events=[(event.decode("utf-8", "replace"), payload) for event, payload in entries],
    )
