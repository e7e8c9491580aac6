"""Many nodes on one Redis: their registry, and the node on which a plugin runs.

See docs/nodes.md. The functions on Redis are in ``functions.lua``.
"""

from tangram.cluster.fencing import Fencing
from tangram.cluster.nodes import Nodes, load_functions, new_node_id
from tangram.cluster.placement import Placement
from tangram.cluster.registry import NodeRecord

__all__ = ["Fencing", "NodeRecord", "Nodes", "Placement", "load_functions", "new_node_id"]
