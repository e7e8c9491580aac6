"""The functions of many nodes on Redis, for the caller: their calls and answers.

No I/O: the text of the functions is in ``functions.lua``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from tangram.bus.library import Library
from tangram.bus.scripts import FunctionCall
from tangram.bus.topics import own_key

__all__ = [
    "CHANGES",
    "LIBRARY",
    "Beat",
    "LeaseRow",
    "TakeAnswer",
    "beat_call",
    "claim_call",
    "fence_key",
    "give_call",
    "lease_key",
    "leave_call",
    "node_key",
    "parse_beat",
    "parse_take",
    "take_call",
]

LIBRARY: Final = Library("tangram.cluster", ("beat", "claim", "leave", "take", "give", "fenced"))
CHANGES: Final = b"tangram:cluster"
"""The channel on which changes of nodes and leases are published."""
_NODES: Final = own_key("nodes")
_STORAGE: Final = own_key("born")


class LeaseRow(NamedTuple):
    """The state of one lease in an answer."""

    renewed: bool
    holder: str
    """The value of the holder; empty if there is none."""
    left: float
    """Seconds that the lease lasts."""


class Beat(NamedTuple):
    """The answer to one beat of a node."""

    time: float
    """The time of Redis, in seconds since the epoch."""
    storage: str
    """The name of the storage."""
    before: str
    """The run that owned the record of this node before; that of another one has kept it."""
    leases: Sequence[LeaseRow]
    nodes: Mapping[str, Mapping[str, str]]
    """The record of each node."""


class TakeAnswer(NamedTuple):
    """The answer to a take."""

    token: int
    """The fencing token; 0 if the lease was not taken."""
    holder: str
    """The value of the other holder; empty if there is none."""
    left: float
    """Seconds that the lease lasts."""
    storage: str


def node_key(node: str) -> str:
    """Return the key of a node's record."""
    return own_key("node", node)


def lease_key(name: str) -> str:
    """Return the key of a lease."""
    return own_key("lease", name)


def fence_key(name: str) -> str:
    """Return the key of the newest fencing token of a lease."""
    return own_key("fence", name)


def milliseconds(seconds: float) -> str:
    """Return seconds as a word for Redis."""
    return str(round(seconds * 1000))


def beat_call(
    node: str, record: Mapping[str, str], ttl: float, candidate: str, leases: Sequence[tuple[str, str, float]]
) -> FunctionCall:
    """Return the call that renews a node's record and leases, and reads those of all nodes.

    Args:
        node: the id of the node.
        record: its record.
        ttl: seconds for which the record lasts.
        candidate: a name for the storage, if it has none.
        leases: for each lease its name, the value to renew or an empty text, and its seconds.
    """
    words = [word for pair in record.items() for word in pair]
    rows = [word for _, value, lasts in leases for word in (value, milliseconds(lasts))]
    return FunctionCall(
        "tangram_beat",
        (_NODES, node_key(node), _STORAGE, *(lease_key(name) for name, _, _ in leases)),
        (node, milliseconds(ttl), candidate, str(len(words)), *words, *rows),
    )


def parse_beat(answer: Any) -> Beat:
    """Return the answer to a beat as a value."""
    now, storage, before, rows, nodes = answer
    return Beat(
        int(now[0]) + int(now[1]) / 1e6,
        storage.decode(),
        before.decode(),
        [LeaseRow(bool(renewed), holder.decode(), int(left) / 1000) for renewed, holder, left in rows],
        {node.decode(): _record(fields) for node, fields in nodes},
    )


def _record(fields: Sequence[bytes]) -> dict[str, str]:
    words = [field.decode("utf-8", "replace") for field in fields]
    return dict(zip(words[::2], words[1::2], strict=True))


def claim_call(node: str, owner: str, run: str) -> FunctionCall:
    """Return the call that gives a node's record to a run, if a dead one owns it still."""
    return FunctionCall("tangram_claim", (node_key(node),), (owner, run))


def leave_call(node: str, run: str) -> FunctionCall:
    """Return the call that removes a node's record and notifies the others."""
    return FunctionCall("tangram_leave", (_NODES, node_key(node)), (node, run))


def take_call(name: str, value: str, ttl: float, storage: str, candidate: str) -> FunctionCall:
    """Return the call that takes a lease if it is free, or takes an own one again.

    Args:
        name: the name of the lease.
        value: the value of the new holder.
        ttl: seconds for which the lease lasts.
        storage: the storage that must still be there; empty for any.
        candidate: a name for the storage, if it has none; no call had it before.
    """
    keys = (lease_key(name), fence_key(name), _STORAGE)
    return FunctionCall("tangram_take", keys, (name, value, milliseconds(ttl), storage, candidate))


def parse_take(answer: Any) -> TakeAnswer:
    """Return the answer to a take as a value."""
    taken, who, left, storage = answer
    token, holder = (int(who), "") if taken else (0, who.decode())
    return TakeAnswer(token, holder, int(left) / 1000, storage.decode())


def give_call(name: str, value: str, to: str = "") -> FunctionCall:
    """Return the call that releases a lease and notifies the other nodes."""
    return FunctionCall("tangram_give", (lease_key(name),), (name, value, to))
