"""What a plugin is, how it is found and loaded, and how its life is hosted."""

from tangram.plugins.plugin import Plugin
from tangram.plugins.state import BackendState

__all__ = ["BackendState", "Plugin"]
