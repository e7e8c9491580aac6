"""Validation of edited settings: ``POST /settings/validate/{plugin}``.

The HTTP status is always 200. ``errors`` maps places, joined by dots, to error messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from tangram.config.names import normalise
from tangram.plugins.registry import LoadedPlugin
from tangram.routing.convert import problems_of, structurer
from tangram.web.manifest import FrontendConfig

__all__ = ["CORE", "validate_settings"]

CORE: Final = "tangram_core"
"""The name under which the settings page asks about the server itself."""


def validate_settings(
    name: str, values: Mapping[str, Any], plugins: Iterable[LoadedPlugin]
) -> dict[str, Any] | None:
    """Return ``{"success", "errors"}`` for edited settings; ``None`` for unknown plugins.

    Args:
        name: The distribution of the plugin, or ``tangram_core``.
        values: The settings after the edit.
        plugins: All plugins that run.
    """
    key = normalise(name)
    if key == CORE:
        return _validate(FrontendConfig, values)
    named = [loaded for loaded in plugins if loaded.key == key]
    if not named:
        return None
    declared = [one.plugin for one in named if one.plugin.frontend_config_class is not None]
    # A plugin without a declared class accepts any values, because it does not read them.
    errors = declared[0].frontend_problems(values) if declared else {}
    return {"success": not errors, "errors": errors}


def _validate(cls: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    errors: dict[str, str] = {}
    try:
        structurer(cls)(values)
    except Exception as error:  # noqa: BLE001 - validators of the class may raise anything
        for problem in problems_of(error, ()):
            errors.setdefault(".".join(map(str, problem.loc)), problem.msg)
    return {"success": not errors, "errors": errors}
