"""Plugins that are not installed: files, folders, and attributes of modules.

``./lights.py``, ``plugins/lights`` and ``home.lights:plugin`` in ``[core] plugins`` need no packaging. A path
is relative to the folder of ``tangram.toml``. The plugin is the module's attribute ``plugin`` unless another
one stands behind a colon: ``./lights.py:night``. Its name is the module's, or that of the other attribute.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Final

from tangram.errors import PluginError, PluginNotFound
from tangram.plugins.discovery import GROUPS, Candidate

__all__ = ["candidate_at", "import_file", "is_place"]

ATTRIBUTE: Final = re.compile(r"(?P<place>.+):(?P<attribute>[A-Za-z_]\w*)")
OLD_IMPORT: Final = re.compile(rb"^\s*(?:import|from)\s+tangram_core\b", re.MULTILINE)
"""An import of the published server: such a module needs the old name to be answered before its import."""


def is_place(name: str) -> bool:
    """Return whether a name of ``[core] plugins`` is a path or ``module:attribute``.

    Names of distributions and entry points contain neither slashes nor colons.
    """
    return "/" in name or ":" in name or name.endswith(".py")


def candidate_at(name: str, folder: Path) -> Candidate:
    """Return the plugin at a place, not imported yet.

    Args:
        name: a path or ``module:attribute``.
        folder: the folder that relative paths begin in.

    Raises:
        PluginNotFound: there is no such file, folder or module.
    """
    found = ATTRIBUTE.fullmatch(name)
    place, attribute = (found["place"], found["attribute"]) if found else (name, "plugin")
    path: Path | None = None
    origin: Path | None
    if "/" in place or place.endswith(".py"):
        path = origin = _file_at(name, folder / Path(place).expanduser())
        module = path.parent.name if path.name == "__init__.py" else path.stem
    else:
        origin, module = _file_of(place), place
    _check_module(name, module, is_found=origin is not None or place in sys.modules)
    foreign = origin is not None and OLD_IMPORT.search(origin.read_bytes()) is not None
    label = module.rpartition(".")[2] if attribute == "plugin" else attribute
    point = EntryPoint(label, f"{module}:{attribute}", GROUPS[1] if foreign else GROUPS[0])
    return Candidate(name=label, dist_name=label, entry_point=point, file=path, foreign=foreign)


def _check_module(name: str, module: str, *, is_found: bool) -> None:
    if not all(part.isidentifier() for part in module.split(".")):
        raise PluginNotFound(
            f"plugin {name!r}: {module!r} is no name of a Python module, expected letters, digits and _",
            plugin=name,
        )
    if not is_found:
        raise PluginNotFound(
            f"plugin {name!r}: no module is called {module!r}, expected one that can be imported, "
            "or a path such as './my_plugin.py'",
            plugin=name,
        )


def _file_at(name: str, path: Path) -> Path:
    file = path / "__init__.py" if path.is_dir() else path
    if not file.is_file():
        expected = "a folder with an __init__.py" if path.is_dir() else "a file or a folder"
        raise PluginNotFound(f"plugin {name!r}: expected {expected} at {os.fspath(path)!r}", plugin=name)
    return file.resolve()


def _file_of(module: str) -> Path | None:
    """Return the file of a module without importing its parents, or None."""
    root, *rest = module.split(".")
    with contextlib.suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(root)
        if spec is not None:
            return _inside(spec, rest)
    return None


def _inside(spec: ModuleSpec, rest: list[str]) -> Path | None:
    if not rest:
        return Path(spec.origin) if spec.has_location and spec.origin else None
    for folder in spec.submodule_search_locations or ():
        base = Path(folder, *rest)
        for file in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
            if file.is_file():
                return file
    return None


def import_file(name: str, file: Path) -> ModuleType:
    """Import a file, or the ``__init__.py`` of a folder, under a module name.

    Raises:
        PluginError: another module has this name.
    """
    known = sys.modules.get(name)
    if known is not None:
        if getattr(known, "__file__", None) != str(file):
            raise PluginError(
                f"the module name {name!r} of {str(file)!r} is taken by {known!r}: rename the file",
                plugin=name,
            )
        return known
    locations = [str(file.parent)] if file.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=locations)
    if spec is None or spec.loader is None:
        raise PluginError(f"{str(file)!r} is no Python file: expected a name that ends with .py", plugin=name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module
