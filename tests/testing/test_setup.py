"""Plugins of a test: none keeps a name of an earlier test or hides another one."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

import tangram
from tangram.plugins.registry import LoadedPlugin
from tangram.testing import open_tangram
from tangram.testing.run.setup import load_given


def given(*plugins: tangram.Plugin | str) -> list[LoadedPlugin]:
    return load_given(plugins, {}).plugins


def names(*plugins: tangram.Plugin | str) -> list[str]:
    return [one.name for one in given(*plugins)]


def called(name: str) -> tangram.Plugin:
    plugin = tangram.Plugin()
    plugin.name = name
    return plugin


def test_a_default_name_lasts_for_one_test() -> None:
    """Earlier tests change no name."""
    one, other = tangram.Plugin(), tangram.Plugin()

    assert names(one) == ["plugin"]
    assert names(other) == ["plugin"]
    assert names(one, other) == ["plugin", "plugin_2"]
    assert names(other) == ["plugin"]
    assert (other.name, other.dist_name) == ("plugin", "plugin")


def test_an_authors_name_stays() -> None:
    """Also one that is set or changed between two tests; its distribution name follows."""
    plugin = tangram.Plugin()
    given(plugin)
    plugin.name = "mine"
    for _ in range(2):
        assert [(one.name, one.dist_name) for one in given(plugin)] == [("mine", "mine")]

    plugin.name = "yours"
    plugin.dist_name = "of-mine"
    for _ in range(2):
        assert [(one.name, one.dist_name) for one in given(plugin)] == [("yours", "of-mine")]


def test_an_installed_plugin_given_by_name_keeps_its_name() -> None:
    """Given as an object it is called like every other object, before and after."""
    (installed,) = given("tangram_demo")

    assert names(installed.plugin) == ["plugin"]
    assert names("tangram_demo") == [installed.name]


def test_two_plugins_of_one_name_are_an_error() -> None:
    """One would take the other's place and never start."""
    with pytest.raises(ValueError, match=r"two plugins are called 'x': set plugin\.name"):
        given(called("x"), called("x"))
    with pytest.raises(ValueError, match=r"two plugins are called 'plugin_2'"):
        given(called("plugin_2"), tangram.Plugin())
    with pytest.raises(ValueError, match=r"two plugins are called 'x-y' and 'x_y'"):
        given(called("x-y"), called("x_y"))


def test_a_plugin_given_twice_runs_once() -> None:
    """The same holds for a configuration that names it twice."""
    plugin = tangram.Plugin()

    assert names(plugin, plugin) == ["plugin"]
    assert names("tangram_demo", "tangram-demo") == names("tangram_demo")


async def test_two_plugins_of_earlier_tests_both_run(autojump_clock: MockClock) -> None:
    """Both had the same default name in servers of their own."""
    started: list[str] = []

    def make(name: str) -> tangram.Plugin:
        plugin = tangram.Plugin()

        @plugin.register_service()
        async def start(_state: tangram.BackendState) -> None:
            started.append(name)
            await trio.sleep_forever()

        return plugin

    one, other = make("one"), make("other")
    for plugins in ([one], [other], [one, other]):
        async with open_tangram(plugins, fakes=True):
            pass

    assert started == ["one", "other", "one", "other"]
