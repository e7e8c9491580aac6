"""Front ends of plugins: folders below ``/plugins/`` and their ``plugin.json``.

A front end is served at ``/plugins/<key>/``. Its key is the name of its distribution, normalised with
underscores. Other spellings of the name lead to the same folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import msgspec
import structlog

from tangram.asgi import Receive, Scope, Send
from tangram.config.names import normalise
from tangram.plugins.frontend import resolve_frontend
from tangram.plugins.registry import LoadedPlugin
from tangram.web.files import StaticFolder

__all__ = ["PREFIX", "Frontend", "Frontends", "find_frontends"]

log = structlog.get_logger("tangram.web")

PREFIX: Final = "/plugins/"


@attrs.frozen(eq=False)
class Frontend:
    """The front end of one plugin."""

    loaded: LoadedPlugin
    folder: StaticFolder
    described: Mapping[str, Any] | None
    """The content of ``plugin.json``; ``None`` keeps it out of the manifest: missing or malformed."""


class Frontends:
    """The front ends of all plugins, by key."""

    def __init__(self, found: Iterable[Frontend]) -> None:
        self._by_key: dict[str, Frontend] = {}
        for frontend in found:
            # Plugins of one distribution share its key: the first one that has a front end gets it.
            self._by_key.setdefault(frontend.loaded.key, frontend)

    def __iter__(self) -> Any:
        return iter(self._by_key.values())

    async def serve(self, path: str, scope: Scope, receive: Receive, send: Send) -> bool:
        """Send a file below ``/plugins/``; return ``False`` where there is none."""
        key, _, relative = path.removeprefix(PREFIX).partition("/")
        frontend = self._by_key.get(normalise(key)) if key and relative else None
        return frontend is not None and await frontend.folder.serve(relative, scope, receive, send)


def find_frontends(plugins: Iterable[LoadedPlugin]) -> Frontends:
    """Find the front ends of ``plugins`` on the disk, and read each ``plugin.json``."""
    found = []
    for loaded in plugins:
        folder = resolve_frontend(loaded)
        if folder is not None:
            found.append(Frontend(loaded, StaticFolder(folder), _described(loaded, folder)))
    return Frontends(found)


def _described(loaded: LoadedPlugin, folder: Path) -> Mapping[str, Any] | None:
    file = folder / "plugin.json"
    try:
        described = msgspec.json.decode(file.read_bytes())
    except FileNotFoundError:
        log.warning("front end left out of the manifest: no plugin.json", plugin=loaded.name, file=str(file))
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        log.warning(
            "front end left out of the manifest: plugin.json unreadable",
            plugin=loaded.name,
            file=str(file),
            cause=repr(error),
        )
        return None
    if not isinstance(described, dict) or not isinstance(described.get("main"), str):
        log.warning(
            "front end left out of the manifest: plugin.json has no 'main'",
            plugin=loaded.name,
            file=str(file),
        )
        return None
    return described
