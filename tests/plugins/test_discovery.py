from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from tangram.errors import PluginError, PluginNotFound
from tangram.plugins.discovery import Candidate, find, scan
from tests.plugins.fakes import entry_point

OLD = "tangram_core.plugins"


def candidates(*points: EntryPoint) -> list[Candidate]:
    return scan(points)


def test_a_name_is_found_however_it_is_written() -> None:
    """A plugin is found by entry point, distribution or module; case and hyphens are ignored."""
    known = candidates(entry_point("weather", "wx.plugin:plugin", "Tangram-Weather"))

    for name in [
        "weather",
        "Weather",
        "tangram-weather",
        "TANGRAM_weather",
        "tangram.weather",
        "wx",
        "wx.plugin",
    ]:
        assert [one.name for one in find(name, known)] == ["weather"], name


def test_a_distribution_means_all_its_entry_points() -> None:
    """The name of a distribution enables all its plugins, in its order."""
    known = candidates(entry_point("sea", "a:sea", "both"), entry_point("air", "a:air", "both"))

    assert [one.name for one in find("both", known)] == ["sea", "air"]
    assert [one.name for one in find("air", known)] == ["air"]


def test_a_plugin_in_both_groups_is_loaded_from_the_first() -> None:
    """A plugin in both groups is one plugin, from the group ``tangram.plugins``."""
    known = candidates(
        entry_point("wx", "old:plugin", "wx", group=OLD), entry_point("wx", "new:plugin", "wx")
    )

    (one,) = find("wx", known)
    assert one.module == "new"
    assert one.native


def test_other_groups_are_not_plugins() -> None:
    """Entry points of other groups are ignored."""
    assert candidates(entry_point("wx", "a:b", "wx", group="console_scripts")) == []


def test_the_error_for_an_unknown_name_suggests_the_nearest_one() -> None:
    """The error for a misspelt name suggests the nearest name, as it is written."""
    known = candidates(entry_point("weather", "wx:plugin", "tangram-weather"))

    with pytest.raises(
        PluginNotFound, match="no installed plugin is called 'wether': did you mean 'weather'"
    ):
        find("wether", known)
    with pytest.raises(PluginNotFound, match="did you mean 'tangram-weather'"):
        find("tangram-waether", known)


def test_the_error_for_an_unknown_name_lists_the_installed_ones() -> None:
    """The error for a name without a near one lists the installed names."""
    known = candidates(entry_point("weather", "wx:plugin", "tangram-weather"))

    with pytest.raises(PluginNotFound, match="installed are weather"):
        find("zzzz", known)
    with pytest.raises(PluginNotFound, match="none is installed"):
        find("zzzz", [])


def test_one_name_of_two_distributions_is_ambiguous() -> None:
    """If two distributions use one entry-point name, the distribution's name is required."""
    known = candidates(entry_point("plugin", "a:plugin", "a"), entry_point("plugin", "b:plugin", "b"))

    with pytest.raises(PluginError, match=r"ambiguous: plugin \(a\), plugin \(b\)"):
        find("plugin", known)
    assert [one.dist_name for one in find("b", known)] == ["b"]


def test_scanning_imports_nothing() -> None:
    """The scan imports no plugin."""
    before = set(sys.modules)
    known = scan([entry_point("x", "module_that_does_not_exist:plugin", "x")])

    assert [one.name for one in known] == ["x"]
    assert "module_that_does_not_exist" not in set(sys.modules) - before


def test_the_environment_is_scanned() -> None:
    """Without a list of entry points, those of the environment are scanned."""
    assert all(one.entry_point.group in {"tangram.plugins", OLD} for one in scan())
