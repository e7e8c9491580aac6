"""Deprecated: `tangram.testing.faults.proxy`, and `tangram.testing.open_proxy`."""

from tangram.testing.deprecated import moved_names

__getattr__ = moved_names(__name__, dict.fromkeys(("Proxy", "open_proxy"), "faults.proxy"))
