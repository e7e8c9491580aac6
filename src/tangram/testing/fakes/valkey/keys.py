"""Commands on keys of any kind; the reference is valkey.io/commands."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from tangram.testing.fakes.valkey.globs import matches
from tangram.testing.fakes.valkey.keyspace import (
    LONGEST,
    SYNTAX,
    Command,
    Hash,
    Items,
    Keyspace,
    Set,
    Table,
    Value,
    integer,
    invalid_expire,
)
from tangram.testing.fakes.valkey.wire import OK, Reply, ReplyError, Simple

__all__ = ["KEYS"]

NAMES: Final[dict[type[Value], bytes]] = {bytes: b"string", Hash: b"hash", Items: b"list", Set: b"set"}


def delete(space: Keyspace, words: Sequence[bytes]) -> Reply:
    found = 0
    for key in words:
        if space.find(key) is not None:
            space.remove(key)
            found += 1
    return found


def exists(space: Keyspace, words: Sequence[bytes]) -> Reply:
    return sum(space.find(key) is not None for key in words)


def type_(space: Keyspace, words: Sequence[bytes]) -> Reply:
    return Simple(_name(space.find(words[0])))


def _name(value: Value | None) -> bytes:
    return b"none" if value is None else NAMES[type(value)]


def _expire(name: str, unit: int, space: Keyspace, words: Sequence[bytes]) -> Reply:
    options = {word.upper() for word in words[2:]}
    for option in words[2:]:
        if option.upper() not in {b"NX", b"XX", b"GT", b"LT"}:
            raise ReplyError(f"ERR Unsupported option {option.decode('latin-1')}")
    if b"NX" in options and len(options) > 1:
        raise ReplyError("ERR NX and XX, GT or LT options at the same time are not compatible")
    if {b"GT", b"LT"} <= options:
        raise ReplyError("ERR GT and LT options at the same time are not compatible")
    lasts = integer(words[1]) * unit
    if not -LONGEST - 1 <= lasts <= LONGEST - space.now():
        raise invalid_expire(name)
    key, when = words[0], space.now() + lasts
    if space.find(key) is None or not _may_end(space.end_of(key), when, options):
        return 0
    if lasts <= 0:
        space.remove(key)
    else:
        space.end(key, when)
    return 1


def _may_end(end: int | None, when: int, options: set[bytes]) -> bool:
    """Return whether the options of an EXPIRE allow it; a key without an end lasts longest."""
    if (b"NX" in options and end is not None) or (b"XX" in options and end is None):
        return False
    if b"GT" in options:
        return end is not None and when > end
    return b"LT" not in options or end is None or when < end


def _left(space: Keyspace, key: bytes) -> int:
    """Return the milliseconds that a key has left; -2 for no key, -1 for no end."""
    if space.find(key) is None:
        return -2
    end = space.end_of(key)
    return -1 if end is None else end - space.now()


def ttl(space: Keyspace, words: Sequence[bytes]) -> Reply:
    left = _left(space, words[0])
    return left if left < 0 else (left + 500) // 1000


def pttl(space: Keyspace, words: Sequence[bytes]) -> Reply:
    return _left(space, words[0])


def persist(space: Keyspace, words: Sequence[bytes]) -> Reply:
    if space.find(words[0]) is None or space.end_of(words[0]) is None:
        return 0
    space.end(words[0], None)
    return 1


def rename(space: Keyspace, words: Sequence[bytes]) -> Reply:
    old, new = words
    value = space.find(old)
    if value is None:
        raise ReplyError("ERR no such key")
    if new != old:
        end = space.end_of(old)
        space.remove(old)
        space.put(new, value, end=end)
    return OK


def keys(space: Keyspace, words: Sequence[bytes]) -> Reply:
    return [key for key in space.keys() if matches(words[0], key)]  # noqa: SIM118 - not a dict


def dbsize(space: Keyspace, words: Sequence[bytes]) -> Reply:  # noqa: ARG001 - as all commands
    return sum(1 for _ in space.keys())  # noqa: SIM118 - not a dict


def scan(space: Keyspace, words: Sequence[bytes]) -> Reply:
    """Return all keys at once, and the final cursor: the databases of tests are small."""
    if not words[0].isdigit():
        raise ReplyError("ERR invalid cursor")
    pattern, kind = b"*", None
    options = words[1:]
    if len(options) % 2:
        raise ReplyError(SYNTAX)
    for option, value in zip(options[::2], options[1::2], strict=True):
        match option.upper():
            case b"MATCH":
                pattern = value
            case b"TYPE":
                kind = value.lower()
            case b"COUNT":
                if integer(value) < 1:
                    raise ReplyError(SYNTAX)
            case _:
                raise ReplyError(SYNTAX)
    found = [key for key in space.keys() if matches(pattern, key)]  # noqa: SIM118 - not a dict
    return [b"0", [key for key in found if kind in {None, _name(space.find(key))}]]


KEYS: Final[Table] = {
    "DBSIZE": Command(dbsize, 1),
    "DEL": Command(delete, -2, writes=True),
    "EXISTS": Command(exists, -2),
    "EXPIRE": Command(partial(_expire, "expire", 1000), -3, writes=True),
    "KEYS": Command(keys, 2),
    "PERSIST": Command(persist, 2, writes=True),
    "PEXPIRE": Command(partial(_expire, "pexpire", 1), -3, writes=True),
    "PTTL": Command(pttl, 2),
    "RENAME": Command(rename, 3, writes=True),
    "SCAN": Command(scan, -2),
    "TTL": Command(ttl, 2),
    "TYPE": Command(type_, 2),
    "UNLINK": Command(delete, -2, writes=True),
}
