"""Commands on hashes, lists and sets; the reference is valkey.io/commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tangram.testing.fakes.valkey.keyspace import (
    LONGEST,
    Command,
    Hash,
    Items,
    Keyspace,
    Set,
    Table,
    integer,
)
from tangram.testing.fakes.valkey.wire import NIL_ARRAY, OK, Members, Pairs, Reply, ReplyError

__all__ = ["CONTAINERS"]


def hset(space: Keyspace, words: Sequence[bytes]) -> Reply:
    if len(words) % 2 == 0:
        raise ReplyError("ERR wrong number of arguments for 'hset' command")
    fields = space.make(Hash, words[0])
    before = len(fields)
    fields.update(zip(words[1::2], words[2::2], strict=True))
    space.changed(words[0])
    return len(fields) - before


def hsetnx(space: Keyspace, words: Sequence[bytes]) -> Reply:
    key, field, value = words
    fields = space.make(Hash, key)
    if field in fields:
        return 0
    fields[field] = value
    space.changed(key)
    return 1


def hget(space: Keyspace, words: Sequence[bytes]) -> Reply:
    return _fields(space, words).get(words[1])


def hmget(space: Keyspace, words: Sequence[bytes]) -> Reply:
    fields = _fields(space, words)
    return [fields.get(field) for field in words[1:]]


def hgetall(space: Keyspace, words: Sequence[bytes]) -> Reply:
    return Pairs(_fields(space, words))


def hkeys(space: Keyspace, words: Sequence[bytes]) -> Reply:
    return list(_fields(space, words))


def hvals(space: Keyspace, words: Sequence[bytes]) -> Reply:
    return list(_fields(space, words).values())


def hlen(space: Keyspace, words: Sequence[bytes]) -> Reply:
    return len(_fields(space, words))


def hexists(space: Keyspace, words: Sequence[bytes]) -> Reply:
    return int(words[1] in _fields(space, words))


def hdel(space: Keyspace, words: Sequence[bytes]) -> Reply:
    fields = _fields(space, words)
    found = sum(fields.pop(field, None) is not None for field in words[1:])
    if found:
        space.changed(words[0])
    return found


def hincrby(space: Keyspace, words: Sequence[bytes]) -> Reply:
    key, field, by = words
    more = integer(by)
    number = integer(_fields(space, words).get(field, b"0"), "ERR hash value is not an integer") + more
    if not -LONGEST - 1 <= number <= LONGEST:
        raise ReplyError("ERR increment or decrement would overflow")
    space.make(Hash, key)[field] = b"%d" % number
    space.changed(key)
    return number


def _fields(space: Keyspace, words: Sequence[bytes]) -> Hash:
    return space.get(Hash, words[0]) or Hash()


def lpush(space: Keyspace, words: Sequence[bytes]) -> Reply:
    items = space.make(Items, words[0])
    items[:0] = reversed(words[1:])
    space.changed(words[0])
    return len(items)


def rpush(space: Keyspace, words: Sequence[bytes]) -> Reply:
    items = space.make(Items, words[0])
    items += words[1:]
    space.changed(words[0])
    return len(items)


def lpop(space: Keyspace, words: Sequence[bytes]) -> Reply:
    return _pop(space, words, 0, "lpop")


def rpop(space: Keyspace, words: Sequence[bytes]) -> Reply:
    return _pop(space, words, -1, "rpop")


def _pop(space: Keyspace, words: Sequence[bytes], at: int, name: str) -> Reply:
    if len(words) > 2:
        raise ReplyError(f"ERR wrong number of arguments for '{name}' command")
    count = None if len(words) == 1 else _positive(words[1])
    items = space.get(Items, words[0])
    if items is None:
        return None if count is None else NIL_ARRAY
    taken = [items.pop(at) for _ in range(min(1 if count is None else count, len(items)))]
    if taken:
        space.changed(words[0])
    return taken[0] if count is None else taken


def _positive(word: bytes) -> int:
    fault = "ERR value is out of range, must be positive"
    number = integer(word, fault)
    if number < 0:
        raise ReplyError(fault)
    return number


def llen(space: Keyspace, words: Sequence[bytes]) -> Reply:
    return len(_items(space, words))


def lrange(space: Keyspace, words: Sequence[bytes]) -> Reply:
    between = _between(words)
    items = _items(space, words)
    return items[_slice(items, between)]


def ltrim(space: Keyspace, words: Sequence[bytes]) -> Reply:
    between = _between(words)
    items = _items(space, words)
    items[:] = items[_slice(items, between)]
    if space.find(words[0]) is not None:
        space.changed(words[0])
    return OK


def lindex(space: Keyspace, words: Sequence[bytes]) -> Reply:
    items = space.get(Items, words[0])
    if items is None:
        return None
    at = integer(words[1])
    return items[at] if -len(items) <= at < len(items) else None


def lrem(space: Keyspace, words: Sequence[bytes]) -> Reply:
    key, count, value = words
    most = integer(count)
    items = _items(space, words)
    at = [number for number, item in enumerate(items) if item == value]
    doomed = at if most == 0 else at[:most] if most > 0 else at[most:]
    for number in reversed(doomed):
        del items[number]
    if doomed:
        space.changed(key)
    return len(doomed)


def _items(space: Keyspace, words: Sequence[bytes]) -> Items:
    items = space.get(Items, words[0])
    return Items() if items is None else items


def _between(words: Sequence[bytes]) -> tuple[int, int]:
    return integer(words[1]), integer(words[2])


def _slice(items: Items, between: tuple[int, int]) -> slice:
    """Return the slice from the first to the last index, both included.

    Negative indexes count from the end.
    """
    first, last = (max(0, at + len(items)) if at < 0 else at for at in between)
    if between[1] < -len(items):
        return slice(0, 0)
    return slice(first, last + 1)


def sadd(space: Keyspace, words: Sequence[bytes]) -> Reply:
    members = space.make(Set, words[0])
    before = len(members)
    members.update(dict.fromkeys(words[1:]))
    if len(members) > before:
        space.changed(words[0])
    return len(members) - before


def srem(space: Keyspace, words: Sequence[bytes]) -> Reply:
    members = space.get(Set, words[0]) or Set()
    before = len(members)
    for member in words[1:]:
        members.pop(member, None)
    gone = before - len(members)
    if gone:
        space.changed(words[0])
    return gone


def smembers(space: Keyspace, words: Sequence[bytes]) -> Reply:
    return Members(space.get(Set, words[0]) or ())


def sismember(space: Keyspace, words: Sequence[bytes]) -> Reply:
    return int(words[1] in (space.get(Set, words[0]) or ()))


def smismember(space: Keyspace, words: Sequence[bytes]) -> Reply:
    members = space.get(Set, words[0]) or ()
    return [int(word in members) for word in words[1:]]


def scard(space: Keyspace, words: Sequence[bytes]) -> Reply:
    return len(space.get(Set, words[0]) or ())


CONTAINERS: Final[Table] = {
    "HDEL": Command(hdel, -3, writes=True),
    "HEXISTS": Command(hexists, 3),
    "HGET": Command(hget, 3),
    "HGETALL": Command(hgetall, 2),
    "HINCRBY": Command(hincrby, 4, writes=True),
    "HKEYS": Command(hkeys, 2),
    "HLEN": Command(hlen, 2),
    "HMGET": Command(hmget, -3),
    "HSET": Command(hset, -4, writes=True),
    "HSETNX": Command(hsetnx, 4, writes=True),
    "HVALS": Command(hvals, 2),
    "LINDEX": Command(lindex, 3),
    "LLEN": Command(llen, 2),
    "LPOP": Command(lpop, -2, writes=True),
    "LPUSH": Command(lpush, -3, writes=True),
    "LRANGE": Command(lrange, 4),
    "LREM": Command(lrem, 4, writes=True),
    "LTRIM": Command(ltrim, 4, writes=True),
    "RPOP": Command(rpop, -2, writes=True),
    "RPUSH": Command(rpush, -3, writes=True),
    "SADD": Command(sadd, -3, writes=True),
    "SCARD": Command(scard, 2),
    "SISMEMBER": Command(sismember, 3),
    "SMEMBERS": Command(smembers, 2),
    "SMISMEMBER": Command(smismember, -3),
    "SREM": Command(srem, -3, writes=True),
}
