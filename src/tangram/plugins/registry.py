"""Import the enabled plugins, and describe each failure in one line.

A plugin that cannot be loaded does not affect the others. The files of a plugin are found through the module
of its entry point, never by importing the name of its distribution, which may contain hyphens.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import Distribution, EntryPoint
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import attrs

from tangram.config.names import nearest, normalise
from tangram.config.structure import unknown_plugin_keys
from tangram.errors import NotAPlugin, PluginError, PluginImportFailed
from tangram.groups import first_leaf
from tangram.plugins.discovery import Candidate, find, scan
from tangram.plugins.instances import split_instances
from tangram.plugins.places import candidate_at, import_file, is_place
from tangram.plugins.plugin import Plugin

__all__ = [
    "LoadedPlugin",
    "LoadedPlugins",
    "PluginFailure",
    "cause_line",
    "import_plugin",
    "importing_plugin",
    "load_plugins",
]


@attrs.frozen(eq=False)
class LoadedPlugin:
    """An imported plugin, its distribution and its place on the disk."""

    name: str
    """The name in the log, ``/-/plugins`` and the supervision tree: its entry point's, made unique."""
    dist_name: str
    """The ``Name`` of its distribution, not normalised."""
    plugin: Plugin
    module: str
    """The module of its entry point."""
    entry_point: str
    """The value of its entry point: ``module:attribute``."""
    source: Path | None = None
    """The folder of its import package, or the file of a single module; None if it has no file."""
    project_root: Path | None = None
    """The root folder of its project, if the installation is editable."""
    native: bool = True
    """Its entry point is in the group ``tangram.plugins``."""
    candidate: Candidate | None = None
    """Its place, to import it again; None for a plugin that was given as an object."""

    @property
    def key(self) -> str:
        """Its key in ``[plugins.*]``, the manifest and ``/plugins/``.

        It is the name of the distribution, normalised.
        """
        return normalise(self.dist_name)

    @property
    def package_path(self) -> Path | None:
        """The folder that contains its files.

        It is the import package, or the folder of a single module.
        """
        # The folder of an import package has no suffix, the file of a module has one.
        return self.source.parent if self.source is not None and self.source.suffix else self.source

    def owns(self, filename: str) -> bool:
        """Return whether a source file belongs to this plugin, for example a frame of a traceback."""
        return self.source is not None and Path(filename).is_relative_to(self.source)


@attrs.frozen(eq=False)
class PluginFailure:
    """A name in ``[core] plugins`` whose plugin could not be loaded."""

    name: str
    error: PluginError
    """Its message is one line with exception type, message, and file and line in the plugin."""
    dist_name: str = ""
    """The ``Name`` of its distribution, if one was found."""
    source: Path | None = None
    """The file or the folder that could not be imported, if it is known."""


