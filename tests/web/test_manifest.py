from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import attrs

from tangram.config.model import Config, MapConfig
from tangram.plugins.frontend import FrontendMutable
from tangram.plugins.plugin import Plugin
from tangram.web.manifest import core_schema
from tangram.web.styles import default_styles
from tests.plugins.fakes import loaded
from tests.web.asgi import call, site_of, with_frontend

DESCRIBED = {"name": "@example/demo", "main": "index.js", "style": "index.css"}


@attrs.frozen
class Settings:
    order: int = 3
    secret: str = "s3cret"


@attrs.frozen
class Shown:
    topbar_order: Annotated[int, FrontendMutable()]
    colour: Annotated[str, FrontendMutable(kind="color", widget="w")] = "#fff"


def plugin(**more: Any) -> Plugin:
    return Plugin(
        **{
            "config_class": Settings,
            "frontend_config_class": Shown,
            "into_frontend_config_function": lambda settings: Shown(settings.order),
            **more,
        }
    )


async def test_the_core_part() -> None:
    """Configuration and schema of the shell, as its settings page reads them."""
    answer = await call(site_of(), "GET", "/manifest.json", headers={"host": "localhost:2346"})

    core = answer.json()["core"]
    assert core["config"]["channel"] == {"url": "http://localhost:2346"}
    assert [theme["name"] for theme in core["config"]["core"]["themes"]] == ["light", "dark"]
    assert len(core["config"]["core"]["themes"][0]) == 12
    assert core["config"]["core"]["theme"] == {"light": "light", "dark": "dark"}
    assert len(core["config"]["map"]["styles"]) == 4
    schema = core["config_json_schema"]
    assert schema["properties"]["map"] == {"$ref": "#/$defs/MapConfig"}
    zoom = schema["$defs"]["MapConfig"]["properties"]["zoom"]
    assert (zoom["title"], zoom["minimum"], zoom["maximum"]) == ("Zoom", 0, 24)
    assert zoom["tangram_mutable"] is True
    assert schema["$defs"]["ThemeDefinition"]["properties"]["background"]["tangram_kind"] == "color"
    assert schema["$defs"]["FrontendCoreConfig"]["properties"]["theme"]["tangram_widget"] == "theme-settings"


async def test_the_manifest_has_no_secret() -> None:
    """Nothing but the shell's own settings leaves the server."""
    config = Config(plugins={"tangram_demo": {"secret": "s3cret"}})

    assert "s3cret" not in (await call(site_of(config=config), "GET", "/manifest.json")).body.decode()


async def test_the_operators_styles_replace_built_in_ones() -> None:
    """A style with a known id or URL replaces that one, any other is appended."""
    own = MapConfig(
        styles=({"version": 8, "id": "radar-dark", "mine": True}, "https://example.org/style.json")
    )
    answer = await call(site_of(config=Config(map=own)), "GET", "/manifest.json")

    styles = answer.json()["core"]["config"]["map"]["styles"]
    assert len(styles) == 5
    assert styles[3]["mine"] is True
    assert styles[4] == "https://example.org/style.json"


async def test_a_plugins_front_end_with_its_configuration(tmp_path: Path) -> None:
    """The entry is plugin.json, the front end's configuration, and its schema."""
    config = Config(plugins={"tangram_demo": {"order": "7"}})
    site = site_of(with_frontend(tmp_path, plugin(), described=DESCRIBED), config=config)

    entry = (await call(site, "GET", "/manifest.json")).json()["plugins"]["tangram_demo"]
    assert {key: entry[key] for key in DESCRIBED} == DESCRIBED
    assert entry["config"] == {"topbar_order": 7, "colour": "#fff"}
    properties = entry["config_json_schema"]["properties"]
    assert properties["topbar_order"] == {"title": "Topbar Order", "type": "integer", "tangram_mutable": True}
    assert properties["colour"]["tangram_kind"] == "color"
    assert properties["colour"]["tangram_widget"] == "w"


