"""Which node runs a placed plugin."""

from __future__ import annotations

from collections.abc import Callable, Collection

import trio

from tangram.cluster.nodes import Nodes
from tangram.cluster.registry import NodeRecord

__all__ = ["Placement"]


class Placement:
    """Where plugins run that run on one node at a time.

    Args:
        nodes: returns the nodes; None on a server that is not one of several.
        placed: returns the names of the plugins that run on one node.
    """

    def __init__(self, nodes: Callable[[], Nodes | None], placed: Callable[[], Collection[str]]) -> None:
        self._nodes = nodes
        self._placed = placed

    def is_placed(self, plugin: str) -> bool:
        """Return whether a plugin runs on one node at a time, and there may be others."""
        return self._nodes() is not None and plugin in self._placed()

    def is_mine(self, plugin: str) -> bool:
        """Return whether this node answers for a plugin: it holds it, or every node runs it."""
        nodes = self._nodes()
        if nodes is None or plugin not in self._placed():
            return True
        holder = self.holder(plugin)
        return holder is not None and holder.id == nodes.me

    def holder(self, plugin: str) -> NodeRecord | None:
        """Return the node that runs a placed plugin; None if there is none now, or it is unknown."""
        nodes = self._nodes()
        if nodes is None:
            return None
        return next((node for node in nodes.alive().values() if plugin in node.plugins), None)

    async def wait_for_holder(self, plugin: str, timeout: float) -> NodeRecord | None:
        """Wait until a node runs a placed plugin, and return it; None after ``timeout`` seconds."""
        with trio.move_on_after(timeout):
            while (holder := self.holder(plugin)) is None:
                nodes = self._nodes()
                if nodes is None:
                    return None
                await nodes.wait_change()
            return holder
        return None
