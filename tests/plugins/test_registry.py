from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from tangram.errors import NotAPlugin, PluginError, PluginImportFailed, PluginNotFound
from tangram.plugins.plugin import Plugin
from tangram.plugins.registry import LoadedPlugins, PluginFailure, cause_line, load_plugins
from tests.plugins.fakes import entry_point, loaded

Write = Callable[..., Path]
GOOD = "from tangram.plugins.plugin import Plugin\nplugin = Plugin()\nother = Plugin()\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modules_are_forgotten: None) -> Write:
    """Return a function that writes modules; they are forgotten after the test."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(path: str, text: str = GOOD) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    return write


def test_plugins_are_loaded_in_the_order_as_written(site: Write) -> None:
    """Plugins are in the order of the names; a repeated name is one plugin."""
    site("one_wx.py")
    site("two_wx.py")
    points = [
        entry_point("one", "one_wx:plugin", "dist-one"),
        entry_point("two", "two_wx:plugin", "dist-two"),
    ]

    loaded = load_plugins(["two", "One", "dist_two"], entry_points=points)

    assert [one.name for one in loaded.plugins] == ["two", "one"]
    assert loaded.failures == []
    assert loaded.plugins[0].plugin.dist_name == "dist-two"
    assert loaded.plugins[0].plugin.name == "two"
    assert loaded.plugins[0].key == "dist_two"


def test_only_enabled_plugins_are_imported(site: Write) -> None:
    """An installed plugin that is not enabled is not imported."""
    site("wanted_wx.py")
    site("unwanted_wx.py", "raise RuntimeError('imported')")
    points = [entry_point("a", "wanted_wx:plugin", "a"), entry_point("b", "unwanted_wx:plugin", "b")]

    loaded = load_plugins(["a"], entry_points=points)

    assert [one.name for one in loaded.plugins] == ["a"]
    assert loaded.failures == []
    assert "unwanted_wx" not in sys.modules


def test_a_failed_import_is_one_line_and_the_others_run(site: Write) -> None:
    """A failed import is one line with type, message and the plugin's innermost line.

    The other plugins are loaded.
    """
    site("good_wx.py")
    bad = site("bad_wx/__init__.py", "import json\n\ndef load():\n    return json.loads('{')\n\nload()\n")
    points = [entry_point("bad", "bad_wx:plugin", "bad-dist"), entry_point("good", "good_wx:plugin", "good")]

    loaded = load_plugins(["bad", "good"], entry_points=points)

    assert [one.name for one in loaded.plugins] == ["good"]
    (failure,) = loaded.failures
    assert failure.name == "bad"
    assert isinstance(failure.error, PluginImportFailed)
    assert "JSONDecodeError: Expecting property name" in str(failure.error)
    assert f"({bad}:4)" in str(failure.error)
    assert "\n" not in str(failure.error)


def test_a_missing_module_and_a_syntax_error_are_failures(site: Write) -> None:
    """A missing dependency or a syntax error does not end the server."""
    site("needs_wx.py", "import not_there_at_all\n")
    typo = site("typo_wx.py", "def f(:\n")
    points = [entry_point("needs", "needs_wx:plugin", "n"), entry_point("typo", "typo_wx:plugin", "t")]

    loaded = load_plugins(["needs", "typo"], entry_points=points)

    told = [str(failure.error) for failure in loaded.failures]
    assert "No module named 'not_there_at_all'" in told[0]
    assert "needs_wx.py:1)" in told[0]
    assert f"({typo}:1)" in told[1]


def test_a_module_that_exits_costs_itself(site: Write) -> None:
    """sys.exit() at import, or the panic of a compiled module, fails that plugin only."""
    site("exits_wx.py", "import sys\nsys.exit(3)\n")
    site("panics_wx.py", "class PanicException(BaseException): ...\nraise PanicException('no card')\n")
    points = [entry_point("exits", "exits_wx:plugin", "e"), entry_point("panics", "panics_wx:plugin", "p")]

    loaded = load_plugins(["exits", "panics"], entry_points=points)

    told = [str(failure.error) for failure in loaded.failures]
    assert "SystemExit: 3" in told[0]
    assert "PanicException: no card" in told[1]


def test_a_keyboard_interrupt_at_import_ends_the_server(site: Write) -> None:
    """KeyboardInterrupt at import ends the server."""
    site("slow_wx.py", "raise KeyboardInterrupt\n")

    with pytest.raises(KeyboardInterrupt):
        load_plugins(["slow"], entry_points=[entry_point("slow", "slow_wx:plugin", "s")])


def test_an_entry_point_that_is_no_plugin_is_a_failure(site: Write) -> None:
    """The error for an entry point that is no Plugin shows its value."""
    site("nothing_wx.py", "plugin = 42\n")

    loaded = load_plugins(["nothing"], entry_points=[entry_point("nothing", "nothing_wx:plugin", "n")])

    assert isinstance(loaded.failures[0].error, NotAPlugin)
    assert "'nothing_wx:plugin' is int 42" in str(loaded.failures[0].error)


def test_an_unknown_name_is_a_failure_of_that_name() -> None:
    """A name that is not installed is a failure, not an exception."""
    loaded = load_plugins(["ghost"], entry_points=[])

    assert isinstance(loaded.failures[0].error, PluginNotFound)
    assert loaded.failures[0].name == "ghost"


@attrs.define
class Settings:
    limit: int = 1


def test_tables_that_nothing_reads_are_reported_with_the_nearest_name() -> None:
    """Tables without a plugin, and keys that a config_class lacks, are warnings."""
    demo = loaded(Plugin(config_class=Settings), "demo", dist_name="tank-watch")
    free = loaded(Plugin(), "free", dist_name="free")
    failed = PluginFailure("gone", PluginError("x"), dist_name="long-gone")
    plugins = LoadedPlugins([demo, free], [failed])
    tables = {
        "tank_watch": {"limitt": 3, "limit": 2},
        "free": {"anything": 1},
        "gone": {},
        "long_gone": {},
        "tank_wach": {"a": 1},
        "nobody": {},
    }

    assert plugins.config_warnings(tables) == [
        "unknown key 'limitt': did you mean 'limit'? @ plugins.tank_watch.limitt",
        "[plugins.tank_wach] belongs to no enabled plugin: did you mean [plugins.tank_watch]?",
        "[plugins.nobody] belongs to no enabled plugin",
    ]


def test_one_object_under_two_entry_points_is_one_plugin(site: Write) -> None:
    """A Plugin object with two entry points is hosted once; two objects of one module twice."""
    site("shared_wx.py")
    points = [
        entry_point("a", "shared_wx:plugin", "d"),
        entry_point("b", "shared_wx:plugin", "d"),
        entry_point("c", "shared_wx:other", "d"),
    ]

    assert [one.name for one in load_plugins(["d"], entry_points=points).plugins] == ["a", "c"]


def test_two_plugins_with_one_name_get_unique_names(site: Write) -> None:
    """Two plugins with the same entry-point name get unique names."""
    site("first_wx.py")
    site("second_wx.py")
    points = [
        entry_point("plugin", "first_wx:plugin", "first"),
        entry_point("plugin", "second_wx:plugin", "second"),
    ]

    loaded = load_plugins(["first", "second"], entry_points=points)

    assert [one.name for one in loaded.plugins] == ["plugin", "second.plugin"]


def test_a_plugin_whose_name_cannot_be_made_unique_is_a_failure(site: Write) -> None:
    """A plugin whose name cannot be made unique is a failure."""
    for module in ("first_wx.py", "second_wx.py", "third_wx.py"):
        site(module)
    points = [
        entry_point("plugin", "first_wx:plugin", "first"),
        entry_point("second.plugin", "third_wx:plugin", "third"),
        entry_point("plugin", "second_wx:plugin", "second"),
    ]

    loaded = load_plugins(["first", "third", "second"], entry_points=points)

    assert [one.name for one in loaded.plugins] == ["plugin", "second.plugin"]
    assert str(loaded.failures[0].error) == "two plugins are called 'second.plugin': leave one of them out"


def test_names_are_unique_over_several_loads(site: Write) -> None:
    """Loading plugins in several steps gives the same result as in one."""
    site("first_wx.py")
    site("second_wx.py")
    points = [
        entry_point("plugin", "first_wx:plugin", "first"),
        entry_point("plugin", "second_wx:plugin", "second"),
    ]

    loaded = load_plugins(["first"], entry_points=points)
    for name in ("first", "second"):
        load_plugins([name], entry_points=points, into=loaded)

    assert [one.name for one in loaded.plugins] == ["plugin", "second.plugin"]


def test_the_package_is_found_through_the_module_also_in_a_namespace(site: Write) -> None:
    """The import package is the outermost regular one, also with hyphens and namespaces."""
    inner = site("company_wx/weather/__init__.py")
    site("company_wx/weather/plugin.py")
    point = entry_point("weather", "company_wx.weather.plugin:plugin", "company-weather")

    (one,) = load_plugins(["company-weather"], entry_points=[point]).plugins

    assert one.package_path == inner.parent
    assert one.owns(str(inner.parent / "deep" / "file.py"))
    assert not one.owns(str(inner.parent.parent / "sea" / "file.py"))


def test_the_project_of_an_editable_installation_is_known(site: Write, tmp_path: Path) -> None:
    """The project's root is read from direct_url.json; other installations have none."""
    site("edit_wx.py")
    root = tmp_path / "my project"
    root.mkdir()
    editable = json.dumps({"url": root.as_uri(), "dir_info": {"editable": True}})
    fixed = json.dumps({"url": root.as_uri(), "dir_info": {}})

    def load(direct_url: str | None) -> Path | None:
        point = entry_point("e", "edit_wx:plugin", "e", direct_url=direct_url)
        return load_plugins(["e"], entry_points=[point]).plugins[0].project_root

    assert load(editable) == root
    assert load(fixed) is None
    assert load(None) is None
    assert load("no json") is None


def test_the_owner_of_a_file_is_the_innermost_package(site: Write) -> None:
    """A file of a package inside another plugin's folder belongs to the inner one."""
    outer = site("outer_wx/__init__.py")
    points = [entry_point("outer", "outer_wx:plugin", "outer")]
    loaded = load_plugins(["outer"], entry_points=points)

    assert loaded.owner_of(str(outer)) == "outer"
    assert loaded.owner_of("/elsewhere/x.py") is None


def test_a_plugin_of_one_module_owns_only_that_file(site: Write) -> None:
    """A plugin of one module owns that file, not its neighbours in site-packages."""
    file = site("lone_wx.py")
    (one,) = load_plugins(["lone"], entry_points=[entry_point("lone", "lone_wx:plugin", "lone")]).plugins

    assert one.owns(str(file))
    assert not one.owns(str(file.with_name("neighbour.py")))
    assert one.package_path == file.parent


def test_a_group_is_described_by_its_first_leaf() -> None:
    """The description of a group is that of its first leaf, on one line."""
    group = ExceptionGroup("several", [ExceptionGroup("inner", [ValueError("two\nlines")]), KeyError("k")])

    assert cause_line(group) == "ValueError: two lines"
    assert cause_line(RuntimeError()) == "RuntimeError"
