"""The module ``tangram_core.plugin``: the class, and its loading from entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from tangram.compat.plugin import Plugin

__all__ = ["Plugin", "load_plugin", "scan_plugins"]


def scan_plugins() -> list[EntryPoint]:
    """Return the installed entry points of existing plugins, without importing them."""
    return list(entry_points(group="tangram_core.plugins"))


def load_plugin(entry_point: EntryPoint) -> Plugin | None:
    """Return the plugin of an entry point, or log an error and return ``None``."""
    from tangram.compat.installed import load_one

    return load_one(entry_point)
