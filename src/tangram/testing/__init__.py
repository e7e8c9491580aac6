"""For tests of plugins, and of tangram itself: a whole server inside the test's own Trio loop.

``async with open_tangram([plugin]) as tangram:`` gives the server with an HTTP client (``tangram.http``), a
channel client (``tangram.open_socket()``), its events, and ``tangram.crash("plugin:my_plugin")``; at its end
it checks that the server has kept what it promises. ``docs/testing.md`` is the author's page.
"""

from typing import Any

from tangram.testing.catalogue import FAULTS, Chaos
from tangram.testing.faults import FaultPorts, InjectedFault
from tangram.testing.invariants import INVARIANTS, Evidence, InvariantBroken, check
from tangram.testing.memory import MemoryBroker
from tangram.testing.server import RunningTangram, TangramEnded, free_port, open_tangram
from tangram.testing.steps import StepFailed, StepReport, every_step, run_every_step

__all__ = [
    "FAULTS",
    "INVARIANTS",
    "Chaos",
    "Evidence",
    "FaultPorts",
    "InjectedFault",
    "InvariantBroken",
    "MemoryBroker",
    "RunningTangram",
    "StepFailed",
    "StepReport",
    "TangramEnded",
    "chaos",
    "check",
    "every_step",
    "free_port",
    "open_tangram",
    "run_every_step",
]


def chaos(*faults: str, **settings: Any) -> Any:
    """``@chaos("broker_kill", "crash_web")`` over a test: these strike the fixture ``tangram`` meanwhile."""
    import pytest

    return pytest.mark.chaos(*faults, **settings)
