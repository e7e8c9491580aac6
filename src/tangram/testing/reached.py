"""Deprecated: the names of this module are in `tangram.testing.checks.sometimes`."""

from tangram.testing.deprecated import moved_names

_NAMES = ("SUPERVISION", "Reached", "collecting", "observe", "sometimes")

__getattr__ = moved_names(__name__, dict.fromkeys(_NAMES, "checks.sometimes"))