@attrs.frozen(eq=False)
class LoadedPlugins:
    """Loaded plugins and failures, each in the order of the names."""

    plugins: list[LoadedPlugin] = attrs.field(factory=list)
    failures: list[PluginFailure] = attrs.field(factory=list)

    def config_warnings(self, tables: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Return a warning for each table and each key of ``[plugins.*]`` that no plugin reads.

        Args:
            tables: the tables by the normalised name of the plugin.
        """
        found: list[str] = []
        for one in self.plugins:
            if one.plugin.config_class is not None:
                raw, _ = split_instances(one.plugin.config_class, tables.get(one.key, {}), key=one.key)
                found += unknown_plugin_keys(one.plugin.config_class, raw, plugin=one.key)
        known = [one.key for one in self.plugins]
        failed = {normalise(name) for one in self.failures for name in (one.name, one.dist_name)}
        for key in tables:
            if key not in known and key not in failed:
                guess = nearest(key, known)
                hint = f": did you mean [plugins.{guess}]?" if guess else ""
                found.append(f"[plugins.{key}] belongs to no enabled plugin{hint}")
        return found

    def owner_of(self, filename: str) -> str | None:
        """Return the name of the plugin whose innermost package contains a source file."""
        owners = [one for one in self.plugins if one.owns(filename)]
        if not owners:
            return None
        return max(owners, key=lambda one: len(str(one.source))).name


def load_plugins(
    names: Sequence[str],
    *,
    entry_points: Iterable[EntryPoint] | None = None,
    on_foreign: Callable[[], None] | None = None,
    on_import: Callable[[str], None] | None = None,
    folder: Path | None = None,
    into: LoadedPlugins | None = None,
) -> LoadedPlugins:
    """Import the plugins that ``names`` select, and no others.

    Nothing is raised: failures are part of the result.

    Args:
        names: as in ``[core] plugins``.
        entry_points: the installed entry points; those of this environment by default.
        on_foreign: called before a plugin of the group ``tangram_core.plugins`` is imported.
        on_import: called with the name of each plugin before it is imported.
        folder: the folder that paths in ``names`` begin in; the current one by default.
        into: earlier results that are extended and returned, for plugins loaded in several steps.
    """
    loaded = LoadedPlugins() if into is None else into
    candidates = scan(entry_points) if names else []
    seen: set[Candidate] = set()
    for name in names:
        try:
            found = [candidate_at(name, folder or Path())] if is_place(name) else find(name, candidates)
        except PluginError as error:
            loaded.failures.append(PluginFailure(name, error))
            continue
        for candidate in found:
            if candidate in seen:
                continue
            seen.add(candidate)
            if candidate.foreign and on_foreign is not None:
                on_foreign()
            if on_import is not None:
                on_import(candidate.name)
            _load_into(loaded, candidate)
    return loaded


def _load_into(loaded: LoadedPlugins, candidate: Candidate) -> None:
    try:
        plugin = import_plugin(candidate)
    except PluginError as error:
        loaded.failures.append(_failure(candidate, error))
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
        # The second plugin would replace the first in the supervision tree and the manifest.
        twice = PluginError(f"two plugins are called {name!r}: leave one of them out", plugin=name)
        loaded.failures.append(PluginFailure(name, twice, candidate.dist_name))
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
            candidate=candidate,
        )
    )


def _failure(candidate: Candidate, error: PluginError) -> PluginFailure:
    source = candidate.file or _source(candidate.module)
    return PluginFailure(candidate.name, error, candidate.dist_name, source)


def import_plugin(candidate: Candidate) -> Plugin:
    try:
        if candidate.file is not None:
            import_file(candidate.module, candidate.file)
        found = candidate.entry_point.load()
    except KeyboardInterrupt:
        raise
    # A module that calls sys.exit() at import must not end the server. A compiled module that panics raises a
    # BaseException as well.
    except BaseException as error:
        line = cause_line(error, candidate.file or _source(candidate.module))
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


def importing_plugin(frame: FrameType) -> str | None:
    """Return the name of the plugin that is imported in a frame of this module, or None.

    While a plugin is imported `LoadedPlugins.owner_of` does not know its files yet.
    """
    if frame.f_code is not import_plugin.__code__:
        return None
    candidate: Candidate = frame.f_locals["candidate"]
    return candidate.name


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def cause_line(error: BaseException, source: Path | None = None) -> str:
    """Describe an error in one line: ``Type: message (file:line)``.

    The line number is that of the innermost frame in ``source``, or of the innermost frame if none is there.
    An exception group is described by its first leaf.
    """
    error = first_leaf(error)
    # The text of a SyntaxError ends with the file's name and the line, which follow in full.
    told = error.msg if isinstance(error, SyntaxError) and error.filename else error
    message = " ".join(str(told).split())
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    where = _where(error, error.__traceback__, source)
    return f"{text} ({where})" if where else text


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
    """Return the folder of the outermost regular package of ``module``, without an import."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        origin = _origin(".".join(parts[:end]))
        if origin is not None:
            # A plugin of one module owns only its file, not its neighbours in site-packages.
            return (origin.parent if origin.stem == "__init__" else origin).resolve()
    return None


def _origin(module: str) -> Path | None:
    imported = sys.modules.get(module)
    if imported is not None:
        file = getattr(imported, "__file__", None)
        return Path(file) if file else None
    # find_spec imports the parents of a dotted name, which would raise again if their import failed before.
    if "." in module:
        return None
    with contextlib.suppress(ImportError, ValueError, AttributeError):
        spec = find_spec(module)
        if spec is not None and spec.has_location and spec.origin:
            return Path(spec.origin)
    return None


def _project_root(distribution: Distribution | None) -> Path | None:
    """Return the project folder of an editable installation (PEP 610)."""
    if distribution is None:
        return None
    try:
        text = distribution.read_text("direct_url.json")
        data = json.loads(text) if text else {}
        editable, url = data.get("dir_info", {}).get("editable"), urlsplit(data.get("url", ""))
    except (OSError, ValueError, AttributeError):
        return None
    return Path(unquote(url.path)).resolve() if editable and url.scheme == "file" else None
