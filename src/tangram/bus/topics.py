"""The names on Redis: `to:<topic>:<event>` towards browsers, `from:<topic>:<event>` towards plugins.

Rules of this file:

1. Everything that reads or writes such a name lives here, and nothing else does.
2. This file knows no socket, no clock, no log; names come in and names go out.
3. The *last* colon separates topic and event. A topic may hold colons (``weather:wind``), so an event that
   holds one cannot be told from a longer topic: readers split at the last colon, and so do browsers. Nobody
   may write one, a browser least of all: it would speak for a topic that it has not joined.
4. A name that a stranger wrote is never a pattern. Whoever needs one for ``PSUBSCRIBE`` asks `escape_glob`.
"""

from __future__ import annotations

import re

__all__ = ["TO_ALL", "escape_glob", "from_channel", "parse_from", "parse_to", "to_channel"]

TO_ALL = b"to:*"
"""The one pattern that carries everything meant for browsers; dispatch on (topic, event) is exact and
happens here, not in Redis."""

_GLOB = re.compile(r"([*?\[\]\\])")


def _parse(channel: bytes, prefix: bytes) -> tuple[str, str] | None:
    if not channel.startswith(prefix):
        return None
    try:
        rest = channel[len(prefix) :].decode()
    except UnicodeDecodeError:
        return None
    topic, colon, event = rest.rpartition(":")
    return (topic, event) if colon else None


def parse_to(channel: bytes) -> tuple[str, str] | None:
    """Topic and event of a `to:` name; None for any other name, one without an event, and one that is not
    UTF-8.

    The event may be empty: ``to:obs:x:`` is the event ``""`` of ``obs:x``.
    """
    return _parse(channel, b"to:")


def parse_from(channel: bytes) -> tuple[str, str] | None:
    """Topic and event of a `from:` name, by the same rules as `parse_to`."""
    return _parse(channel, b"from:")


def to_channel(topic: str, event: str) -> str:
    """The name that browsers' members of *topic* get *event* from.

    Raises:
        ValueError: *event* holds a colon.
    """
    return f"to:{topic}:{_event(event)}"


def from_channel(topic: str, event: str) -> str:
    """The name that plugins get a browser's push from.

    Raises:
        ValueError: *event* holds a colon.
    """
    return f"from:{topic}:{_event(event)}"


def _event(event: str) -> str:
    if ":" in event:
        raise ValueError(f"the event {event!r} holds a colon, which would make it part of the topic")
    return event


def escape_glob(name: str) -> str:
    """*name* as a ``PSUBSCRIBE`` pattern that matches exactly it."""
    return _GLOB.sub(r"\\\1", name)
