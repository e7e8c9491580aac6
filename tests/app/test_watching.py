"""Which part a changed file belongs to."""

from __future__ import annotations

import json
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import attrs
import pytest

from tangram.app import watching
from tangram.app.tree import Tree
from tangram.app.watching import PACKAGE, Changes, fault_of_own_code, sort_changes, watched_paths
from tangram.config import Config
from tangram.errors import CompiledModule, PluginError
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
        ([f"/p/shop/fast{EXTENSION_SUFFIXES[0]}", "/p/shop/page.html"], {"compiled": ("shop",)}),
        ([str(PACKAGE / "app" / "tree.py")], {"own": True}),
        ([str(PACKAGE / "web" / "pages" / "page.css")], {}),
        (["/p/other.toml", "/p/elsewhere.py"], {}),
        (["/p/shop/__pycache__/a.cpython-311.pyc", "/p/shop/.a.py.swp", "/p/shop/a.py~"], {}),
    ],
)
def test_a_changed_file_belongs_to_its_part(changed: list[str], expected: dict[str, Any]) -> None:
    """Python files reload their plugin, other files only the pages, the configuration everything."""
    nothing = Changes(everything=False, code=(), files=())

    assert sort_changes(tree(), changed) == attrs.evolve(nothing, **expected)


def test_own_code_is_watched_where_it_may_be_edited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package of a clone is watched; one that pip has installed is not."""
    monkeypatch.setattr(watching, "PACKAGE", Path("/src/tangram"))
    assert Path("/src/tangram") in watched_paths(tree())

    monkeypatch.setattr(watching, "PACKAGE", Path("/venv/lib/site-packages/tangram"))
    assert Path("/venv/lib/site-packages/tangram") not in watched_paths(tree())


class Watched:
    """A server that notes whether it was asked to let a new process take over."""

    def __init__(self) -> None:
        self.tree: Tree | None = tree()
        self.renewed = False
        self.published: list[Any] = []
        incarnation = SimpleNamespace(publish=self._publish)
        cast("Any", self.tree).incarnation = incarnation

    async def _publish(self, _channel: str, message: bytes) -> None:
        self.published.append(json.loads(message))

    async def reload(self) -> None:
        raise AssertionError

    async def reload_plugin(self, name: str) -> None:
        raise CompiledModule(f"plugin {name!r} has a compiled module", plugin=name)

    def renew(self) -> None:
        self.renewed = True


@pytest.mark.parametrize("changes", [{"compiled": ("shop",)}, {"code": ("shop",)}])
async def test_compiled_modules_need_a_new_process(changes: dict[str, Any]) -> None:
    """A changed compiled module, and a changed file beside one, are left to a new process."""
    server = Watched()
    nothing = Changes(everything=False, code=(), files=())

    assert await watching._obey(server, attrs.evolve(nothing, **changes))
    assert server.renewed


@pytest.mark.slow
async def test_own_code_that_cannot_be_imported_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault is told to pages, and the process runs on; right code takes over."""
    server = Watched()
    own = Changes(everything=False, code=(), files=(), own=True)
    monkeypatch.setattr(watching, "IMPORT", "import tangram.no_such_module")

    assert not await watching._obey(server, own)
    assert not server.renewed
    fault = "ModuleNotFoundError: No module named 'tangram.no_such_module' (<string>:1)"
    assert server.published == [{"plugin": None, "error": fault}]

    monkeypatch.undo()
    assert await fault_of_own_code() is None
    assert await watching._obey(server, own)
    assert server.renewed
