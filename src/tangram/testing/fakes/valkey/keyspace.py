"""One database: keys, their values and their expiry."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

import attrs

from tangram.testing.fakes.valkey.wire import Reply, ReplyError

__all__ = [
    "LONGEST",
    "NOT_AN_INTEGER",
    "SYNTAX",
    "Command",
    "Hash",
    "Items",
    "Keyspace",
    "Set",
    "Stream",
    "Table",
    "Value",
    "integer",
    "invalid_expire",
    "within",
]

LONGEST: Final = 2**63 - 1
"""Largest integer: 64 bits with a sign."""

NOT_AN_INTEGER: Final = "ERR value is not an integer or out of range"
SYNTAX: Final = "ERR syntax error"
WRONG_TYPE: Final = "WRONGTYPE Operation against a key holding the wrong kind of value"

_INTEGER: Final = re.compile(rb"0|-?[1-9][0-9]{0,18}")
"""Integers as Valkey reads them: no sign but a minus, no leading zero, no spaces."""


class Hash(dict[bytes, bytes]):
    """Fields and their values."""


class Items(list[bytes]):
    """A list."""


class Set(dict[bytes, None]):
    """A set in the order of insertion."""


class Stream(dict[int, tuple[bytes, bytes]]):
    """Events and payloads by their offsets; only the functions of histories use it."""


Value = bytes | Hash | Items | Set | Stream
K = TypeVar("K", bytes, Hash, Items, Set, Stream)
C = TypeVar("C", Hash, Items, Set, Stream)


class Keyspace:
    """One database; ``now`` returns seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._values: dict[bytes, Value] = {}
        self._ends: dict[bytes, int] = {}
        """Milliseconds at which a key expires, for keys with an expiry."""
        self._changes: Counter[bytes] = Counter()

    def now(self) -> int:
        """Return the time in milliseconds."""
        return round(self._now() * 1000)

    def find(self, key: bytes) -> Value | None:
        """Return the value, or None where there is none any more."""
        # Expired at its very end, where Valkey waits for the next millisecond: under a virtual clock no time
        # passes in between, and a task that sleeps for the duration of a lock would still find it held.
        if key in self._ends and self._ends[key] <= self.now():
            self.remove(key)
        return self._values.get(key)

    def get(self, kind: type[K], key: bytes) -> K | None:
        """Return the value, or None where there is none.

        Raises:
            ReplyError: it is of another kind.
        """
        value = self.find(key)
        if value is None or isinstance(value, kind):
            return value
        raise ReplyError(WRONG_TYPE)

    def make(self, kind: type[C], key: bytes) -> C:
        """Return the value, a new empty one where there was none; call `changed` after a change.

        Raises:
            ReplyError: it is of another kind.
        """
        value = self.get(kind, key)
        if value is None:
            value = kind()
            self._values[key] = value
        return value

    def put(self, key: bytes, value: Value, *, end: int | None = None) -> None:
        """Set a value, of any kind, and its expiry if one is given."""
        self._values[key] = value
        self.end(key, end)

    def end(self, key: bytes, when: int | None) -> None:
        """Set when a key expires, in milliseconds of ``now``; None for never."""
        self._changes[key] += 1
        self._ends.pop(key, None)
        if when is not None:
            self._ends[key] = when

    def end_of(self, key: bytes) -> int | None:
        """Return when a key expires, in milliseconds of ``now``; None for never."""
        return self._ends.get(key)

    def remove(self, key: bytes) -> None:
        """Remove an existing key."""
        del self._values[key]
        self._ends.pop(key, None)
        self._changes[key] += 1

    def changed(self, key: bytes) -> None:
        """Note a change of a hash, list or set, and remove it if it is empty."""
        self._changes[key] += 1
        value = self._values.get(key)
        if value is not None and not isinstance(value, bytes) and not value:
            self.remove(key)

    def changes(self, key: bytes) -> int:
        """Return how often a key has changed; its expiry is a change."""
        self.find(key)
        return self._changes[key]

    def keys(self) -> Iterator[bytes]:
        """Return every key that has not expired."""
        return (key for key in list(self._values) if self.find(key) is not None)

    def clear(self) -> None:
        """Remove every key."""
        self._changes.update(self.keys())
        self._values.clear()
        self._ends.clear()


@attrs.frozen
class Command:
    """A command on keys."""

    run: Callable[[Keyspace, Sequence[bytes]], Reply]
    arity: int
    """Number of words with the name; negative for a minimum."""
    writes: bool = False


Table = dict[str, Command]


def within(arity: int, count: int) -> bool:
    """Return whether a request of ``count`` words, its name included, fits an arity."""
    return count == arity if arity >= 0 else count >= -arity


def integer(word: bytes, fault: str = NOT_AN_INTEGER) -> int:
    """Return the number that a word denotes.

    Raises:
        ReplyError: with ``fault``, where it denotes none.
    """
    if not _INTEGER.fullmatch(word) or not -LONGEST - 1 <= int(word) <= LONGEST:
        raise ReplyError(fault)
    return int(word)


def invalid_expire(name: str) -> ReplyError:
    """Return the error for an impossible expiry."""
    return ReplyError(f"ERR invalid expire time in '{name}' command")
