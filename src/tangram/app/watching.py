"""``serve --reload``: watch plugins and the configuration, and reload changed ones.

1. A change of a plugin's Python files imports that plugin again, and only that one restarts. If the code is
   broken, the plugin runs on as it is.
2. A change of the configuration, or of a plugin that could not be loaded, reloads everything as SIGHUP does.
3. Other files of a plugin are read at each request. Pages are told to load themselves again.
4. Pages hear of each change on the topic `TOPIC`: ``reload`` with ``plugin`` and ``error``, which is None if
   the change is in force.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import attrs
import structlog
import trio

from tangram.app.tree import Tree
from tangram.errors import BrokerUnavailable, PluginError, SupervisionError
from tangram.routing.responses import encode_json

__all__ = ["CHANNEL", "TOPIC", "Changes", "sort_changes", "watch"]

log = structlog.get_logger("tangram.app")

TOPIC: Final = "tangram:dev"
CHANNEL: Final = f"to:{TOPIC}:reload"
QUIET_MS: Final = 50
"""Milliseconds of quiet before a change counts: editors write a file in several steps."""
MOST_MS: Final = 500
"""Milliseconds after which a change counts although more changes follow."""
RETRY_SECONDS: Final = 1.0
LOOK_MS: Final = 200
"""Milliseconds for which the thread that watches cannot be cancelled."""


class Watched(Protocol):
    """The server that is watched."""

    tree: Tree | None

    async def reload(self) -> None:
        """Read the configuration again, and restart."""

    async def reload_plugin(self, name: str) -> None:
        """Import a plugin again, and restart it."""


@attrs.frozen
class Changes:
    """The meaning of changed files."""

    everything: bool
    """The configuration, or a plugin that is not loaded."""
    code: tuple[str, ...]
    """The plugins whose Python files have changed."""
    files: tuple[str, ...]
    """The plugins of which only other files have changed."""


def sort_changes(tree: Tree, changed: Iterable[str]) -> Changes:
    """Decide which parts changed files belong to; files of Python's cache belong to none."""
    paths = [path for path in changed if "__pycache__" not in path and not path.endswith(("~", ".swp"))]
    owned = [(path, tree.plugins.owner_of(path)) for path in paths]
    code = {owner for path, owner in owned if owner is not None and path.endswith(".py")}
    files = {owner for path, owner in owned if owner is not None} - code
    foreign = [Path(path) for path, owner in owned if owner is None]
    sources = [source for one in tree.plugins.failures if (source := one.source) is not None]
    own = tree.config.source
    everything = any(
        path == own or any(path.is_relative_to(source) for source in sources) for path in foreign
    )
    return Changes(everything, tuple(sorted(code)), tuple(sorted(files)))


def watched_paths(tree: Tree) -> Iterator[Path]:
    """Yield the folders to watch: editors replace files."""
    loaded = [one.source for one in tree.plugins.plugins]
    for path in (tree.config.source, *loaded, *(one.source for one in tree.plugins.failures)):
        if path is not None:
            yield path if path.is_dir() else path.parent


async def watch(server: Watched) -> None:
    """Reload changed parts until cancelled."""
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it logs a line for each change
    while True:
        assert server.tree is not None
        paths = sorted({path for path in watched_paths(server.tree) if path.is_dir()})
        log.info("watching for changes", folders=[str(path) for path in paths])
        try:
            await _watch_folders(server, paths)
        except OSError as error:
            # A folder may vanish, for example while git checks out another branch.
            log.warning("watching begins anew", cause=str(error))
            await trio.sleep(RETRY_SECONDS)


async def _watch_folders(server: Watched, paths: Sequence[Path]) -> None:
    """Obey changes until other folders may have to be watched."""
    from watchfiles import awatch

    assert server.tree is not None
    async for changed in awatch(*paths, debounce=MOST_MS, step=QUIET_MS, rust_timeout=LOOK_MS):
        changes = sort_changes(server.tree, {path for _kind, path in changed})
        await _obey(server, changes)
        if changes.everything:
            return


async def _obey(server: Watched, changes: Changes) -> None:
    if changes.everything:
        await server.reload()
        await _publish(server, None, None)
        return
    for name in changes.code:
        await _publish(server, name, await _reload(server, name))
    for name in changes.files:
        await _publish(server, name, None)


async def _reload(server: Watched, plugin: str) -> str | None:
    """Reload one plugin; return the reason if its new code does not run."""
    try:
        await server.reload_plugin(plugin)
    except PluginError as error:
        log.error("plugin not reloaded: it runs on as it is", plugin=plugin, cause=str(error))  # noqa: TRY400 - the author's mistake needs no traceback of ours
        return str(error)
    except SupervisionError as error:
        return str(error)  # the supervisor has logged the crash of its start
    return None


async def _publish(server: Watched, plugin: str | None, error: str | None) -> None:
    assert server.tree is not None
    try:
        await server.tree.incarnation.publish(CHANNEL, encode_json({"plugin": plugin, "error": error}))
    except BrokerUnavailable:
        log.debug("change not published", plugin=plugin)
