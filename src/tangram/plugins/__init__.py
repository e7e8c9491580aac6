"""Declare plugins, find and load the installed ones, and run each of them."""

from tangram.plugins.plugin import Plugin
from tangram.plugins.state import BackendState, StateKey

__all__ = ["BackendState", "Plugin", "StateKey"]
