"""The functions of many nodes, in Python: the twin of ``tangram/cluster/functions.lua``.

``tests/cluster/test_twin.py`` runs the same calls over both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from tangram.testing.fakes.valkey.keyspace import Hash, Keyspace, Set
from tangram.testing.fakes.valkey.wire import Reply, ReplyError

__all__ = ["NODE_FUNCTIONS", "check_fence"]

CHANGES: Final = b"tangram:cluster"


class _Run(Protocol):
    """One call: the database, and the messages that it publishes."""

    space: Keyspace
    publish: Callable[[bytes, bytes], int]


def _announce(run: _Run, **change: bytes) -> None:
    text = {name: value.decode() for name, value in change.items()}
    run.publish(CHANGES, json.dumps(text, separators=(",", ":")).encode())


def _storage(run: _Run, key: bytes, candidate: bytes) -> bytes:
    born = run.space.get(bytes, key)
    if born is None:
        run.space.put(key, born := candidate)
    return born


def _left(run: _Run, key: bytes) -> int:
    end = run.space.end_of(key)
    return -1 if end is None else end - run.space.now()


def _renew(run: _Run, lease: bytes, value: bytes, ms: bytes) -> Reply:
    holder = run.space.get(bytes, lease)
    if holder is None:
        return [0, b"", 0]
    if value and holder == value:
        run.space.end(lease, run.space.now() + int(ms))
        return [1, holder, int(ms)]
    return [0, holder, _left(run, lease)]


def _records(run: _Run, nodes: bytes, prefix: bytes) -> Reply:
    ids = run.space.get(Set, nodes) or Set()
    found: list[Reply] = []
    for node in list(ids):
        fields = run.space.get(Hash, prefix + node)
        if fields is None:
            del ids[node]
            run.space.changed(nodes)
        else:
            found.append([node, [word for pair in fields.items() for word in pair]])
    return found


def _beat(run: _Run, keys: Sequence[bytes], args: Sequence[bytes]) -> Reply:
    nodes, record, storage = keys[:3]
    node, ms, candidate, count = args[0], int(args[1]), args[2], int(args[3])
    now = run.space.now()
    born = _storage(run, storage, candidate)
    before = (run.space.get(Hash, record) or Hash()).get(b"run", b"")
    words = args[4 : 4 + count]
    told = dict(zip(words[::2], words[1::2], strict=True))
    owns = before in {b"", told.get(b"run", b"")}
    if owns:
        run.space.make(Hash, record).update(told)
        run.space.changed(record)
        run.space.end(record, now + ms)
        ids = run.space.make(Set, nodes)
        if node not in ids:
            ids[node] = None
            run.space.changed(nodes)
            _announce(run, what=b"joined", node=node)
    pairs = args[4 + count :]
    rows: list[Reply] = [
        _renew(run, lease, value if owns else b"", lasts)
        for lease, value, lasts in zip(keys[3:], pairs[::2], pairs[1::2], strict=True)
    ]
    time: Reply = [b"%d" % (now // 1000), b"%d" % (now % 1000 * 1000)]
    return [time, born, before, rows, _records(run, nodes, record[: -len(node)])]


def _claim(run: _Run, keys: Sequence[bytes], args: Sequence[bytes]) -> Reply:
    fields = run.space.get(Hash, keys[0]) or Hash()
    owner, mine = args
    if fields.get(b"run") != owner:
        return 0
    fields[b"run"] = mine
    run.space.changed(keys[0])
    return 1


def _leave(run: _Run, keys: Sequence[bytes], args: Sequence[bytes]) -> Reply:
    nodes, record = keys
    node, started = args
    if (run.space.get(Hash, record) or Hash()).get(b"run") != started:
        return 0
    run.space.remove(record)
    ids = run.space.make(Set, nodes)
    ids.pop(node, None)
    run.space.changed(nodes)
    _announce(run, what=b"left", node=node)
    return 1


def _take(run: _Run, keys: Sequence[bytes], args: Sequence[bytes]) -> Reply:
    lease, fence, storage = keys
    name, value, ms, known, candidate = (*args, args[1])[:5]
    born = _storage(run, storage, candidate)
    holder = run.space.get(bytes, lease)
    if holder is not None and holder != value:
        return [0, holder, _left(run, lease), born]
    if known not in {b"", born}:
        return [0, b"", 0, born]
    token = max(int(run.space.get(bytes, fence) or b"0") + 1, run.space.now() * 1000)
    run.space.put(fence, b"%d" % token)
    run.space.put(lease, value, end=run.space.now() + int(ms))
    _announce(run, what=b"taken", lease=name, by=value)
    return [1, b"%d" % token, int(ms), born]


def _give(run: _Run, keys: Sequence[bytes], args: Sequence[bytes]) -> Reply:
    name, value, to = args
    if run.space.get(bytes, keys[0]) != value:
        return 0
    run.space.remove(keys[0])
    _announce(run, what=b"released", lease=name, by=value, to=to)
    return 1


def check_fence(space: Keyspace, fence: bytes, token: bytes) -> None:
    """Refuse the token of a node that does not hold its lease any more.

    Raises:
        ReplyError: as Redis answers.
    """
    newest = space.get(bytes, fence)
    if newest is None:
        raise ReplyError("UNFENCED redis does not know the lease any more")
    if int(newest) > int(token):
        raise ReplyError("FENCED another node holds the lease")


def _fenced(run: _Run, keys: Sequence[bytes], args: Sequence[bytes]) -> Reply:
    token, channel, payload = args
    check_fence(run.space, keys[0], token)
    return run.publish(channel, payload)


NODE_FUNCTIONS: Final[dict[bytes, Callable[[_Run, Sequence[bytes], Sequence[bytes]], Reply]]] = {
    b"tangram_beat": _beat,
    b"tangram_claim": _claim,
    b"tangram_leave": _leave,
    b"tangram_take": _take,
    b"tangram_give": _give,
    b"tangram_fenced": _fenced,
}
