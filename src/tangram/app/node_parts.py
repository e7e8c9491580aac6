"""The node's part of the tree: its record, made from the parts of the server."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any, Protocol

from tangram.app.incarnation import Incarnation
from tangram.cluster import NodeRecord, Nodes, new_node_id
from tangram.config import Config
from tangram.version import VERSION

__all__ = ["open_nodes"]


class TreeView(Protocol):
    """The attributes of `Tree` that are read here."""

    config: Config
    incarnation: Incarnation


def open_nodes(tree: TreeView, url: str, address: str | None) -> Nodes:
    """Return the part that keeps this node's record on Redis and follows the other nodes."""
    settings = tree.config.cluster
    record = NodeRecord(
        id=settings.node or new_node_id(),
        started=time.time(),
        version=VERSION,
        address=address,
        workers=1,
        members=0,
        plugins=(),
        run=secrets.token_hex(6),
    )

    def describe() -> Mapping[str, Any]:
        channels = tree.incarnation.channels
        return {"members": 0 if channels is None else channels.hub.statistics().members}

    return Nodes(url, record, describe=describe)
