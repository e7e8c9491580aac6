"""The functions of histories, in Python: the twin of ``tangram/history/functions.lua``.

The broker in memory has no Lua. It takes the server's own libraries, by their exact texts, and answers their
calls as Redis would. ``tests/history/test_twin.py`` runs the same calls over both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import attrs

from tangram.bus.library import Library
from tangram.cluster.library import LIBRARY as NODES
from tangram.history.library import LIBRARY as HISTORIES
from tangram.presence.library import LIBRARY as PRESENCE
from tangram.testing.fakes.valkey.keyspace import Hash, Keyspace, Stream
from tangram.testing.fakes.valkey.node_functions import NODE_FUNCTIONS, check_fence
from tangram.testing.fakes.valkey.presence_functions import PRESENCE_FUNCTIONS
from tangram.testing.fakes.valkey.session import ClientState
from tangram.testing.fakes.valkey.wire import Reply, ReplyError

__all__ = ["call_function", "load_library"]

AT: Final = b"to:phoenix:at"
KEPT: Final = 604_800_000
UNUSED: Final = 3_600_000
"""Milliseconds, as in the library."""


class _Server(Protocol):
    """The part of the broker that the functions use."""

    libraries: set[bytes]
    publish: Callable[[bytes, bytes], int]

    def space(self, session: ClientState) -> Keyspace: ...


@attrs.define
class _Topic:
    epoch: bytes
    top: int
    native: bool
    recorded: bool

    @property
    def certain(self) -> bool:
        return self.native and not self.recorded


class _Run:
    """One call: the database, and the messages that it publishes."""

    def __init__(self, space: Keyspace, publish: Callable[[bytes, bytes], int]) -> None:
        self.space, self.publish = space, publish

    def fields(self, key: bytes) -> Hash:
        return self.space.get(Hash, key) or Hash()

    def set(self, key: bytes, **values: bytes) -> None:
        self.space.make(Hash, key).update({name.encode(): value for name, value in values.items()})
        self.space.changed(key)

    def add(self, key: bytes, field: bytes) -> int:
        number = int(self.fields(key).get(field, b"0")) + 1
        self.set(key, **{field.decode(): b"%d" % number})
        return number

    def expire(self, key: bytes, after: int) -> None:
        if self.space.find(key) is not None:
            self.space.end(key, self.space.now() + after)

    def announce(self, **fields: object) -> None:
        self.publish(AT, json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode())

    def open(self, messages: bytes, meta: bytes, guard: bytes, candidate: bytes, mode: bytes) -> _Topic:
        now = self.fields(guard)
        s, q = now.get(b"s", b"0"), now.get(b"q", b"0")
        m = self.fields(meta)
        topic = _Topic(m.get(b"e", b""), int(m.get(b"o", b"0")), m.get(b"n") == b"1", m.get(b"r") == b"1")
        stale = m.get(b"q") != q and not topic.certain
        if not topic.epoch or m.get(b"k") != mode or m.get(b"s") != s or stale:
            for key in (messages, meta):
                if self.space.find(key) is not None:
                    self.space.remove(key)
            self.set(meta, e=candidate, o=b"0", k=mode, s=s, q=q, r=b"%d" % topic.recorded)
            self.expire(meta, UNUSED)
            return _Topic(candidate, 0, native=False, recorded=topic.recorded)
        if m.get(b"q") != q:
            self.set(meta, q=q)
        return topic

    def store(self, key: bytes, mode: bytes, offset: int, entry: tuple[bytes, bytes], size: int) -> None:
        event, payload = entry
        if mode == b"latest":
            fields = self.space.make(Hash, key)
            fresh = event not in fields
            fields[event] = b"%d %d %b" % (offset, self.space.now() // 1000, payload)
            if fresh and len(fields) > size:
                del fields[min(fields, key=lambda name: int(fields[name].partition(b" ")[0]))]
        else:
            stream = self.space.make(Stream, key)
            stream[offset] = entry
            while len(stream) > size:
                del stream[next(iter(stream))]
        self.space.changed(key)

    def settle(self, messages: bytes, meta: bytes, top: int, ttl: bytes, field: str) -> None:
        self.set(meta, o=b"%d" % top, **{field: b"1"})
        self.expire(meta, KEPT)
        self.expire(messages, int(ttl))


def _publish(run: _Run, keys: Sequence[bytes], args: Sequence[bytes]) -> Reply:
    name, event, payload, candidate, mode, size, ttl = args[:7]
    if len(keys) > 3:
        check_fence(run.space, keys[3], args[7])
    topic = run.open(keys[0], keys[1], keys[2], candidate, mode)
    top = topic.top + 1
    run.store(keys[0], mode, top, (event, payload), int(size))
    run.settle(keys[0], keys[1], top, ttl, "n")
    run.announce(t=name.decode(), e=topic.epoch.decode(), o=top)
    receivers = run.publish(b"to:%b:%b" % (name, event), payload)
    return [receivers, topic.epoch, b"%d" % top]


def _missed(
    run: _Run, key: bytes, topic: _Topic, since: int, *, everything: bool
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    missed = topic.top - since
    if missed == 0:
        return [], b"ok"
    stream = run.space.get(Stream, key) or Stream()
    found = [entry for offset, entry in stream.items() if offset > since]
    if len(found) == missed:
        return found, b"ok"
    return (found if everything else []), b"too_old"


def _newest(run: _Run, key: bytes, since: int, ttl: bytes) -> list[tuple[bytes, bytes]]:
    oldest = run.space.now() // 1000 - int(ttl) / 1000
    rows = []
    for event, value in run.fields(key).items():
        offset, at, payload = value.split(b" ", 2)
        if int(offset) > since and int(at) >= oldest:
            rows.append((int(offset), event, payload))
    return [(event, payload) for _, event, payload in sorted(rows)]


def _fit(entries: list[tuple[bytes, bytes]], limit: int) -> list[tuple[bytes, bytes]]:
    kept: list[tuple[bytes, bytes]] = []
    size = 0
    for event, payload in reversed(entries):
        size += len(event) + len(payload)
        if size > limit:
            break
        kept.insert(0, (event, payload))
    return kept


def _read(run: _Run, keys: Sequence[bytes], args: Sequence[bytes]) -> Reply:
    name, epoch, since_text, candidate, mode, ttl, limit, nonce = args
    since = int(since_text)
    topic = run.open(keys[0], keys[1], keys[2], candidate, mode)
    if topic.top == 0:
        run.expire(keys[1], UNUSED)
    status = b"new"
    if epoch:
        status = b"ok" if epoch in {topic.epoch, b"*"} and since <= topic.top else b"epoch"
    entries: list[tuple[bytes, bytes]] = []
    if mode == b"latest":
        entries = _newest(run, keys[0], since if status == b"ok" else -1, ttl)
    elif status == b"ok":
        entries, status = _missed(run, keys[0], topic, since, everything=epoch == b"*")
    kept = _fit(entries, int(limit))
    if len(kept) < len(entries):
        status = b"too_much"
        kept = kept if mode == b"latest" else []
    if nonce:
        run.announce(t=name.decode(), e=topic.epoch.decode(), o=topic.top, m=nonce.decode())
    return [status, topic.epoch, b"%d" % topic.top, int(topic.certain), [[*entry] for entry in kept]]


def _record(run: _Run, keys: Sequence[bytes], args: Sequence[bytes]) -> Reply:
    guard, count = keys[0], int(args[1])
    if run.fields(guard).get(b"f") != args[0]:
        return 0
    rows = [args[2 + 5 * at : 7 + 5 * at] for at in range(count)]
    topics = [
        run.open(keys[1 + 2 * at], keys[2 + 2 * at], guard, row[1], row[2]) for at, row in enumerate(rows)
    ]
    added = [0] * count
    entries = args[2 + 5 * count :]
    for index, event, payload in zip(entries[::3], entries[1::3], entries[2::3], strict=True):
        at = int(index) - 1
        topics[at].top += 1
        added[at] += 1
        run.store(keys[1 + 2 * at], rows[at][2], topics[at].top, (event, payload), int(rows[at][3]))
    told = []
    for at, (topic, row) in enumerate(zip(topics, rows, strict=True)):
        run.settle(keys[1 + 2 * at], keys[2 + 2 * at], topic.top, row[4], "r")
        told.append([row[0].decode(), topic.epoch.decode(), topic.top, added[at]])
    run.announce(f=int(args[0]), r=told)
    return 1


def _lease(run: _Run, keys: Sequence[bytes], args: Sequence[bytes]) -> Reply:
    lease, guard = keys
    node, ms, known, forced = args[0], int(args[1]), args[2], args[3:] == [b"force"]
    holder = run.space.get(bytes, lease)
    number = run.fields(guard).get(b"f", b"0")
    if holder == node and known == number:
        run.expire(lease, ms)
        return [1, number, 0]
    if holder is not None and holder != node and not forced:
        return [0, number, 0]
    broke = int(known != number)
    if broke:
        run.add(guard, b"q")
    number = b"%d" % run.add(guard, b"f")
    run.space.put(lease, node)
    run.expire(lease, ms)
    run.announce(l=int(number), n=node.decode(), b=broke)
    return [1, number, broke]


def _release(run: _Run, keys: Sequence[bytes], args: Sequence[bytes]) -> Reply:
    if run.space.get(bytes, keys[0]) != args[0]:
        return 0
    run.space.remove(keys[0])
    return 1


def _begin(run: _Run, keys: Sequence[bytes], args: Sequence[bytes]) -> Reply:
    lease, guard = keys
    if run.fields(guard).get(b"i") == args[0]:
        return 0
    run.set(guard, i=args[0])
    run.add(guard, b"s")
    if run.space.find(lease) is not None:
        run.space.remove(lease)
    return 1


_FUNCTIONS: Final[dict[bytes, Callable[[_Run, Sequence[bytes], Sequence[bytes]], Reply]]] = {
    b"tangram_publish": _publish,
    b"tangram_read": _read,
    b"tangram_record": _record,
    b"tangram_lease": _lease,
    b"tangram_release": _release,
    b"tangram_begin": _begin,
}


_Table = Mapping[bytes, Callable[[_Run, Sequence[bytes], Sequence[bytes]], Reply]]
_LIBRARIES: Final[Mapping[bytes, tuple[Library, _Table]]] = {
    b"tangram": (HISTORIES, _FUNCTIONS),
    b"tangram_cluster": (NODES, NODE_FUNCTIONS),
    b"tangram_presence": (PRESENCE, PRESENCE_FUNCTIONS),
}


def load_library(server: _Server, _session: ClientState, words: Sequence[bytes]) -> Reply:
    """Take a library of the server, and no other."""
    if [word.upper() for word in words[:2]] != [b"LOAD", b"REPLACE"] or len(words) != 3:
        raise ReplyError("ERR the broker in memory takes FUNCTION LOAD REPLACE alone")
    for name, (library, _) in _LIBRARIES.items():
        if words[2] == library.text.encode():
            server.libraries.add(name)
            return name
    raise ReplyError("ERR the broker in memory takes no other libraries than tangram's")


def call_function(server: _Server, session: ClientState, words: Sequence[bytes]) -> Reply:
    """Call one function of a library that was loaded."""
    loaded = (_LIBRARIES[name][1] for name in server.libraries)
    function = next((table[words[0]] for table in loaded if words[0] in table), None)
    if function is None:
        raise ReplyError("ERR Function not found")
    count = int(words[1])
    run = _Run(server.space(session), server.publish)
    return function(run, list(words[2 : 2 + count]), list(words[2 + count :]))
