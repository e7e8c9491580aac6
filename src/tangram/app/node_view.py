"""The operator's view of the nodes, and the moves of plugins between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import trio

from tangram.cluster import NodeRecord, Nodes, Placement
from tangram.config import normalise
from tangram.errors import NoSuchChild, PluginError

__all__ = ["MOVE_TIMEOUT", "move_plugin", "shown_nodes"]

MOVE_TIMEOUT: Final = 30.0
"""Seconds for a plugin to stop and for the next node to take it."""
CANDIDATE_TIMEOUT: Final = 1.0
"""Seconds in which a node that has just begun to wait must be known."""
LOOK_EVERY: Final = 0.1
"""Seconds between two looks at the records meanwhile."""


class PlacedTree(Protocol):
    """The attributes of `Tree` that are read here."""

    nodes: Nodes | None
    placement: Placement
    placed: frozenset[str]


def shown_nodes(tree: PlacedTree) -> Sequence[Mapping[str, Any]]:
    """Return each node that is alive as plain values."""
    nodes = tree.nodes
    if nodes is None:
        return []
    differences = nodes.differences()
    return [
        {**_shown(one, nodes.me), "differs": [other.text for other in differences.get(one.id, ())]}
        for one in nodes.alive().values()
    ]


def _shown(record: NodeRecord, me: str) -> Mapping[str, Any]:
    return {
        "id": record.id,
        "me": record.id == me,
        "started": record.started,
        "version": record.version,
        "url": record.url or None,
        "address": record.address,
        "workers": record.workers,
        "members": record.members,
        "plugins": list(record.plugins),
        "standby": list(record.standby),
    }


async def move_plugin(tree: PlacedTree, name: str, to: str) -> Mapping[str, Any]:
    """Move a placed plugin to another node, and wait until that node has taken it.

    Args:
        tree: the tree.
        name: the plugin, in any spelling.
        to: the id of the node; empty for any other.

    Raises:
        NoSuchChild: no plugin of that name runs on one node at a time.
        PluginError: no other node can take it, or none has within `MOVE_TIMEOUT`.
        BrokerUnavailable: Redis is away.
    """
    nodes = tree.nodes
    found = next((one for one in tree.placed if normalise(one) == normalise(name)), None)
    if nodes is None or found is None:
        raise NoSuchChild(f"no plugin called {name!r} runs on one of several nodes: see /-/nodes")
    before = tree.placement.holder(found)
    origin = before.id if before is not None else None
    await _require_candidate(nodes, found, origin, to)
    await nodes.publish_change({"what": "move", "lease": found, "to": to})
    with trio.move_on_after(MOVE_TIMEOUT):
        while (now := tree.placement.holder(found)) is None or now.id == origin:
            await nodes.wait_change()
        return {"plugin": found, "from": origin, "to": now.id}
    raise PluginError(
        f"plugin {found!r} was told to move, and no node has taken it within {MOVE_TIMEOUT:g} s"
    )


async def _require_candidate(nodes: Nodes, lease: str, origin: str | None, to: str) -> None:
    """Wait until a node waits for a lease; this node may know the records of a moment ago.

    Raises:
        PluginError: there is none.
    """
    ready: list[str] = []
    with trio.move_on_after(CANDIDATE_TIMEOUT):
        while True:
            ready = [one.id for one in nodes.alive().values() if lease in one.standby and one.id != origin]
            if to in ready or (ready and not to):
                return
            nodes.renew_now()
            await trio.sleep(LOOK_EVERY)
    able = ", ".join(ready) or "none"
    wanted = repr(to) if to else "another node"
    raise PluginError(f"plugin {lease!r} cannot move to {wanted}: nodes that wait for it: {able}")
