"""Where a plugin's built front end lies on the disk. A folder that is missing costs the front end alone."""

from __future__ import annotations

from pathlib import Path

import structlog

from tangram.plugins.registry import LoadedPlugin

__all__ = ["resolve_frontend"]

log = structlog.get_logger("tangram.plugins")


def resolve_frontend(loaded: LoadedPlugin) -> Path | None:
    """The folder of its front end; ``None`` without one, and, with a warning, where the folder is missing.

    Relative to the project's root in an editable install, to the import package in a wheel. Either may hold it
    in the other's place (a project that keeps its build inside the package), so both are looked at, in that order.
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
