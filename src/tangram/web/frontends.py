"""Plugins' front ends: folders at ``/plugins/<distribution>/``, and what of them the manifest names.

The key is the distribution's name, normalised with underscores; other spellings of it lead to the same
folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import msgspec
import structlog

from tangram.asgi import Receive, Scope, Send
from tangram.config.names import normalise
from tangram.plugins.frontend import resolve_frontend
from tangram.plugins.registry import LoadedPlugin
from tangram.web.files import Folder

__all__ = ["PREFIX", "Frontend", "Frontends", "find_frontends"]

log = structlog.get_logger("tangram.web")

PREFIX = "/plugins/"


@attrs.frozen(eq=False)
class Frontend:
    """One plugin's front end."""

    loaded: LoadedPlugin
    folder: Folder
    described: Mapping[str, Any] | None
    """The content of its ``plugin.json``; ``None``: it has none, or a bad one, and is not in the manifest."""


class Frontends:
    """All of them, by key."""

    def __init__(self, found: Iterable[Frontend]) -> None:
        self._by_key: dict[str, Frontend] = {}
        for frontend in found:
            # The plugins of one distribution share its name: the first with a front end has it.
            self._by_key.setdefault(frontend.loaded.key, frontend)

    def __iter__(self) -> Any:
        return iter(self._by_key.values())

    async def serve(self, path: str, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer what lies below ``/plugins/``; ``False`` where nothing does."""
        key, _, relative = path.removeprefix(PREFIX).partition("/")
        frontend = self._by_key.get(normalise(key)) if key and relative else None
        return frontend is not None and await frontend.folder.serve(relative, scope, receive, send)


def find_frontends(plugins: Iterable[LoadedPlugin]) -> Frontends:
    """Look for them on the disk: once an incarnation."""
    found = []
    for loaded in plugins:
        folder = resolve_frontend(loaded)
        if folder is not None:
            found.append(Frontend(loaded, Folder(folder), _described(loaded, folder)))
    return Frontends(found)


def _described(loaded: LoadedPlugin, folder: Path) -> Mapping[str, Any] | None:
    file = folder / "plugin.json"
    try:
        described = msgspec.json.decode(file.read_bytes())
    except FileNotFoundError:
        log.warning(
            "a front end has no plugin.json and is not in the manifest", plugin=loaded.name, file=str(file)
        )
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        log.warning(
            "a front end's plugin.json cannot be read", plugin=loaded.name, file=str(file), cause=repr(error)
        )
        return None
    if not isinstance(described, dict) or not isinstance(described.get("main"), str):
        log.warning("a front end's plugin.json is no object with 'main'", plugin=loaded.name, file=str(file))
        return None
    return described
