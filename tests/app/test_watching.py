"""Which part a changed file belongs to."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import attrs
import pytest

from tangram.app.tree import Tree
from tangram.app.watching import Changes, sort_changes
from tangram.config import Config
from tangram.errors import PluginError
from tangram.plugins.plugin import Plugin
from tangram.plugins.registry import LoadedPlugins, PluginFailure
from tests.plugins.fakes import loaded


def tree() -> Tree:
    plugins = LoadedPlugins(
        [loaded(Plugin(), "shop", source=Path("/p/shop")), loaded(Plugin(), "one", source=Path("/p/one.py"))],
        [PluginFailure("bad", PluginError("no"), source=Path("/p/bad"))],
    )
    config = attrs.evolve(Config(), source=Path("/p/tangram.toml"))
    return cast("Tree", SimpleNamespace(plugins=plugins, config=config))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (["/p/shop/a.py"], {"code": ("shop",)}),
        (["/p/shop/a.py", "/p/shop/page.html", "/p/one.py"], {"code": ("one", "shop")}),
        (["/p/shop/page.html"], {"files": ("shop",)}),
        (["/p/tangram.toml"], {"everything": True}),
        (["/p/bad/__init__.py"], {"everything": True}),
        (["/p/other.toml", "/p/elsewhere.py"], {}),
        (["/p/shop/__pycache__/a.cpython-311.pyc", "/p/shop/.a.py.swp", "/p/shop/a.py~"], {}),
    ],
)
def test_a_changed_file_belongs_to_its_part(changed: list[str], expected: dict[str, Any]) -> None:
    """Python files reload their plugin, other files only the pages, the configuration everything."""
    nothing = Changes(everything=False, code=(), files=())

    assert sort_changes(tree(), changed) == attrs.evolve(nothing, **expected)
