"""The functions of presence, in Python: the twin of ``tangram/presence/functions.lua``.

``tests/presence/test_twin.py`` runs the same calls over both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol

import attrs

from tangram.testing.fakes.valkey.keyspace import Hash, Keyspace, Set
from tangram.testing.fakes.valkey.wire import Reply

__all__ = ["PRESENCE_FUNCTIONS"]

FEED: Final = b"to:phoenix:who"


class _Run(Protocol):
    """One call: the database, and the messages that it publishes."""

    space: Keyspace
    publish: Callable[[bytes, bytes], int]


def _announce(run: _Run, **fields: object) -> None:
    run.publish(FEED, json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode())


def _metas(members: Sequence[tuple[bytes, bytes]]) -> bytes:
    refs: dict[bytes, list[bytes]] = {}
    for agent, id_ in members:
        refs.setdefault(id_, []).append(b'{"phx_ref":%b}' % agent)
    parts = [b'%b:{"metas":[%b]}' % (id_, b",".join(found)) for id_, found in refs.items()]
    return b"{%b}" % b",".join(parts)


@attrs.define
class _Topic:
    """A change of one topic."""

    run: _Run
    key: bytes
    joins: list[tuple[bytes, bytes]] = attrs.Factory(list)
    leaves: list[tuple[bytes, bytes]] = attrs.Factory(list)
    before: int = 0
    counting: bool = False
    version: int = 0
    over: bool = False
    count: int = 0

    @classmethod
    def open(cls, run: _Run, key: bytes) -> _Topic:
        fields = run.space.get(Hash, key) or Hash()
        return cls(run, key, before=int(fields.get(b"#v", b"0")), counting=fields.get(b"#k") == b"1")

    @property
    def fields(self) -> Hash:
        return self.run.space.get(Hash, self.key) or Hash()

    def set(self, name: bytes, value: bytes) -> bool:
        fields = self.run.space.make(Hash, self.key)
        fresh = name not in fields
        fields[name] = value
        self.run.space.changed(self.key)
        return fresh

    def delete(self, name: bytes) -> None:
        fields = self.fields
        if name in fields:
            del fields[name]
            self.run.space.changed(self.key)

    def remove(self, agent: bytes) -> None:
        value = self.fields.get(agent)
        if value is not None:
            self.delete(agent)
            self.leaves.append((agent, value.partition(b" ")[2]))

    def agents_of(self, session: bytes, kept: Collection[bytes]) -> list[bytes]:
        prefix = session + b" "
        return [
            agent for agent, value in self.fields.items() if value.startswith(prefix) and agent not in kept
        ]

    def settle(self, name: bytes, session: bytes, limit: bytes, *, swept: int) -> None:
        self.count = len(self.fields) - (self.before > 0) - self.counting
        if limit and self.count > 0:
            bound = int(limit)
            self.over = self.count > (bound * 9 // 10 if self.counting else bound)
        self.version = self.before
        if not self.joins and not self.leaves and self.over == self.counting:
            return
        self.version = self.before + 1 if self.before else self.run.space.now() * 1000 + 1
        if self.count == 0:
            if self.run.space.find(self.key) is not None:
                self.run.space.remove(self.key)
        else:
            self.set(b"#v", b"%d" % self.version)
            if self.over and not self.counting:
                self.set(b"#k", b"1")
            elif self.counting and not self.over:
                self.delete(b"#k")
        self._publish(name, session, swept)

    def _publish(self, name: bytes, session: bytes, swept: int) -> None:
        listed = not self.over and not self.counting
        _announce(
            self.run,
            t=name.decode(),
            s=session.decode(),
            p=self.before,
            v=self.version,
            c=self.count,
            k=int(self.over),
            d=int(listed),
            x=swept,
        )
        if listed:
            payload = b'{"joins":%b,"leaves":%b}' % (_metas(self.joins), _metas(self.leaves))
            self.run.publish(b"to:%b:presence_diff" % name, payload)


def _flat(fields: Hash) -> list[Reply]:
    return [word for pair in fields.items() for word in pair]


def _flush(run: _Run, keys: Sequence[bytes], args: Sequence[bytes]) -> Reply:
    name, session, node, nonce, limit, whole, empty, joining_text = args[:8]
    joining = int(joining_text)
    topic = _Topic.open(run, keys[0])
    joins = args[8 : 8 + 2 * joining]
    for agent, id_ in zip(joins[::2], joins[1::2], strict=True):
        if topic.set(agent, b"%b %b" % (session, id_)):
            topic.joins.append((agent, id_))
    if whole == b"1":
        for agent in topic.agents_of(session, set(joins[::2])):
            topic.remove(agent)
    for agent in args[8 + 2 * joining :]:
        topic.remove(agent)
    topic.settle(name, session, limit, swept=0)
    if empty == b"1":
        _take_out(run, keys[2], name)
    elif joining:
        run.space.make(Hash, keys[1])[session] = node
        run.space.changed(keys[1])
        run.space.make(Set, keys[2])[name] = None
        run.space.changed(keys[2])
    answer: list[Reply] = [b"%d" % topic.version, int(topic.over), topic.count]
    if nonce:
        _announce(run, t=name.decode(), m=nonce.decode())
        answer.append([] if topic.over else _flat(topic.fields))
    return answer


def _take_out(run: _Run, key: bytes, name: bytes) -> None:
    topics = run.space.get(Set, key)
    if topics is not None and name in topics:
        del topics[name]
        run.space.changed(key)


def _read(run: _Run, keys: Sequence[bytes], _args: Sequence[bytes]) -> Reply:
    return _flat(run.space.get(Hash, keys[0]) or Hash())


def _version(run: _Run, keys: Sequence[bytes], _args: Sequence[bytes]) -> Reply:
    return (run.space.get(Hash, keys[0]) or Hash()).get(b"#v", b"0")


def _sweep(run: _Run, keys: Sequence[bytes], args: Sequence[bytes]) -> Reply:
    name, session, limit, most = args
    topic = _Topic.open(run, keys[0])
    agents = topic.agents_of(session, ())
    for agent in agents[: int(most)]:
        topic.remove(agent)
    topic.settle(name, session, limit, swept=1)
    if len(agents) > int(most):
        return 1
    _take_out(run, keys[1], name)
    return 0


def _end(run: _Run, keys: Sequence[bytes], args: Sequence[bytes]) -> Reply:
    sessions = run.space.get(Hash, keys[0]) or Hash()
    session, node = args
    if session not in sessions:
        return 0
    sessions[session] = node + b" ended"
    run.space.changed(keys[0])
    _announce(run, e=session.decode(), n=node.decode())
    return 1


def _claim(run: _Run, keys: Sequence[bytes], args: Sequence[bytes]) -> Reply:
    sessions, topics, lock, node = keys
    session, me, ms, gone = args
    if session not in (run.space.get(Hash, sessions) or Hash()):
        return 0
    if gone == b"1" and run.space.find(node) is not None:
        return 0
    if run.space.find(lock) is not None:
        return 1
    run.space.put(lock, me, end=run.space.now() + int(ms))
    return list(run.space.get(Set, topics) or Set())


def _forget(run: _Run, keys: Sequence[bytes], args: Sequence[bytes]) -> Reply:
    sessions, topics, lock = keys
    if run.space.find(lock) is not None:
        run.space.remove(lock)
    if run.space.find(topics) is not None:
        return 0
    found = run.space.get(Hash, sessions) or Hash()
    known = args[0] in found
    if known:
        del found[args[0]]
        run.space.changed(sessions)
    return int(known)


PRESENCE_FUNCTIONS: Final[dict[bytes, Callable[[_Run, Sequence[bytes], Sequence[bytes]], Reply]]] = {
    b"tangram_who_flush": _flush,
    b"tangram_who_read": _read,
    b"tangram_who_version": _version,
    b"tangram_who_sweep": _sweep,
    b"tangram_who_sessions": _read,
    b"tangram_who_end": _end,
    b"tangram_who_claim": _claim,
    b"tangram_who_forget": _forget,
}
