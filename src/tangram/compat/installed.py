"""Lookup of installed plugins for the helper functions of ``tangram_core``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from typing import cast

import structlog

from tangram.compat.names import answer_imports
from tangram.compat.plugin import Plugin
from tangram.plugins.frontend import resolve_frontend
from tangram.plugins.registry import LoadedPlugin, load_plugins

__all__ = ["distribution_path", "frontend_of", "load_enabled", "load_one"]

log = structlog.get_logger("tangram.compat")

_known: dict[int, LoadedPlugin] = {}
"""Loaded plugins by the identity of their ``Plugin``, which lives as long as the process."""


def load_enabled(names: Sequence[str]) -> list[Plugin]:
    """Import the named plugins; plugins that cannot be loaded are logged and left out."""
    loaded = load_plugins(names, on_foreign=answer_imports)
    for failure in loaded.failures:
        log.error("plugin not loaded", plugin=failure.name, cause=str(failure.error))
    _known.update({id(one.plugin): one for one in loaded.plugins})
    return [cast("Plugin", one.plugin) for one in loaded.plugins]


def load_one(point: EntryPoint) -> Plugin | None:
    """Return the plugin of an entry point, or log an error and return ``None``."""
    loaded = load_plugins([point.name], entry_points=[point], on_foreign=answer_imports)
    for failure in loaded.failures:
        log.error("a plugin cannot be loaded", plugin=failure.name, cause=str(failure.error))
    _known.update({id(one.plugin): one for one in loaded.plugins})
    return cast("Plugin", loaded.plugins[0].plugin) if loaded.plugins else None


def frontend_of(plugin: Plugin) -> Path | None:
    """Return the folder of a plugin's front end."""
    known = _known.get(id(plugin))
    return None if known is None else resolve_frontend(known)


def distribution_path(distribution: Distribution) -> Path:
    """Return the project's root of an editable install, else the folder of the import package."""
    points = list(distribution.entry_points.select(group="tangram_core.plugins"))
    if not points:
        return Path(str(distribution.locate_file("")))
    loaded = load_plugins([points[0].name], entry_points=[points[0]], on_foreign=answer_imports)
    if not loaded.plugins:
        raise loaded.failures[0].error
    one = loaded.plugins[0]
    return one.project_root or one.package_path or Path(str(distribution.locate_file("")))
