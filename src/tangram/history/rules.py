"""Which topics have a history, and how much of it.

1. The first rule whose pattern matches a topic counts. In a pattern ``*`` stands for any characters, colons
   included, and every other character for itself.
2. The topics ``admin`` and ``phoenix`` belong to the server and have no history.
3. Events of the protocol (``phx_*``) and of presence describe the moment of a connection. They are not kept.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import attrs
from attrs import validators as v

from tangram.bus.resp import Link
from tangram.bus.scripts import FunctionCall, Prefixes
from tangram.bus.topics import escape_glob, parse_to
from tangram.channels.frames import PHOENIX, PRESENCE_COUNT, PRESENCE_DIFF, PRESENCE_STATE
from tangram.channels.hub import ADMIN
from tangram.history.library import GUARD, data_key, load_functions, new_epoch, state_key
from tangram.history.position import Position, Published

__all__ = ["STAMPS", "History", "Mode", "Place", "Rule", "Rules"]

Mode = Literal["stream", "latest"]

STAMPS: Final = b"to:phoenix:at"
"""The channel on which the functions on Redis publish the positions of messages."""
_PRESENCE: Final = frozenset({PRESENCE_COUNT, PRESENCE_DIFF, PRESENCE_STATE})
_MAX_PLACES: Final = 8192
"""Redis channels whose topic and rule are remembered; all are forgotten at once when there are more."""


@attrs.frozen(kw_only=True)
class History:
    """The history of the topics that match a pattern.

    Example::

        plugin = Plugin(history={"flights:*": History(size=200, ttl=600)})
    """

    mode: Mode = attrs.field(default="stream", validator=v.in_(("stream", "latest")))
    """``stream`` keeps all messages in order, ``latest`` the newest message of each event."""
    size: int = attrs.field(default=100, validator=[v.ge(1), v.le(100_000)])
    """Messages of one topic; with ``latest`` its events."""
    ttl: float = attrs.field(default=300.0, validator=v.gt(0))
    """Seconds for which the history is kept after the last message, with ``latest`` each message."""
    max_bytes: int = attrs.field(default=262144, validator=v.ge(1024))
    """Bytes of the events and payloads that one join may receive."""


class Rule(NamedTuple):
    """A pattern of topics, and their history."""

    pattern: str
    history: History


class Place(NamedTuple):
    """The topic of a Redis channel, and its history."""

    topic: str
    event: str
    history: History


class Rules:
    """The rules of a server in order; also the history as the bus uses it.

    Args:
        rules: the operator's rules first, then those of plugins.
        new_epoch: returns a name for an epoch that no epoch had before.
        identity: returns the identity of the broker's storage; None for the ``run_id`` of Redis.
    """

    def __init__(
        self,
        rules: Iterable[Rule] = (),
        *,
        new_epoch: Callable[[], str] = new_epoch,
        identity: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.rules: Sequence[Rule] = tuple(rules)
        self.identity = identity
        self.new_epoch = new_epoch
        self._patterns = [re.compile(_regex(rule.pattern), re.DOTALL) for rule in self.rules]
        self._first_patterns: dict[bytes, bytes | None] = {}
        self._places: dict[str | bytes, Place | None] = {}

    @classmethod
    def of(
        cls,
        operator: Iterable[Rule],
        plugins: Iterable[Mapping[str, History]] = (),
        **more: Any,
    ) -> Rules:
        """Return the rules of the operator, before those of plugins."""
        declared = [Rule(pattern, history) for one in plugins for pattern, history in one.items()]
        return cls([*operator, *declared], **more)

    def __bool__(self) -> bool:
        return bool(self.rules)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rules) and self.rules == other.rules

    __hash__ = None  # type: ignore[assignment]

    @property
    def digest(self) -> str:
        """A digest of the rules: under other rules the history begins anew."""
        return hashlib.sha256(repr(self.rules).encode()).hexdigest()[:16]

    def find(self, topic: str) -> History | None:
        """Return the history of a topic, or None."""
        if topic in (ADMIN, PHOENIX):
            return None
        for pattern, rule in zip(self._patterns, self.rules, strict=True):
            if pattern.fullmatch(topic):
                return rule.history
        return None

    def place(self, channel: str | bytes) -> Place | None:
        """Return topic, event and history of a Redis channel whose messages are kept, or None."""
        try:
            return self._places[channel]
        except KeyError:
            pass
        if len(self._places) >= _MAX_PLACES:
            self._places.clear()
        place = self._places[channel] = self._find_place(channel)
        return place

    def _find_place(self, channel: str | bytes) -> Place | None:
        name = parse_to(channel.encode() if isinstance(channel, str) else channel)
        if name is None or not is_kept(name[1]):
            return None
        history = self.find(name[0])
        return None if history is None else Place(*name, history)

    def pattern_of(self, channel: bytes) -> bytes | None:
        """Return the first of ``redis_patterns`` that matches a channel.

        Redis sends a message once for each pattern that matches it; the others are to be ignored.
        """
        try:
            return self._first_patterns[channel]
        except KeyError:
            pass
        if len(self._first_patterns) >= _MAX_PLACES:
            self._first_patterns.clear()
        text = channel.decode("utf-8", "surrogateescape")
        found = [
            b"to:%b:*" % _glob(rule.pattern).encode()
            for rule in self.rules
            if re.fullmatch(f"to:{_regex(rule.pattern)}:.*", text, re.DOTALL)
        ]
        first = self._first_patterns[channel] = found[0] if found else None
        return first

    def redis_patterns(self) -> Sequence[bytes]:
        """Return the patterns for ``PSUBSCRIBE``; one message may match several."""
        patterns = [b"to:%b:*" % _glob(rule.pattern).encode() for rule in self.rules]
        return list(dict.fromkeys([STAMPS, *patterns]))

    # The history, as the bus uses it.

    async def load(self, link: Link) -> Prefixes:
        """Load the functions on a new connection."""
        return await load_functions(link, self.identity(), self.digest)

    def publishing(self, channel: str | bytes, payload: bytes | str) -> FunctionCall | None:
        """Return the call that publishes and records; None for a channel without history."""
        place = self.place(channel)
        if place is None or not payload:
            return None
        topic, event, history = place
        return FunctionCall(
            "tangram_publish",
            (data_key(topic, history.mode), state_key(topic), GUARD),
            (topic, event, payload, self.new_epoch(), history.mode, *limits(history)),
            ("PUBLISH", channel, payload),
        )

    @staticmethod
    def published(answer: Any) -> Published:
        """Return the outcome of such a call from Redis' answer."""
        if isinstance(answer, int):
            return Published(answer)
        receivers, epoch, offset = answer
        return Published(receivers, str(Position(epoch.decode(), int(offset))))


def is_kept(event: str) -> bool:
    """Return whether messages of an event are kept."""
    return not event.startswith("phx_") and event not in _PRESENCE


def limits(history: History) -> tuple[str, str]:
    """Return size and time to live, in ms, as words for Redis."""
    return str(history.size), str(max(1, round(history.ttl * 1000)))


def _regex(pattern: str) -> str:
    return ".*".join(map(re.escape, pattern.split("*")))


def _glob(pattern: str) -> str:
    return "*".join(map(escape_glob, pattern.split("*")))
