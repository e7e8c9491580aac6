"""The module ``tangram_core``: the public names of the published server."""

from __future__ import annotations

from tangram.compat import configuration as config  # noqa: F401 - a public name
from tangram.compat.configuration import Config
from tangram.compat.core import backend as backend
from tangram.compat.core import plugin as plugin
from tangram.compat.core.backend import InjectBackendState
from tangram.compat.plugin import Plugin
from tangram.compat.state import BackendState

__all__ = [
    "BackendState",
    "Config",
    "InjectBackendState",
    "Plugin",
    "Runtime",
]


def __getattr__(name: str) -> object:
    if name != "Runtime":
        raise AttributeError(f"module 'tangram_core' has no attribute {name!r}")
    from tangram.compat.runtime import Runtime

    return Runtime
