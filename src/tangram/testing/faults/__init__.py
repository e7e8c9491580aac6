"""Faults by name, at every step of a scenario, and by a proxy for a bad network."""

from typing import Final

from tangram.testing.deprecated import moved_names

_NAMES: Final = ("Charge", "FaultPorts", "InjectedFault", "NothingToStrike", "StruckAlready")

__getattr__ = moved_names(__name__, dict.fromkeys(_NAMES, "injection.child_faults"))
