"""Presence of all nodes: the members of each topic, whichever node they are connected to.

See docs/nodes.md. The functions on Redis are in ``functions.lua``.
"""

from tangram.presence.library import LIBRARY
from tangram.presence.roll import Flush, Roll

__all__ = ["LIBRARY", "Flush", "Roll"]