async def test_front_ends_are_listed_in_the_order_of_the_plugins(tmp_path: Path) -> None:
    """The browser installs them in this order."""
    plugins = []
    for name in ["zebra", "ant"]:
        folder = tmp_path / name
        folder.mkdir()
        plugins.append(with_frontend(folder, name=name, described=DESCRIBED))

    answer = await call(site_of(*plugins), "GET", "/manifest.json")
    assert list(answer.json()["plugins"]) == ["tangram_zebra", "tangram_ant"]


async def test_a_failing_configuration_leaves_out_its_plugin_only(tmp_path: Path) -> None:
    """A configuration that cannot be encoded, or that raises, leaves out that plugin only."""

    def raising(settings: object) -> object:
        raise RuntimeError("no configuration today")

    plugins = []
    for name, function in [("bad", raising), ("worse", lambda settings: {"x": object()}), ("good", None)]:
        folder = tmp_path / name
        folder.mkdir()
        made = plugin(into_frontend_config_function=function) if function else plugin()
        plugins.append(with_frontend(folder, made, name, described=DESCRIBED))
    site = site_of(*plugins)

    assert list((await call(site, "GET", "/manifest.json")).json()["plugins"]) == ["tangram_good"]
    assert "RuntimeError: no configuration today" in site.failures["bad"]
    assert "worse" in site.failures


async def test_a_frontend_class_without_the_function_shows_nothing(tmp_path: Path) -> None:
    """Without into_frontend_config_function or config_class the entry has no configuration."""
    one = with_frontend(tmp_path, plugin(into_frontend_config_function=None), described=DESCRIBED)

    entry = (await call(site_of(one), "GET", "/manifest.json")).json()["plugins"]["tangram_demo"]
    assert entry == DESCRIBED


async def test_without_a_usable_plugin_json_nothing_is_listed(tmp_path: Path) -> None:
    """A missing or malformed plugin.json keeps the front end out of the manifest only."""
    for number, text in enumerate([None, "{", "[]", "{}"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        one = with_frontend(folder)
        if text is not None:
            (folder / "dist" / "plugin.json").write_text(text)
        site = site_of(one)
        assert (await call(site, "GET", "/manifest.json")).json()["plugins"] == {}
        assert (await call(site, "GET", "/plugins/tangram_demo/index.js")).status == 200


async def test_a_plugin_without_a_front_end_is_not_listed() -> None:
    """Only front ends are the browser's business."""
    assert (await call(site_of(loaded(Plugin())), "GET", "/manifest.json")).json()["plugins"] == {}


async def test_the_answer_depends_on_the_host() -> None:
    """Two addresses get two documents, and caches are told."""
    site = site_of()
    one = await call(site, "GET", "/manifest.json", headers={"host": "localhost:1"})
    two = await call(site, "GET", "/manifest.json", headers={"host": "127.0.0.1:2"})

    urls = [json.loads(answer.body)["core"]["config"]["channel"]["url"] for answer in (one, two)]
    assert urls == ["http://localhost:1", "http://127.0.0.1:2"]
    assert "Host" in one.headers["vary"] or one.headers["cache-control"] == "no-cache"


def test_the_schema_marks_the_fields_that_the_settings_page_edits() -> None:
    """As the published server does: all of ``[map]``, and of a theme all but its name."""
    definitions = core_schema()["$defs"]

    assert all(shown["tangram_mutable"] for shown in definitions["MapConfig"]["properties"].values())
    layers = definitions["MapConfig"]["properties"]["layers_visibility"]
    assert layers["tangram_widget"] == "map-settings"
    theme = definitions["ThemeDefinition"]["properties"]
    assert [name for name, shown in theme.items() if "tangram_mutable" not in shown] == ["name"]
    assert not [name for name, shown in definitions.items() if "description" in shown]


def test_the_radar_style_is_complete() -> None:
    """Each layer names a source that the style has; texts have glyphs."""
    (style,) = [one for one in default_styles() if not isinstance(one, str)]
    used = {layer.get("source") for layer in style["layers"]} - {None}

    assert used == set(style["sources"]) == {"carto"}
    assert {"glyphs", "sprite", "version", "name", "id"} <= style.keys()
    assert len({layer["id"] for layer in style["layers"]}) == len(style["layers"])
