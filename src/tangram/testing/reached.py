"""Deprecated: the names of this module are in `tangram.testing.checks.sometimes`."""

from typing import Final

from tangram.testing.deprecated import moved_names

_NAMES: Final = ("SUPERVISION", "Reached", "collecting", "observe", "sometimes")

__getattr__ = moved_names(__name__, dict.fromkeys(_NAMES, "checks.sometimes"))
