"""Faults by name: what is done to a running server, whether it should count as a crash, and where it works.

``await Chaos(tangram).strike("broker_kill")``, or ``@chaos("broker_kill", "crash_web")`` over a test.
`strike` returns when the fault is over and the server is at rest again. Each fault also checks what is
promised of it, and raises `AssertionError` where that was not kept.
"""

from tangram.testing.catalogue import broker, browser, machine, network, plugin, process
from tangram.testing.catalogue.base import FAULTS, Chaos, Fault, Struck

__all__ = [
    "FAULTS",
    "Chaos",
    "Fault",
    "Struck",
    "broker",
    "browser",
    "machine",
    "network",
    "plugin",
    "process",
]
