"""A plugin's front end: where it lies on the disk, and what of its configuration the settings page may edit.

A folder that is missing costs the front end alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import attrs
import structlog

from tangram.plugins.registry import LoadedPlugin

__all__ = ["FrontendMutable", "resolve_frontend"]

log = structlog.get_logger("tangram.plugins")


@attrs.frozen
class FrontendMutable:
    """Marks a field of a ``frontend_config_class`` for the settings page: ``Annotated[int,
    FrontendMutable()]``.
    """

    kind: Literal["color"] | None = None
    """What the page draws for it; ``None``: by its type."""
    widget: str | None = None
    """Fields of one widget are drawn together, by a control of that name."""

    @property
    def json_schema_extra(self) -> dict[str, Any]:
        """What stands in the field's JSON Schema."""
        extra: dict[str, Any] = {"tangram_mutable": True}
        if self.kind is not None:
            extra["tangram_kind"] = self.kind
        if self.widget is not None:
            extra["tangram_widget"] = self.widget
        return extra


def resolve_frontend(loaded: LoadedPlugin) -> Path | None:
    """The folder of its front end; ``None`` without one, and, with a warning, where the folder is missing.

    Relative to the project's root in an editable install, to the import package in a wheel. Either may hold
    it in the other's place (a project that keeps its build inside the package), so both are looked at, in
    that order.
    """
    wanted = loaded.plugin.frontend_path
    if not wanted:
        return None
    bases = [base for base in (loaded.project_root, loaded.package_path) if base is not None]
    for base in bases:
        folder = (base / wanted).resolve()
        if folder.is_dir():
            return folder
    log.warning(
        "a plugin's front end is missing, it runs without",
        plugin=loaded.name,
        frontend_path=wanted,
        looked_in=[str(base) for base in bases],
    )
    return None
