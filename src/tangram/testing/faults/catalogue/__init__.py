"""All faults by name, and `Chaos`, which injects them into a running server.

``await Chaos(tangram).strike("broker_kill")``, or ``@chaos("broker_kill", "crash_web")`` over a test.
`Chaos.strike` returns when the fault is over and the server is at rest again. Each fault also checks
its own promise and raises `AssertionError` where it was not kept.
"""

from difflib import get_close_matches

from tangram.testing.faults.catalogue import broker, browser, machine, network, plugin, process
from tangram.testing.faults.catalogue.base import FAULTS, Chaos, InjectableFault, Struck

__all__ = [
    "FAULTS",
    "Chaos",
    "InjectableFault",
    "Struck",
    "broker",
    "browser",
    "machine",
    "network",
    "no_such_fault",
    "plugin",
    "process",
]


def no_such_fault(name: str) -> str:
    """Return the error message for an unknown fault name, with the nearest known one."""
    near = get_close_matches(name, FAULTS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"there is no fault {name!r}{hint}; expected some of {', '.join(sorted(FAULTS))}"
