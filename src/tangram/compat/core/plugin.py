"""What ``tangram_core.plugin`` gives: the class, and the way from entry points to it."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from tangram.compat.plugin import Plugin

__all__ = ["Plugin", "load_plugin", "scan_plugins"]


def scan_plugins() -> list[EntryPoint]:
    """The installed entry points of the published server's group; imports none of them."""
    return list(entry_points(group="tangram_core.plugins"))


def load_plugin(entry_point: EntryPoint) -> Plugin | None:
    """The plugin behind an entry point; ``None``, and a line in the log, where there is none."""
    from tangram.compat.installed import load_one

    return load_one(entry_point)
