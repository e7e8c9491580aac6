"""The nodes that one node knows, without I/O.

1. Each answer of Redis lists the records of all nodes. A node that is missing has stopped renewing its own.
2. After this node has lost Redis, missing records mean nothing for a while: the other nodes may have lost it
   too, and first have to write theirs again. So no node is reported as gone before one ttl has passed.
3. A node that leaves says so, and is gone at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Self

import attrs

__all__ = ["PROTOCOL", "NodeRecord", "Registry"]

PROTOCOL: Final = 1
"""The version of everything that nodes say to each other: records, functions on Redis, forwarded requests.

A number more with each change that nodes of the version before do not understand.
"""


@attrs.frozen
class NodeRecord:
    """One node, as it has described itself."""

    id: str
    """The name of the node."""
    started: float
    """The time of its start, in seconds since the epoch."""
    version: str
    """The version of tangram."""
    address: str | None
    """Address and port for requests of other nodes (``cluster.listen``); None if it takes none."""
    workers: int
    """Processes of the server to which the node belongs."""
    members: int
    """Members of all topics on this node."""
    plugins: tuple[str, ...]
    """Placed plugins that it holds."""
    run: str = ""
    """A random name of this start of the node."""
    declared: tuple[str, ...] = ()
    """The names of all plugins that its configuration names."""
    standby: tuple[str, ...] = ()
    """Placed plugins for which it waits."""
    secret: str = ""
    """A digest of ``jwt_secret``, from which the secret cannot be computed."""
    protocol: int = PROTOCOL
    """The version of the protocol of nodes."""
    clock: float | None = None
    """Seconds by which its clock was ahead of that of Redis; None before it was compared."""
    url: str = ""
    """The URL on which it serves clients; empty if it has not told any."""

    @classmethod
    def parse(cls, node: str, fields: Mapping[str, str]) -> Self | None:
        """Return the record that Redis holds; None if it is none, for example of another version."""
        try:
            return cls(
                id=node,
                started=float(fields["started"]),
                version=fields["version"],
                address=fields["address"] or None,
                workers=int(fields["workers"]),
                members=int(fields["members"]),
                plugins=_names(fields["plugins"]),
                run=fields["run"],
                declared=_names(fields.get("declared", "")),
                standby=_names(fields.get("standby", "")),
                secret=fields.get("secret", ""),
                protocol=int(fields.get("protocol", "0")),
                clock=float(fields["clock"]) if fields.get("clock") else None,
                url=fields.get("url", ""),
            )
        except (KeyError, ValueError):
            return None

    def fields(self) -> Mapping[str, str]:
        """Return the record as Redis holds it."""
        return {
            "started": repr(self.started),
            "version": self.version,
            "address": self.address or "",
            "workers": str(self.workers),
            "members": str(self.members),
            "plugins": ",".join(self.plugins),
            "run": self.run,
            "declared": ",".join(self.declared),
            "standby": ",".join(self.standby),
            "secret": self.secret,
            "protocol": str(self.protocol),
            "clock": "" if self.clock is None else f"{self.clock:.3f}",
            "url": self.url,
        }


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


class Registry:
    """The nodes that are alive, as this node knows.

    Args:
        me: the id of this node.
        ttl: seconds after which a record expires that is not renewed.
    """

    def __init__(self, me: str, ttl: float) -> None:
        self.alive: dict[str, NodeRecord] = {}
        """The record of each node, this one included."""
        self._me = me
        self._ttl = ttl
        self._trusted_from = 0.0

    def reconnected(self, now: float) -> None:
        """Note that Redis is back: missing records mean nothing for one ttl."""
        self._trusted_from = now + self._ttl

    def answered(self, now: float, nodes: Mapping[str, Mapping[str, str]]) -> Sequence[NodeRecord]:
        """Take the records of all nodes, and return those of the nodes that are gone."""
        found = {node: NodeRecord.parse(node, fields) for node, fields in nodes.items()}
        records = {node: record for node, record in found.items() if record is not None}
        missing = [one for node, one in self.alive.items() if node not in records and node != self._me]
        if now < self._trusted_from:
            records |= {one.id: one for one in missing}
            missing = []
        self.alive = dict(sorted(records.items()))
        return missing

    def left(self, node: str) -> NodeRecord | None:
        """Forget a node that has said that it leaves, and return its record."""
        return None if node == self._me else self.alive.pop(node, None)
