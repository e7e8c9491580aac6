"""``POST /settings/validate/{plugin}``: is what somebody edited in the settings page acceptable?

A verdict is always status 200. Keys are places, joined by dots; values say what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tangram.config.names import normalise
from tangram.config.structure import structure_plugin_config
from tangram.errors import PluginConfigError
from tangram.plugins.registry import LoadedPlugin
from tangram.web.manifest import FrontendConfig

__all__ = ["CORE", "verdict"]

CORE = "tangram_core"
"""What the settings page calls the server itself."""

_INDEX = re.compile(r"\[(\d+)\]")


def verdict(name: str, values: Mapping[str, Any], plugins: Iterable[LoadedPlugin]) -> dict[str, Any] | None:
    """``{"success", "errors"}``, or ``None`` where no such plugin runs."""
    key = normalise(name)
    if key == CORE:
        return _check(FrontendConfig, values, key)
    named = [loaded for loaded in plugins if loaded.key == key]
    if not named:
        return None
    classes = [
        one.plugin.frontend_config_class for one in named if one.plugin.frontend_config_class is not None
    ]
    # Nothing is promised of values that nobody reads.
    return _check(classes[0], values, key) if classes else {"success": True, "errors": {}}


def _check(cls: type[Any], values: Mapping[str, Any], key: str) -> dict[str, Any]:
    try:
        structure_plugin_config(cls, values, plugin=key)
    except PluginConfigError as error:
        prefix = f"plugins.{key}"
        errors: dict[str, str] = {}
        for fault in error.faults:
            place = _INDEX.sub(r".\1", fault.path.removeprefix(prefix).lstrip("."))
            errors.setdefault(place, fault.what)
        return {"success": False, "errors": errors}
    return {"success": True, "errors": {}}
