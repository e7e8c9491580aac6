"""``POST /settings/validate/{plugin}``: is what somebody edited in the settings page acceptable?

A verdict is always status 200. Keys are places, joined by dots; values say what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tangram.config.names import normalise
from tangram.plugins.registry import LoadedPlugin
from tangram.routing.convert import problems_of, structurer
from tangram.web.manifest import FrontendConfig

__all__ = ["CORE", "verdict"]

CORE = "tangram_core"
"""What the settings page calls the server itself."""


def verdict(name: str, values: Mapping[str, Any], plugins: Iterable[LoadedPlugin]) -> dict[str, Any] | None:
    """``{"success", "errors"}``, or ``None`` where no such plugin runs."""
    key = normalise(name)
    if key == CORE:
        return _check(FrontendConfig, values)
    named = [loaded for loaded in plugins if loaded.key == key]
    if not named:
        return None
    declared = [one.plugin for one in named if one.plugin.frontend_config_class is not None]
    # Nothing is promised of values that nobody reads.
    errors = declared[0].frontend_problems(values) if declared else {}
    return {"success": not errors, "errors": errors}


def _check(cls: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    errors: dict[str, str] = {}
    try:
        structurer(cls)(values)
    except Exception as error:  # noqa: BLE001  # the author's class and validators: anything may come
        for problem in problems_of(error, ()):
            errors.setdefault(".".join(map(str, problem.loc)), problem.msg)
    return {"success": not errors, "errors": errors}
