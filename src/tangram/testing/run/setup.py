"""Configuration and plugins of a server under test, as an operator would have given them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from tangram.app.server import answer_old_names
from tangram.config import LoadedConfig, load_config
from tangram.config.names import normalise
from tangram.plugins import Plugin
from tangram.plugins.registry import LoadedPlugin, LoadedPlugins, load_plugins

__all__ = ["configure", "load_given", "toml"]


def configure(tables: Mapping[str, Any], folder: Path) -> LoadedConfig:
    """Return the configuration that these tables make, checked like an operator's file.

    Args:
        tables: by name, as in ``tangram.toml``.
        folder: for the file and the state.
    """
    chosen: dict[str, dict[str, Any]] = {
        "server": {"port": 0, "state_dir": str(folder / "state")},
        "broker": {"port": 0},
    }
    for table, values in tables.items():
        chosen[table] = chosen.get(table, {}) | dict(values)
    file = folder / "tangram.toml"
    file.write_text(toml(chosen))
    return load_config(file, {"HOME": str(folder)})


def toml(tables: Mapping[str, Any]) -> str:
    """Return tables as TOML.

    Inline values are written as JSON, which TOML reads alike for these types.
    """
    lines = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {_value(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)


def load_given(plugins: Iterable[Plugin | str], tables: Mapping[str, object]) -> LoadedPlugins:
    """Load installed plugins by their names, and take plugin objects as they are.

    Args:
        plugins: names and objects.
        tables: the tables ``[plugins.NAME]``, by name.

    Raises:
        PluginError: a name cannot be loaded. A server would run without it; a test of it may not.
        ValueError: a table belongs to none of the plugins, although they are objects. Or two plugins
            have one name.
    """
    loaded = _loaded(list(plugins))
    if loaded.failures:
        first, *others = (failure.error for failure in loaded.failures)
        for other in others:
            first.add_note(f"beside it: {other}")
        raise first
    known = {one.key for one in loaded.plugins}
    unread = sorted(tables.keys() - known)
    if unread and any(not one.entry_point for one in loaded.plugins):
        names = ", ".join(map(repr, sorted(known)))
        raise ValueError(
            f"[plugins.{unread[0]}] is for none of the plugins given, which are {names}: "
            f"set plugin.name, or give it by the name by which it is installed"
        )
    return loaded


def _loaded(plugins: list[Plugin | str]) -> LoadedPlugins:
    loaded = LoadedPlugins()
    for number, one in enumerate(plugins, 1):
        if isinstance(one, str):
            before = len(loaded.plugins)
            load_plugins([one], on_foreign=answer_old_names, into=loaded)
            _lent.update({new.plugin: (new.name, new.dist_name) for new in loaded.plugins[before:]})
        elif all(known.plugin is not one for known in loaded.plugins):
            _take(loaded, one, "plugin" if number == 1 else f"plugin_{number}")
    return loaded


_lent: WeakKeyDictionary[Plugin, tuple[str, str]] = WeakKeyDictionary()
"""Name and distribution name that a plugin has from here or from the loader; empty where the author set
them.

Only an author's name lasts from one test to the next.
"""


def _take(loaded: LoadedPlugins, plugin: Plugin, default: str) -> None:
    """Add a plugin object under its author's name or the default one."""
    lent = _lent.get(plugin, ("", ""))
    own_name = "" if plugin.name == lent[0] else plugin.name
    own_dist = "" if plugin.dist_name == lent[1] else plugin.dist_name
    name = own_name or default
    for known in loaded.plugins:
        if normalise(known.name) == normalise(name):
            told = repr(name) if known.name == name else f"{known.name!r} and {name!r}"
            raise ValueError(f"two plugins are called {told}: set plugin.name")
    plugin.name, plugin.dist_name = name, own_dist or name
    _lent[plugin] = "" if own_name else name, "" if own_dist else name
    loaded.plugins.append(LoadedPlugin(name, plugin.dist_name, plugin, module="", entry_point=""))
