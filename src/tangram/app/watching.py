"""``serve --reload``: watch plugins and the configuration, and reload changed ones.

1. A change of a plugin's Python files imports that plugin again, and only that one restarts. If the code is
   broken, the plugin runs on as it is.
2. A change of the configuration, or of a plugin that could not be loaded, reloads everything as SIGHUP does.
3. Other files of a plugin are read at each request. Pages are told to load themselves again.
4. A compiled module, and the server's own code where it is installed editable, need a new process. It takes
   over the sockets, so that no connection is refused. Own code that cannot be imported changes nothing.
5. Pages hear of each change on the topic `TOPIC`: ``reload`` with ``plugin`` and ``error``, which is None if
   the change is in force.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Final, Protocol

import attrs
import structlog
import trio

import tangram
from tangram.app.tree import Tree
from tangram.errors import BrokerUnavailable, CompiledModule, PluginError, SupervisionError
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
IMPORT_SECONDS: Final = 30.0
IMPORT: Final = "import tangram.app, tangram.cli.main"
PACKAGE: Final = Path(tangram.__file__).parent
"""The server's own code."""
COMPILED: Final = tuple(EXTENSION_SUFFIXES)
FOREIGN_FOLDERS: Final = frozenset({"site-packages", "dist-packages"})
"""Folders of installed packages, which are not edited."""
LOOK_MS: Final = 200
"""Milliseconds for which the thread that watches cannot be cancelled."""


class Watched(Protocol):
    """The server that is watched."""

    tree: Tree | None

    async def reload(self) -> None:
        """Read the configuration again, and restart."""

    async def reload_plugin(self, name: str) -> None:
        """Import a plugin again, and restart it."""

    def renew(self) -> None:
        """Stop, and serve on in a new process with the same sockets."""


@attrs.frozen
class Changes:
    """The meaning of changed files."""

    everything: bool
    """The configuration, or a plugin that is not loaded."""
    code: tuple[str, ...]
    """The plugins whose Python files have changed."""
    files: tuple[str, ...]
    """The plugins of which only other files have changed."""
    compiled: tuple[str, ...] = ()
    """The plugins with changed compiled modules, which only a new process can import."""
    own: bool = False
    """Whether the server's own code has changed."""


def sort_changes(tree: Tree, changed: Iterable[str]) -> Changes:
    """Decide which parts changed files belong to; files of Python's cache belong to none."""
    paths = [path for path in changed if "__pycache__" not in path and not path.endswith(("~", ".swp"))]
    owned = [(path, tree.plugins.owner_of(path)) for path in paths]
    code = {owner for path, owner in owned if owner is not None and path.endswith(".py")}
    files = {owner for path, owner in owned if owner is not None} - code
    foreign = [Path(path) for path, owner in owned if owner is None]
    sources = [source for one in tree.plugins.failures if (source := one.source) is not None]
    everything = any(
        path == tree.config.source or any(path.is_relative_to(source) for source in sources)
        for path in foreign
    )
    compiled = {owner for path, owner in owned if owner is not None and path.endswith(COMPILED)}
    own = any(path.is_relative_to(PACKAGE) and path.suffix == ".py" for path in foreign)
    return Changes(
        everything, tuple(sorted(code)), tuple(sorted(files - compiled)), tuple(sorted(compiled)), own
    )


def watched_paths(tree: Tree) -> Iterator[Path]:
    """Yield the folders to watch: editors replace files."""
    if not FOREIGN_FOLDERS & set(PACKAGE.parts):
        yield PACKAGE
    loaded = [one.source for one in tree.plugins.plugins]
    for path in (tree.config.source, *loaded, *(one.source for one in tree.plugins.failures)):
        if path is not None:
            yield path if path.is_dir() else path.parent


async def watch(server: Watched) -> None:
    """Reload changed parts until cancelled, or until a new process takes over."""
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it logs a line for each change
    while True:
        assert server.tree is not None
        paths = sorted({path for path in watched_paths(server.tree) if path.is_dir()})
        log.info("watching for changes", folders=[str(path) for path in paths])
        try:
            if await _watch_folders(server, paths):
                return
        except OSError as error:
            # A folder may vanish, for example while git checks out another branch.
            log.warning("watching begins anew", cause=str(error))
            await trio.sleep(RETRY_SECONDS)


async def _watch_folders(server: Watched, paths: Sequence[Path]) -> bool:
    """Obey changes until a new process takes over (True), or other folders are to be watched."""
    from watchfiles import awatch

    assert server.tree is not None
    async for changed in awatch(*paths, debounce=MOST_MS, step=QUIET_MS, rust_timeout=LOOK_MS):
        changes = sort_changes(server.tree, {path for _kind, path in changed})
        if await _obey(server, changes):
            return True
        if changes.everything:
            return False
    return False  # it ends only with the thread that watches


async def _obey(server: Watched, changes: Changes) -> bool:
    """Put changes in force, and return whether the server stops in favour of a new process."""
    if changes.own and (fault := await fault_of_own_code()) is not None:
        log.error("process not replaced: it runs on as it is", cause=fault)
        await _publish(server, None, fault)
        return False
    if changes.own or changes.compiled:
        return _renew(server, changes.compiled)
    if changes.everything:
        await server.reload()
        await _publish(server, None, None)
        return False
    for name in changes.code:
        try:
            error = await _reload(server, name)
        except CompiledModule:
            return _renew(server, [name])
        await _publish(server, name, error)
    for name in changes.files:
        await _publish(server, name, None)
    return False


def _renew(server: Watched, plugins: Sequence[str]) -> bool:
    log.info("a new process takes over", changed=list(plugins) or ["tangram"])
    server.renew()
    return True


async def fault_of_own_code() -> str | None:
    """Return the reason if a new process could not import the server's code."""
    with trio.move_on_after(IMPORT_SECONDS):
        done = await trio.run_process(
            [sys.executable, "-c", IMPORT], capture_stdout=True, capture_stderr=True, check=False
        )
        return None if done.returncode == 0 else _last_fault(done.stderr.decode(errors="replace"))
    return f"its import takes more than {IMPORT_SECONDS:g} s"


def _last_fault(trace: str) -> str:
    """Return the last line of a traceback with the innermost place."""
    lines = [line.strip() for line in trace.splitlines() if line.strip()] or ["no reason"]
    place = next((line for line in reversed(lines) if line.startswith('File "')), None)
    if place is None:
        return lines[-1]
    file, line = re.findall(r'^File "(.*)", line (\d+)', place)[0]
    return f"{lines[-1]} ({file}:{line})"


async def _reload(server: Watched, plugin: str) -> str | None:
    """Reload one plugin; return the reason if its new code does not run.

    Raises:
        CompiledModule: the plugin has a compiled module.
    """
    try:
        await server.reload_plugin(plugin)
    except CompiledModule:
        raise
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
