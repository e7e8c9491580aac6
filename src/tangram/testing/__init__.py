"""For tests of plugins, and of tangram itself: a whole server inside the test's own Trio loop.

``async with open_tangram([plugin]) as tangram:`` gives the server with an HTTP client (``tangram.http``), a
channel client (``tangram.open_socket()``), its events, and ``tangram.crash("plugin:my_plugin")``.
"""

from tangram.testing.faults import FaultPorts, InjectedFault
from tangram.testing.server import RunningTangram, free_port, open_tangram

__all__ = ["FaultPorts", "InjectedFault", "RunningTangram", "free_port", "open_tangram"]
