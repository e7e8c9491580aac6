"""What is served at ``/``: our page, a folder of the operator's, or the shell that an installed wheel
carries.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import structlog

from tangram.web.files import Folder
from tangram.web.validate import CORE

__all__ = ["PAGES", "shell_folder"]

log = structlog.get_logger("tangram.web")

PAGES = Path(__file__).with_name("pages")
"""Our own page."""


def shell_folder(frontend: str | None) -> Folder | None:
    """The folder whose files appear at the root, or ``None`` for our own page."""
    if frontend is None:
        return None
    folder = _installed_shell() if frontend == CORE else Path(frontend)
    if folder is None or not (folder / "index.html").is_file():
        log.warning("there is no page where [server] frontend points, ours is shown", frontend=frontend)
        return None
    return Folder(folder)


def _installed_shell() -> Path | None:
    """Found in the list of the wheel's files, without importing anything of it."""
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
