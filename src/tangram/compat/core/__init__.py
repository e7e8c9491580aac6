"""What ``import tangram_core`` gives in our process: the public names of the published server."""

from __future__ import annotations

from importlib import import_module

from tangram.compat.core import backend as backend
from tangram.compat.core import config as config
from tangram.compat.core import plugin as plugin
from tangram.compat.core.backend import InjectBackendState
from tangram.compat.core.config import Config
from tangram.compat.plugin import Plugin
from tangram.compat.state import BackendState

__all__ = [  # noqa: RUF022, PLE0604 - Runtime is found when it is asked for
    "BackendState",
    "Config",
    "InjectBackendState",
    "Plugin",
    "Runtime",  # noqa: F822
]


def __getattr__(name: str) -> object:
    if name != "Runtime":
        raise AttributeError(f"module 'tangram_core' has no attribute {name!r}")
    # A whole server: made of rooms above this one, so it is named here, and imported by programs alone.
    return import_module("tangram.app.runtime").Runtime
