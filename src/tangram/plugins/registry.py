"""From names to plugins: import what is enabled, and say of each failure who, what and where, in one line.

A plugin that cannot be loaded costs itself alone. Files of a plugin are found through the module of its entry
point, never by importing the name of its distribution, which may hold hyphens.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import Distribution, EntryPoint
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

import attrs

from tangram.config.names import normalise
from tangram.errors import NotAPlugin, PluginError, PluginImportFailed
from tangram.plugins.discovery import Candidate, find, scan
from tangram.plugins.plugin import Plugin

__all__ = ["LoadedPlugin", "LoadedPlugins", "PluginFailure", "cause_line", "load_plugins"]


@attrs.frozen(eq=False)
class LoadedPlugin:
    """A plugin that was imported, and where it came from."""

    name: str
    """What the log, ``/-/plugins`` and the supervision tree call it: the entry point's name, unique here."""
    dist_name: str
    """The distribution's ``Name``, as written there."""
    plugin: Plugin
    module: str
    """The module of its entry point."""
    entry_point: str
    """The value of its entry point: ``module:attribute``."""
    source: Path | None = None
    """The folder of its import package, or the file of a plugin that is one module; ``None``: no file."""
    project_root: Path | None = None
    """The root of its project, where it is installed editable."""
    native: bool = True
    """Found in our own entry-point group."""

    @property
    def key(self) -> str:
        """Its name in ``[plugins.*]``, the manifest and ``/plugins/``: the distribution's, normalised."""
        return normalise(self.dist_name)

    @property
    def package_path(self) -> Path | None:
        """The folder that holds its files: the import package, or where its one module lies."""
        # The name of an import package holds no dot, that of a module's file does.
        return self.source.parent if self.source is not None and self.source.suffix else self.source

    def owns(self, filename: str) -> bool:
        """Whether a source file belongs to this plugin: for the watchdog and for tracebacks."""
        return self.source is not None and Path(filename).is_relative_to(self.source)


@attrs.frozen(eq=False)
class PluginFailure:
    """A name in ``[core] plugins`` that did not become a plugin."""

    name: str
    error: PluginError
    """Its message is one line: exception type, message, and the file and line in the plugin."""


@attrs.frozen(eq=False)
class LoadedPlugins:
    """What became of the names, in their order."""

    plugins: list[LoadedPlugin] = attrs.field(factory=list)
    failures: list[PluginFailure] = attrs.field(factory=list)

    def owner_of(self, filename: str) -> str | None:
        """The name of the plugin that a source file belongs to; the innermost package wins."""
        owners = [one for one in self.plugins if one.owns(filename)]
        if not owners:
            return None
        return max(owners, key=lambda one: len(str(one.source))).name


def load_plugins(
    names: Sequence[str],
    *,
    entry_points: Iterable[EntryPoint] | None = None,
    on_foreign: Callable[[], None] | None = None,
    into: LoadedPlugins | None = None,
) -> LoadedPlugins:
    """Import the plugins that ``names`` mean, and no other. Raises nothing: failures are in the answer.

    Args:
        names: as in ``[core] plugins``.
        entry_points: what is installed; None: what is installed here.
        on_foreign: called before a plugin of the published server's group is imported.
        into: what was loaded before and runs beside them, added to and returned.
    """
    loaded = LoadedPlugins() if into is None else into
    candidates = scan(entry_points) if names else []
    seen: set[Candidate] = set()
    for name in names:
        try:
            found = find(name, candidates)
        except PluginError as error:
            loaded.failures.append(PluginFailure(name, error))
            continue
        for candidate in found:
            if candidate in seen:
                continue
            seen.add(candidate)
            if candidate.foreign and on_foreign is not None:
                on_foreign()
            _load_into(loaded, candidate)
    return loaded


