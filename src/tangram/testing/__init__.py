"""Test plugins, and tangram itself, with a whole server inside the test's own Trio loop.

``async with open_tangram([plugin]) as tangram:`` gives the server with an HTTP client
(``tangram.http``), a channel client (``tangram.open_socket()``), its events, and
``tangram.crash("plugin:my_plugin")``. At the end of the block the server's promises are checked.
``docs/testing.md`` is the page for authors.

- ``run``: servers, parts of them, and processes
- ``fakes``: a broker, a web port and streams in memory
- ``faults``: faults by name, at every step, and a bad network
- ``injection``: the places where faults enter
- ``checks``: records of a run and its invariants
- ``threaded``: a server in a thread, for tests without a Trio loop
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tangram.testing.checks.invariants import INVARIANTS, Evidence, InvariantBroken, check
    from tangram.testing.checks.message_log import KeptMessage
    from tangram.testing.checks.sometimes import SUPERVISION, Reached, collecting, sometimes
    from tangram.testing.conformance import check_plugin
    from tangram.testing.fakes.memory_broker import MemoryBroker
    from tangram.testing.fakes.ports import free_port
    from tangram.testing.faults.catalogue import FAULTS, Chaos
    from tangram.testing.faults.proxy import Proxy, open_proxy
    from tangram.testing.faults.steps import StepFailed, StepReport, every_step, run_every_step
    from tangram.testing.injection.child_faults import FaultPorts, InjectedFault, NothingToStrike
    from tangram.testing.run.brokers import RealBroker, open_broker
    from tangram.testing.run.process import Home, RunningProcess, open_process, run_process
    from tangram.testing.run.server import RunningTangram, TangramEnded, open_tangram
    from tangram.testing.run.supervised import Supervised, open_supervised
    from tangram.testing.run.transport import (
        FakeBus,
        RunningEngine,
        RunningTransport,
        open_engine,
        open_transport,
    )

__all__ = [
    "FAULTS",
    "INVARIANTS",
    "SUPERVISION",
    "Chaos",
    "Evidence",
    "FakeBus",
    "FaultPorts",
    "Home",
    "InjectedFault",
    "InvariantBroken",
    "KeptMessage",
    "MemoryBroker",
    "NothingToStrike",
    "Proxy",
    "Reached",
    "RealBroker",
    "RunningEngine",
    "RunningProcess",
    "RunningTangram",
    "RunningTransport",
    "StepFailed",
    "StepReport",
    "Supervised",
    "TangramEnded",
    "chaos",
    "check",
    "check_plugin",
    "collecting",
    "every_step",
    "free_port",
    "open_broker",
    "open_engine",
    "open_process",
    "open_proxy",
    "open_supervised",
    "open_tangram",
    "open_transport",
    "run_every_step",
    "run_process",
    "sometimes",
]

_MODULES: Final = {
    "run.brokers": ("RealBroker", "open_broker"),
    "faults.catalogue": ("FAULTS", "Chaos"),
    "injection.child_faults": ("FaultPorts", "InjectedFault", "NothingToStrike"),
    "conformance": ("check_plugin",),
    "faults.proxy": ("Proxy", "open_proxy"),
    "checks.invariants": ("INVARIANTS", "Evidence", "InvariantBroken", "check"),
    "checks.message_log": ("KeptMessage",),
    "fakes.memory_broker": ("MemoryBroker",),
    "fakes.ports": ("free_port",),
    "run.process": ("Home", "RunningProcess", "open_process", "run_process"),
    "checks.sometimes": ("SUPERVISION", "Reached", "collecting", "sometimes"),
    "run.server": ("RunningTangram", "TangramEnded", "open_tangram"),
    "faults.steps": ("StepFailed", "StepReport", "every_step", "run_every_step"),
    "run.supervised": ("Supervised", "open_supervised"),
    "run.transport": ("FakeBus", "RunningEngine", "RunningTransport", "open_engine", "open_transport"),
}
_HOME: Final = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import a name on first use: pytest loads this package in every project."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def chaos(*faults: str, **settings: Any) -> Any:
    """Mark a test with faults that strike the fixture ``tangram`` meanwhile.

    ``@chaos("broker_kill", "crash_web")`` strikes these two, one after another.

    Args:
        faults: names of `FAULTS`.
        settings: as for `Chaos`.
    """
    import pytest

    return pytest.mark.chaos(*faults, **settings)
