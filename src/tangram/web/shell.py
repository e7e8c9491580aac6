"""The front end at ``/``, chosen by ``[server] frontend``.

It is the built-in start page, a folder of the operator, or the shell of an installed ``tangram_core`` wheel.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

import structlog

from tangram.web.files import StaticFolder
from tangram.web.settings_validation import CORE

__all__ = ["PAGES", "shell_folder"]

log = structlog.get_logger("tangram.web")

PAGES: Final = Path(__file__).with_name("pages")
"""The folder of the built-in start page."""


def shell_folder(frontend: str | None) -> StaticFolder | None:
    """Return the folder whose files appear at ``/``, or ``None`` for the built-in start page.

    Args:
        frontend: A path, ``tangram_core`` for the installed shell, or ``None``.
    """
    if frontend is None:
        return None
    folder = _installed_shell() if frontend == CORE else Path(frontend)
    if folder is None or not (folder / "index.html").is_file():
        log.warning(
            "no index.html where [server] frontend points, the built-in page is shown", frontend=frontend
        )
        return None
    return StaticFolder(folder)


def _installed_shell() -> Path | None:
    """Find the shell in the file list of the wheel, without importing its package."""
    try:
        files = distribution(CORE).files or []
    except PackageNotFoundError:
        return None
    pages = sorted((file for file in files if file.name == "index.html"), key=lambda file: len(file.parts))
    beside = {file.parent for file in files if file.name == "core.js"}
    for page in pages:
        if page.parent in beside:
            return Path(str(page.locate())).parent.resolve()
    return Path(str(pages[0].locate())).parent.resolve() if pages else None
