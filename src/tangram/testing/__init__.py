"""For tests of plugins, and of tangram itself: a whole server inside the test's own Trio loop.

``async with open_tangram([plugin]) as tangram:`` gives the server with an HTTP client (``tangram.http``), a
channel client (``tangram.open_socket()``), its events, and ``tangram.crash("plugin:my_plugin")``; at its end
it checks that the server has kept what it promises. ``docs/testing.md`` is the author's page.
"""

from tangram.testing.faults import FaultPorts, InjectedFault
from tangram.testing.invariants import INVARIANTS, Evidence, InvariantBroken, check
from tangram.testing.memory import MemoryBroker
from tangram.testing.server import RunningTangram, TangramEnded, free_port, open_tangram

__all__ = [
    "INVARIANTS",
    "Evidence",
    "FaultPorts",
    "InjectedFault",
    "InvariantBroken",
    "MemoryBroker",
    "RunningTangram",
    "TangramEnded",
    "check",
    "free_port",
    "open_tangram",
]
