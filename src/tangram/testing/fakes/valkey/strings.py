"""Commands on strings; the reference is valkey.io/commands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from tangram.testing.fakes.valkey.keyspace import (
    LONGEST,
    SYNTAX,
    Command,
    Keyspace,
    Table,
    integer,
    invalid_expire,
)
from tangram.testing.fakes.valkey.wire import OK, Reply, ReplyError

__all__ = ["STRINGS"]

UNITS: Final = {b"EX": 1000, b"PX": 1}
"""Milliseconds of a unit."""

NO_CALENDAR: Final = "ERR the broker in memory has a clock and no calendar: give EX or PX"


def get(space: Keyspace, words: Sequence[bytes]) -> Reply:
    return space.get(bytes, words[0])


@attrs.define
class _Options:
    """The words after key and value of a SET."""

    condition: bytes = b""
    tell_old: bool = False
    keep: bool = False
    end: int | None = None


def set_(space: Keyspace, words: Sequence[bytes]) -> Reply:
    key, value = words[:2]
    options = _options(space, words[2:])
    old = space.get(bytes, key) if options.tell_old else None
    there = space.find(key) is not None
    done = options.condition != (b"NX" if there else b"XX")
    if done:
        space.put(key, value, end=space.end_of(key) if options.keep else options.end)
    if options.tell_old:
        return old
    return OK if done else None


def _options(space: Keyspace, words: Sequence[bytes]) -> _Options:
    options = _Options()
    rest = iter(words)
    for word in map(bytes.upper, rest):
        if word in {b"NX", b"XX"} and options.condition in {b"", word}:
            options.condition = word
        elif word == b"GET":
            options.tell_old = True
        elif word == b"KEEPTTL" and options.end is None:
            options.keep = True
        elif word in {b"EXAT", b"PXAT"}:
            raise ReplyError(NO_CALENDAR)
        elif word in UNITS and options.end is None and not options.keep:
            options.end = _end(space, _argument(rest), UNITS[word], "set")
        else:
            raise ReplyError(SYNTAX)
    return options


def _argument(rest: Iterator[bytes]) -> bytes:
    word = next(rest, None)
    if word is None:
        raise ReplyError(SYNTAX)
    return word


def _end(space: Keyspace, word: bytes, unit: int, name: str) -> int:
    lasts = integer(word) * unit
    if not 0 < lasts <= LONGEST - space.now():
        raise invalid_expire(name)
    return space.now() + lasts


def setnx(space: Keyspace, words: Sequence[bytes]) -> Reply:
    if space.find(words[0]) is not None:
        return 0
    space.put(words[0], words[1])
    return 1


def setex(space: Keyspace, words: Sequence[bytes]) -> Reply:
    space.put(words[0], words[2], end=_end(space, words[1], 1000, "setex"))
    return OK


def psetex(space: Keyspace, words: Sequence[bytes]) -> Reply:
    space.put(words[0], words[2], end=_end(space, words[1], 1, "psetex"))
    return OK


def getset(space: Keyspace, words: Sequence[bytes]) -> Reply:
    old = space.get(bytes, words[0])
    space.put(words[0], words[1])
    return old


def getdel(space: Keyspace, words: Sequence[bytes]) -> Reply:
    old = space.get(bytes, words[0])
    if old is not None:
        space.remove(words[0])
    return old


def _add(space: Keyspace, key: bytes, by: int) -> Reply:
    value = space.get(bytes, key)
    number = integer(b"0" if value is None else value) + by
    if not -LONGEST - 1 <= number <= LONGEST:
        raise ReplyError("ERR increment or decrement would overflow")
    space.put(key, b"%d" % number, end=space.end_of(key))
    return number


def incr(space: Keyspace, words: Sequence[bytes]) -> Reply:
    return _add(space, words[0], 1)


def incrby(space: Keyspace, words: Sequence[bytes]) -> Reply:
    return _add(space, words[0], integer(words[1]))


def decr(space: Keyspace, words: Sequence[bytes]) -> Reply:
    return _add(space, words[0], -1)


def decrby(space: Keyspace, words: Sequence[bytes]) -> Reply:
    by = integer(words[1])
    if by < -LONGEST:
        raise ReplyError("ERR decrement would overflow")
    return _add(space, words[0], -by)


def append(space: Keyspace, words: Sequence[bytes]) -> Reply:
    value = (space.get(bytes, words[0]) or b"") + words[1]
    space.put(words[0], value, end=space.end_of(words[0]))
    return len(value)


def strlen(space: Keyspace, words: Sequence[bytes]) -> Reply:
    return len(space.get(bytes, words[0]) or b"")


def mget(space: Keyspace, words: Sequence[bytes]) -> Reply:
    found = (space.find(key) for key in words)
    return [value if isinstance(value, bytes) else None for value in found]


def mset(space: Keyspace, words: Sequence[bytes]) -> Reply:
    if len(words) % 2:
        raise ReplyError("ERR wrong number of arguments for 'mset' command")
    for key, value in zip(words[::2], words[1::2], strict=True):
        space.put(key, value)
    return OK


STRINGS: Final[Table] = {
    "APPEND": Command(append, 3, writes=True),
    "DECR": Command(decr, 2, writes=True),
    "DECRBY": Command(decrby, 3, writes=True),
    "GET": Command(get, 2),
    "GETDEL": Command(getdel, 2, writes=True),
    "GETSET": Command(getset, 3, writes=True),
    "INCR": Command(incr, 2, writes=True),
    "INCRBY": Command(incrby, 3, writes=True),
    "MGET": Command(mget, -2),
    "MSET": Command(mset, -3, writes=True),
    "PSETEX": Command(psetex, 4, writes=True),
    "SET": Command(set_, -3, writes=True),
    "SETEX": Command(setex, 4, writes=True),
    "SETNX": Command(setnx, 3, writes=True),
    "STRLEN": Command(strlen, 2),
}
