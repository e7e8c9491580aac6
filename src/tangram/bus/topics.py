"""Names on Redis: ``to:<topic>:<event>`` to browsers, ``from:<topic>:<event>`` to plugins.

Rules of this file:

1. Every function that reads or writes such a name is here, and nothing else is.
2. It does no I/O: names come in and names go out.
3. The last colon separates topic and event. A topic may hold colons (``weather:wind``), so an event with a
   colon cannot be distinguished from a longer topic. Servers and browsers split at the last colon. Events
   with a colon are refused, because a browser could otherwise publish for a topic that it has not joined.
4. A name from outside is never used as a pattern: ``escape_glob`` makes the pattern for ``PSUBSCRIBE``.
5. All keys of the server itself begin with ``{tangram}``. A Redis Cluster puts keys with the same text in
   braces into one slot, and a function may only touch keys of one slot.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["TO_ALL", "escape_glob", "from_channel", "own_key", "parse_from", "parse_to", "to_channel"]

TO_ALL: Final = b"to:*"
"""The pattern of all messages for browsers; the exact dispatch by topic and event happens in this process."""

_GLOB: Final = re.compile(r"([*?\[\]\\])")


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
    """Return topic and event of a ``to:`` name, or None.

    None stands for any other name, a name without an event, and one that is not UTF-8. The event may be
    empty:
    ``to:obs:x:`` is the event ``""`` of the topic ``obs:x``.
    """
    return _parse(channel, b"to:")


def parse_from(channel: bytes) -> tuple[str, str] | None:
    """Return topic and event of a ``from:`` name, or None; by the rules of ``parse_to``."""
    return _parse(channel, b"from:")


def to_channel(topic: str, event: str) -> str:
    """Return the channel whose messages are sent to the browsers that joined a topic.

    For example, ``to_channel("demo", "clock")`` is ``to:demo:clock``.

    Raises:
        ValueError: the event holds a colon.
    """
    return f"to:{topic}:{_event(event)}"


def from_channel(topic: str, event: str) -> str:
    """Return the channel on which a browser's push is published for plugins.

    For example, ``from_channel("demo", "click")`` is ``from:demo:click``.

    Raises:
        ValueError: the event holds a colon.
    """
    return f"from:{topic}:{_event(event)}"


def own_key(*names: str) -> str:
    """Return a key of the server itself, for example ``own_key("topic", "demo", "h")``."""
    return ":".join(("{tangram}", *names))


def _event(event: str) -> str:
    if ":" in event:
        raise ValueError(f"the event {event!r} holds a colon, which would make it part of the topic")
    return event


def escape_glob(name: str) -> str:
    """Return a ``PSUBSCRIBE`` pattern that matches a name exactly."""
    return _GLOB.sub(r"\\\1", name)
