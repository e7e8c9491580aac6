"""Faults: by name for a running server, at every step of a scenario, and a proxy for a bad network."""

from tangram.testing.deprecated import moved_names

_NAMES = ("Charge", "FaultPorts", "InjectedFault", "NothingToStrike", "StruckAlready")

__getattr__ = moved_names(__name__, dict.fromkeys(_NAMES, "injection.child_faults"))