def _load_into(loaded: LoadedPlugins, candidate: Candidate) -> None:
    try:
        plugin = _import(candidate)
    except PluginError as error:
        loaded.failures.append(PluginFailure(candidate.name, error))
        return
    if any(one.plugin is plugin for one in loaded.plugins):
        return
    taken = {normalise(one.name) for one in loaded.plugins}
    name = (
        candidate.name
        if normalise(candidate.name) not in taken
        else f"{candidate.dist_name}.{candidate.name}"
    )
    if normalise(name) in taken:
        # Whoever came second would stand in the other's place.
        twice = PluginError(f"two plugins are called {name!r}: leave one of them out", plugin=name)
        loaded.failures.append(PluginFailure(name, twice))
        return
    plugin.name, plugin.dist_name = name, candidate.dist_name
    loaded.plugins.append(
        LoadedPlugin(
            name=name,
            dist_name=candidate.dist_name,
            plugin=plugin,
            module=candidate.module,
            entry_point=candidate.entry_point.value,
            source=_source(candidate.module),
            project_root=_project_root(candidate.distribution),
            native=candidate.native,
        )
    )


def _import(candidate: Candidate) -> Plugin:
    try:
        found = candidate.entry_point.load()
    except KeyboardInterrupt:
        raise
    # A module that calls sys.exit() while it is imported must not end the server; a compiled one that panics
    # raises what is no Exception either.
    except BaseException as error:
        line = cause_line(error, _source(candidate.module))
        raise PluginImportFailed(
            f"plugin {candidate.name!r} of {candidate.dist_name!r} cannot be imported: {line}",
            plugin=candidate.name,
        ) from error
    if not isinstance(found, Plugin):
        raise NotAPlugin(
            f"plugin {candidate.name!r} of {candidate.dist_name!r} is no tangram.Plugin: "
            f"{candidate.entry_point.value!r} is {type(found).__name__} {_short(found)}",
            plugin=candidate.name,
        )
    return found


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def cause_line(error: BaseException, source: Path | None = None) -> str:
    """``Type: message (file:line)``: the innermost frame in ``source``, else the innermost one of
    anybody.

    A group is told by the leaf that came first.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    message = " ".join(str(error).split())
    told = f"{type(error).__name__}: {message}" if message else type(error).__name__
    where = _where(error, error.__traceback__, source)
    return f"{told} ({where})" if where else told


def _where(error: BaseException, tb: TracebackType | None, source: Path | None) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(tb)
    outside = [frame for frame in frames if not frame.filename.startswith("<frozen importlib")]
    inside = [
        frame for frame in outside if source is not None and Path(frame.filename).is_relative_to(source)
    ]
    chosen = inside or [frame for frame in outside if "importlib" not in Path(frame.filename).parts[-2:-1]]
    chosen = [frame for frame in chosen if frame.filename != __file__]
    return f"{chosen[-1].filename}:{chosen[-1].lineno}" if chosen else ""


def _source(module: str) -> Path | None:
    """The folder of the outermost regular package of ``module``, without importing anything that is not
    imported.
    """
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        origin = _origin(".".join(parts[:end]))
        if origin is not None:
            # A lone module must not own its neighbours in site-packages.
            return (origin.parent if origin.stem == "__init__" else origin).resolve()
    return None


def _origin(module: str) -> Path | None:
    imported = sys.modules.get(module)
    if imported is not None:
        file = getattr(imported, "__file__", None)
        return Path(file) if file else None
    # find_spec imports the parents of a dotted name: one that raised while it was imported would raise again.
    if "." in module:
        return None
    with contextlib.suppress(ImportError, ValueError, AttributeError):
        spec = find_spec(module)
        if spec is not None and spec.has_location and spec.origin:
            return Path(spec.origin)
    return None


def _project_root(distribution: Distribution | None) -> Path | None:
    """PEP 610: where an editable install lives."""
    if distribution is None:
        return None
    try:
        text = distribution.read_text("direct_url.json")
        told = json.loads(text) if text else {}
        editable, url = told.get("dir_info", {}).get("editable"), urlsplit(told.get("url", ""))
    except (OSError, ValueError, AttributeError):
        return None
    return Path(unquote(url.path)).resolve() if editable and url.scheme == "file" else None
