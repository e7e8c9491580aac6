"""Keys, their values and their ends: one database."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

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
    "Table",
    "Value",
    "integer",
    "invalid_expire",
    "within",
]

LONGEST = 2**63 - 1
"""Integers have 64 bits and a sign."""

NOT_AN_INTEGER = "ERR value is not an integer or out of range"
SYNTAX = "ERR syntax error"
WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"

_INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")
"""As Valkey reads them: no sign but a minus, no zero in front, nothing around."""


class Hash(dict[bytes, bytes]):
    """Fields and their values."""


class Items(list[bytes]):
    """A list."""


class Set(dict[bytes, None]):
    """A set, in the order in which its members came."""


Value = bytes | Hash | Items | Set
K = TypeVar("K", bytes, Hash, Items, Set)
C = TypeVar("C", Hash, Items, Set)


class Keyspace:
    """One database. ``now`` tells seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._values: dict[bytes, Value] = {}
        self._ends: dict[bytes, int] = {}
        """Milliseconds at which a key is gone, for keys that have an end."""
        self._changes: Counter[bytes] = Counter()

    def now(self) -> int:
        """Milliseconds."""
        return round(self._now() * 1000)

    def find(self, key: bytes) -> Value | None:
        """The value, None where there is none (any more)."""
        # Gone at its very end, where Valkey waits for the next millisecond: under a virtual clock no time
        # passes on the way, and who sleeps for as long as a lock holds would find it held.
        if key in self._ends and self._ends[key] <= self.now():
            self.remove(key)
        return self._values.get(key)

    def get(self, kind: type[K], key: bytes) -> K | None:
        """The value, None where there is none.

        Raises:
            ReplyError: it is of another kind.
        """
        value = self.find(key)
        if value is None or isinstance(value, kind):
            return value
        raise ReplyError(WRONG_TYPE)

    def make(self, kind: type[C], key: bytes) -> C:
        """The value, an empty one where there was none. ``changed`` follows when something is done to it.

        Raises:
            ReplyError: it is of another kind.
        """
        value = self.get(kind, key)
        if value is None:
            value = kind()
            self._values[key] = value
        return value

    def put(self, key: bytes, value: Value, *, end: int | None = None) -> None:
        """Set a value; it has an end if one is given, whatever was there before."""
        self._values[key] = value
        self.end(key, end)

    def end(self, key: bytes, when: int | None) -> None:
        """Set when a key is gone, in milliseconds of ``now``; None for never."""
        self._changes[key] += 1
        self._ends.pop(key, None)
        if when is not None:
            self._ends[key] = when

    def end_of(self, key: bytes) -> int | None:
        """When a key is gone, in milliseconds of ``now``; None for never."""
        return self._ends.get(key)

    def remove(self, key: bytes) -> None:
        """Drop a key that is there."""
        del self._values[key]
        self._ends.pop(key, None)
        self._changes[key] += 1

    def changed(self, key: bytes) -> None:
        """Note that a hash, list or set is another now, and drop it if it is empty: there are no such."""
        self._changes[key] += 1
        value = self._values.get(key)
        if value is not None and not isinstance(value, bytes) and not value:
            self.remove(key)

    def changes(self, key: bytes) -> int:
        """How often a key has been changed; its end is a change."""
        self.find(key)
        return self._changes[key]

    def keys(self) -> Iterator[bytes]:
        """Every key that is there."""
        return (key for key in list(self._values) if self.find(key) is not None)

    def clear(self) -> None:
        """Drop everything."""
        self._changes.update(self.keys())
        self._values.clear()
        self._ends.clear()


@attrs.frozen
class Command:
    """A command on keys: what it does, and how it may be called."""

    run: Callable[[Keyspace, Sequence[bytes]], Reply]
    arity: int
    """How many words it has with its name; negative: at least so many."""
    writes: bool = False


Table = dict[str, Command]


def within(arity: int, count: int) -> bool:
    """Whether ``count`` words, the name among them, are as many as a command takes."""
    return count == arity if arity >= 0 else count >= -arity


def integer(word: bytes, fault: str = NOT_AN_INTEGER) -> int:
    """The number that a word says.

    Raises:
        ReplyError: with ``fault``: it says none.
    """
    if not _INTEGER.fullmatch(word) or not -LONGEST - 1 <= int(word) <= LONGEST:
        raise ReplyError(fault)
    return int(word)


def invalid_expire(name: str) -> ReplyError:
    """What a command says to an end that cannot be."""
    return ReplyError(f"ERR invalid expire time in '{name}' command")
