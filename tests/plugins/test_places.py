from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tangram.plugins.places import is_place
from tangram.plugins.registry import load_plugins

GOOD = "import tangram\nplugin = tangram.Plugin()\nother = tangram.Plugin()\n"


@pytest.fixture(autouse=True)
def forgotten(modules_are_forgotten: None) -> None:
    """Modules that a test imports are forgotten after it."""


@pytest.mark.parametrize(
    ("name", "expected"),
    [("./a.py", True), ("a.py", True), ("plugins/a", True), ("a.b:c", True), ("a", False), ("a-b.c", False)],
)
def test_places_are_told_apart_from_names(name: str, expected: bool) -> None:
    """A slash, a colon or the suffix of a Python file makes a place."""
    assert is_place(name) is expected


def test_a_file_is_a_plugin_without_packaging(tmp_path: Path) -> None:
    """A path is relative to the given folder; the file's own name is the plugin's."""
    (tmp_path / "lights_px.py").write_text(GOOD)

    loaded = load_plugins(["./lights_px.py", "lights_px.py:other"], folder=tmp_path)

    assert [str(one.error) for one in loaded.failures] == []
    assert [one.name for one in loaded.plugins] == ["lights_px", "other"]
    assert loaded.plugins[0].key == "lights_px"
    assert loaded.plugins[0].owns(str(tmp_path / "lights_px.py"))
    assert not loaded.plugins[0].owns(str(tmp_path / "other.py"))


def test_a_folder_with_relative_imports_is_a_plugin(tmp_path: Path) -> None:
    """A package is imported from its folder, modules inside it included."""
    package = tmp_path / "house_px"
    package.mkdir()
    (package / "__init__.py").write_text("from house_px.inner import plugin\n")
    (package / "inner.py").write_text(GOOD)

    loaded = load_plugins([str(package)])

    assert [str(one.error) for one in loaded.failures] == []
    assert loaded.plugins[0].source == package


def test_an_attribute_of_a_module_is_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``module:attribute`` names a plugin of anything that can be imported."""
    (tmp_path / "deep_px").mkdir()
    (tmp_path / "deep_px" / "inner.py").write_text(GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))

    loaded = load_plugins(["deep_px.inner:other"])

    assert [str(one.error) for one in loaded.failures] == []
    assert [one.name for one in loaded.plugins] == ["other"]
    assert loaded.plugins[0].plugin is sys.modules["deep_px.inner"].other


def test_an_existing_plugin_gets_the_old_name(tmp_path: Path) -> None:
    """Before a file that imports ``tangram_core`` is imported, the old name is answered."""
    (tmp_path / "old_px.py").write_text("import tangram_core\nplugin = tangram_core.plugin\n")
    (tmp_path / "new_px.py").write_text("# no word about tangram_core but this\n" + GOOD)
    asked: list[str] = []

    load_plugins(["./new_px.py"], folder=tmp_path, on_foreign=lambda: asked.append("new"))
    load_plugins(["./old_px.py"], folder=tmp_path, on_foreign=lambda: asked.append("old"))

    assert asked == ["old"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./missing.py", "plugin './missing.py': expected a file or a folder at "),
        ("./empty", "expected a folder with an __init__.py at "),
        ("./not-a-name.py", "'not-a-name' is no name of a Python module"),
        ("nowhere_px:plugin", "plugin 'nowhere_px:plugin': no module is called 'nowhere_px'"),
        ("./json.py", "the module name 'json' of "),
        ("./broken_px.py", "plugin 'broken_px' of 'broken_px' cannot be imported: ZeroDivisionError"),
        ("./plain_px.py", "plugin 'plain_px' of 'plain_px' cannot be imported: AttributeError"),
    ],
)
def test_a_bad_place_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    """A place without a plugin is a failure in one line, and the next plugin is loaded."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "not-a-name.py").write_text(GOOD)
    (tmp_path / "json.py").write_text(GOOD)
    (tmp_path / "broken_px.py").write_text("1 / 0\n")
    (tmp_path / "plain_px.py").write_text("x = 1\n")
    (tmp_path / "good_px.py").write_text(GOOD)

    loaded = load_plugins([name, "./good_px.py"], folder=tmp_path)

    assert [one.name for one in loaded.plugins] == ["good_px"]
    (failure,) = loaded.failures
    assert message in str(failure.error)
    assert "\n" not in str(failure.error)
