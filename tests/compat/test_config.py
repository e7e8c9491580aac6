from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.compat import configuration as c
from tangram.compat.plugin import Plugin
from tangram.config import load_tables
from tangram.config.model import Config as NativeConfig
from tangram.errors import PluginConfigError


@dataclass(frozen=True)
class Shown(c.HasTopbarUiConfig, c.HasSidebarUiConfig):
    topbar_order: Annotated[int, c.FrontendMutable()] = 1
    sidebar_order: int = 2
    color: Annotated[str | None, c.FrontendMutable(kind="color", widget="paint")] = None


def test_plugins_subclass_the_protocols() -> None:
    """A configuration class may have both protocols as bases under a frozen dataclass."""
    shown = Shown(topbar_order=5)

    assert isinstance(shown, c.HasTopbarUiConfig)
    assert isinstance(shown, c.HasSidebarUiConfig)
    assert asdict(shown) == {"topbar_order": 5, "sidebar_order": 2, "color": None}


def test_mutable_fields_are_marked_in_the_schema() -> None:
    """``FrontendMutable`` adds its keys to the field's JSON Schema for the settings page."""
    pydantic = pytest.importorskip("pydantic")
    manifest = c.to_frontend_manifest(pydantic.TypeAdapter(Shown), Shown())
    properties = manifest["config_json_schema"]["properties"]

    assert manifest["config"] == {"topbar_order": 1, "sidebar_order": 2, "color": None}
    assert properties["topbar_order"]["tangram_mutable"] is True
    assert "tangram_mutable" not in properties["sidebar_order"]
    assert {"tangram_kind": "color", "tangram_widget": "paint"}.items() <= properties["color"].items()


@pytest.mark.parametrize("pydantic", [True, False])
def test_a_plugins_configuration(pydantic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, faults and the manifest entry are the same with pydantic and without it."""
    monkeypatch.setattr("tangram.compat.plugin._has_pydantic", lambda: pydantic)

    @dataclass
    class Settings:
        number: int = 0

    plugin = Plugin(
        config_class=Settings,
        frontend_config_class=Shown,
        into_frontend_config_function=lambda settings: Shown(topbar_order=settings.number),
    )
    entry = plugin.frontend_entry(Shown(topbar_order=3))

    assert plugin.structure_config({"number": "3", "more": 1}, key="demo") == Settings(3)
    with pytest.raises(PluginConfigError) as caught:
        plugin.structure_config({"number": "three"}, key="demo")
    assert [fault.path for fault in caught.value.faults] == ["plugins.demo.number"]
    assert entry["config_json_schema"]["properties"]["topbar_order"]["type"] == "integer"
    assert plugin.frontend_problems({"topbar_order": 1}) == {}
    assert list(plugin.frontend_problems({"topbar_order": "first"})) == ["topbar_order"]


def test_names_of_tables_are_found_in_any_spelling() -> None:
    """``config.plugins`` finds a table under any spelling of the distribution's name."""
    config = c.copy_of(load_tables({"plugins": {"my-tangram.plugin": {"a": 1}}}).config)

    assert config.plugins.get("my_tangram_plugin", {}) == {"a": 1}
    assert config.plugins["My-Tangram-Plugin"] == {"a": 1}
    assert "my.tangram.plugin" in config.plugins
    assert config.plugins.get("other", {}) == {}


def test_a_copy_shares_nothing() -> None:
    """A plugin's changes of its configuration do not reach another copy."""
    native = load_tables({"plugins": {"demo": {"list": [1]}}, "core": {"plugins": ["a"]}}).config
    config = c.copy_of(native)
    config.plugins["demo"]["list"].append(2)
    config.core.plugins.append("b")
    config.map.styles.append("x")

    assert c.copy_of(native).plugins["demo"] == {"list": [1]}
    assert native.core.plugins == ("a",)
    assert native.map.styles == ()


def test_defaults_have_the_published_shape() -> None:
    """The configuration without a file has the shape that existing plugins read."""
    config = c.copy_of(NativeConfig())

    assert config.core.redis_url == "redis://127.0.0.1:6379"
    assert (config.channel.host, config.channel.port) == (config.server.host, config.server.port)
    assert config.core.theme == c.AdaptiveTheme("light", "dark")
    assert c.tables_of(c.Config()) == {}


TABLES = st.fixed_dictionaries({"n": st.integers()})


@given(
    st.builds(
        c.Config,
        core=st.builds(c.CoreConfig, plugins=st.lists(st.sampled_from(["a", "b"]), unique=True)),
        server=st.builds(c.ServerConfig, port=st.integers(1, 65535)),
        map=st.builds(c.MapConfig, zoom=st.floats(0, 24), styles=st.just(["https://x.example/style.json"])),
        plugins=st.dictionaries(st.sampled_from(["demo", "other"]), TABLES),
    )
)
def test_a_programs_configuration_survives_a_round_trip(config: c.Config) -> None:
    """A ``Config`` that a program builds is checked like a file, and comes back unchanged."""
    tables = c.tables_of(config)
    back = c.copy_of(load_tables(tables).config)

    assert back.core.plugins == config.core.plugins
    assert back.server == config.server
    assert back.map == config.map
    assert back.plugins == config.plugins


def test_from_file(tmp_path: Path) -> None:
    """A file is read with the same checks as for the server."""
    from tangram.errors import ConfigError

    file = tmp_path / "tangram.toml"
    file.write_text('[core]\nplugins = ["demo"]\n[plugins.demo]\nn = 1\n')
    assert c.Config.from_file(file).plugins == {"demo": {"n": 1}}
    file.write_text("[core]\nplugin = []\n")
    with pytest.raises(ConfigError, match="did you mean 'plugins'"):
        c.Config.from_file(file)


def test_helpers() -> None:
    """The functions that programs import from ``tangram_core.config`` and ``.backend`` work."""
    backend: Any = import_module("tangram_core.backend")
    shown = c.core_into_frontend_config(c.Config())

    assert c.default_config_file().name == "tangram.toml"
    assert [theme.name for theme in shown.core.themes] == ["light", "dark"]
    assert shown.channel.url == "http://127.0.0.1:2346"
    assert len(shown.map.styles) == len(c.default_styles()) == 4
    assert c.load_built_in_style("radar-dark")["name"] == "Radar Dark"
    assert c.styles_match({"id": "a"}, {"id": "a", "name": "b"})
    assert not c.styles_match("https://a", "https://b")
    assert c.style_identifier({"name": "b"}) == "b"
    assert [theme.name for theme in backend.DEFAULT_THEMES] == ["light", "dark"]
    assert backend.get_log_config_dict(c.Config())["root"]["level"] == 20
    assert backend.to_frontend_manifest is c.to_frontend_manifest
