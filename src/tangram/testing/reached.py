"""Deprecated: `tangram.testing.checks.sometimes`, and `tangram.testing` for the names that it exports."""

from tangram.testing.deprecated import moved_names

_NAMES = ("SUPERVISION", "Reached", "collecting", "observe", "sometimes")

__getattr__ = moved_names(__name__, dict.fromkeys(_NAMES, "checks.sometimes"))
