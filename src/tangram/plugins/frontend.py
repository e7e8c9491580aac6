"""Find the folder of a plugin's front end, and mark the fields of its settings page.

A plugin whose front-end folder is missing runs without a front end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import attrs
import structlog

from tangram.plugins.registry import LoadedPlugin

__all__ = ["FrontendMutable", "resolve_console", "resolve_frontend"]

log = structlog.get_logger("tangram.plugins")


@attrs.frozen
class FrontendMutable:
    """Mark a field of a ``frontend_config_class`` as editable on the settings page.

    Example::

        trail_minutes: Annotated[int, FrontendMutable()] = 10
    """

    kind: Literal["color"] | None = None
    """The control that the page shows; ``None`` selects it by the field's type."""
    widget: str | None = None
    """The name of a control that edits all fields with this name together."""

    @property
    def json_schema_extra(self) -> dict[str, Any]:
        """The keys that the marker adds to the field's JSON Schema."""
        extra: dict[str, Any] = {"tangram_mutable": True}
        if self.kind is not None:
            extra["tangram_kind"] = self.kind
        if self.widget is not None:
            extra["tangram_widget"] = self.widget
        return extra


def resolve_frontend(loaded: LoadedPlugin) -> Path | None:
    """Return the folder of the plugin's front end, or None if there is none.

    ``frontend_path`` is relative to the project's root in an editable install, and to the import package in a
    wheel. Some projects keep the build inside the package in both cases, so both places are tried in that
    order. A missing folder is logged as a warning.
    """
    return _find_folder(loaded, loaded.plugin.frontend_path)


def resolve_console(loaded: LoadedPlugin) -> Path | None:
    """Return the folder of the plugin's page in the console, or None if there is none.

    It is found as that of the front end.
    """
    wanted = loaded.plugin.console
    return None if wanted is None or wanted.startswith("/") else _find_folder(loaded, wanted)


def _find_folder(loaded: LoadedPlugin, wanted: str | None) -> Path | None:
    if not wanted:
        return None
    bases = [base for base in (loaded.project_root, loaded.package_path) if base is not None]
    for base in bases:
        folder = (base / wanted).resolve()
        if folder.is_dir():
            return folder
    if not bases:
        return None  # a plugin object without an installation, in a test
    log.warning(
        "plugin front end missing",
        plugin=loaded.name,
        folder=wanted,
        looked_in=[str(base) for base in bases],
    )
    return None
