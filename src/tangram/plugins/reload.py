"""Import the code of one plugin again, while the plugin runs.

1. The modules of the plugin's own files are forgotten and imported anew; all other modules stay. Objects that
   other code holds, for example instances of the old classes, stay as they are.
2. If the import fails, or the result does not fit its configuration, the old modules are put back, and the
   plugin runs on as if nothing had happened.
3. Compiled modules cannot be imported twice in one process.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable
from importlib.util import cache_from_source
from pathlib import Path
from types import ModuleType

import attrs

from tangram.errors import CompiledModule, PluginError
from tangram.plugins.registry import LoadedPlugin, import_plugin

__all__ = ["reload_plugin"]


def reload_plugin(
    loaded: LoadedPlugin, *, check: Callable[[LoadedPlugin], object] = lambda _new: None
) -> LoadedPlugin:
    """Return the plugin with its code as it is on the disk now.

    Args:
        loaded: the plugin as it runs.
        check: called with the new plugin; an exception refuses it.

    Raises:
        CompiledModule: the plugin has a compiled module; the old modules are in force.
        PluginError: the plugin cannot be imported again; the old modules are in force.
    """
    if loaded.candidate is None or loaded.source is None:
        raise PluginError(f"plugin {loaded.name!r} has no file that could be read again", plugin=loaded.name)
    old = _own_modules(loaded)
    _refuse_compiled(loaded, old)
    _forget(old)
    try:
        new = attrs.evolve(loaded, plugin=import_plugin(loaded.candidate))
        new.plugin.name, new.plugin.dist_name = loaded.name, loaded.dist_name
        check(new)
    except BaseException:
        for name in _own_modules(loaded):
            del sys.modules[name]
        sys.modules.update(old)
        raise
    return new


def _own_modules(loaded: LoadedPlugin) -> dict[str, ModuleType]:
    # A process has a thousand modules: compare text before paths are made of it.
    start = str(loaded.source)
    return {
        name: module
        for name, module in list(sys.modules.items())
        if (getattr(module, "__file__", None) or "").startswith(start) and loaded.owns(str(module.__file__))
    }


def _refuse_compiled(loaded: LoadedPlugin, modules: dict[str, ModuleType]) -> None:
    compiled = sorted(name for name, one in modules.items() if not str(one.__file__).endswith(".py"))
    if compiled:
        raise CompiledModule(
            f"plugin {loaded.name!r} has the compiled module {compiled[0]!r}, which cannot be imported "
            "twice: restart the process",
            plugin=loaded.name,
        )


def _forget(modules: dict[str, ModuleType]) -> None:
    for name, module in modules.items():
        del sys.modules[name]
        # A compiled file counts as current if second and size of the source are the same.
        with contextlib.suppress(OSError, NotImplementedError):
            Path(cache_from_source(str(module.__file__))).unlink(missing_ok=True)
    importlib.invalidate_caches()
