"""Structuring tables into objects."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.config.model import MapConfig
from tangram.config.structure import structure_plugin_config, structure_table, unknown_plugin_keys
from tangram.errors import ConfigError, Fault, PluginConfigError


@attrs.frozen
class Inner:
    name: str
    limit: int = 3


@attrs.frozen
class AttrsConfig:
    inner: Inner
    items: list[int] = attrs.field(factory=list)
    api_key: str = ""
    ratio: float = attrs.field(default=0.5, validator=attrs.validators.le(1))


@dataclass
class DataConfig:
    port: int
    names: dict[str, bool] = field(default_factory=dict)
    folder: Path = Path()


class Base(TypedDict):
    url: str


class TypedConfig(Base, total=False):
    retries: int


def faults(cls: type, raw: Mapping[str, Any]) -> dict[str, str]:
    with pytest.raises(PluginConfigError) as raised:
        structure_plugin_config(cls, raw, plugin="p")
    assert raised.value.plugin == "p"
    return {fault.path: fault.what for fault in raised.value.faults}


def test_attrs_dataclasses_and_typed_dicts_are_filled() -> None:
    """Values are converted leniently, and unknown keys are ignored."""
    assert structure_plugin_config(
        AttrsConfig, {"inner": {"name": "n", "limit": "7"}, "items": [1, 2.0], "x": 1}, plugin="p"
    ) == AttrsConfig(Inner("n", 7), [1, 2])
    assert structure_plugin_config(
        DataConfig, {"port": "80", "names": {"a": "yes", "b": 0}, "folder": "x"}, plugin="p"
    ) == DataConfig(80, {"a": True, "b": False}, Path("x"))
    assert structure_plugin_config(TypedConfig, {"url": "u"}, plugin="p") == {"url": "u"}


def test_all_faults_of_a_plugin_are_listed() -> None:
    """Each has its path, also missing keys and nested ones."""
    assert faults(AttrsConfig, {"inner": {"limit": 1.5}, "items": [1, "x", "y"], "ratio": "z"}) == {
        "plugins.p.inner.name": "required, but not there",
        "plugins.p.inner.limit": "expected an integer, got 1.5",
        "plugins.p.items[1]": "expected an integer, got 'x'",
        "plugins.p.items[2]": "expected an integer, got 'y'",
        "plugins.p.ratio": "expected a number, got 'z'",
    }
    assert faults(DataConfig, {}) == {"plugins.p.port": "required, but not there"}
    assert faults(TypedConfig, {"retries": None}).keys() == {"plugins.p.url", "plugins.p.retries"}
    assert faults(AttrsConfig, {"inner": 3}).keys() == {"plugins.p.inner"}
    assert "got 'perhaps'" in str(faults(DataConfig, {"port": 1, "names": {"a": "perhaps"}}))


def test_a_plugins_configuration_must_be_a_table() -> None:
    """Any other value is one fault at the table."""
    assert faults(DataConfig, 3).keys() == {"plugins.p"}  # type: ignore[arg-type]


def test_errors_of_the_class_are_faults() -> None:
    """Exceptions of its validators and constructor are faults with a path."""
    assert "must be <= 1" in str(faults(AttrsConfig, {"inner": {"name": "n"}, "ratio": 3}))


def test_secrets_of_plugins_are_not_shown() -> None:
    """Values of keys that sound like secrets, and passwords in URLs, are hidden."""
    assert faults(AttrsConfig, {"inner": {"name": "n"}, "api_key": 123456}) == {
        "plugins.p.api_key": "expected a string, got an integer"
    }
    assert "hunter2" not in str(faults(DataConfig, {"port": "redis://:hunter2@h"}))


def test_unknown_keys_are_warnings() -> None:
    """An attrs class or a dataclass has them; a TypedDict has none."""
    assert unknown_plugin_keys(AttrsConfig, {"iner": 1, "ratio": 1}, plugin="p") == (
        "unknown key 'iner': did you mean 'inner'? @ plugins.p.iner",
    )
    assert len(unknown_plugin_keys(DataConfig, {"zzz": 1}, plugin="p")) == 1
    assert unknown_plugin_keys(TypedConfig, {"zzz": 1}, plugin="p") == ()


def test_one_table_of_the_server_can_be_structured_alone() -> None:
    """Its faults have the given path; the settings page uses this."""
    assert structure_table(MapConfig, {"zoom": 3}).zoom == 3.0
    with pytest.raises(ConfigError) as raised:
        structure_table(MapConfig, {"zoom": 30, "pitch": "x"}, path="map")
    assert [fault.path for fault in raised.value.faults] == ["map.zoom", "map.pitch"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.slow
@given(
    st.sampled_from([AttrsConfig, DataConfig, TypedConfig]),
    st.dictionaries(
        st.sampled_from(["inner", "items", "ratio", "port", "names", "folder", "url", "retries"]), JSON
    ),
)
def test_any_table_of_a_plugin_raises_only_plugin_config_error(cls: type, raw: dict[str, Any]) -> None:
    """This holds for tables of any shape."""
    told: tuple[Fault, ...] = ()
    try:
        structure_plugin_config(cls, raw, plugin="p")
    except PluginConfigError as error:
        told = error.faults

    assert all(fault.path.startswith("plugins.p") for fault in told)
