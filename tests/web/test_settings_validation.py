from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from tangram.plugins.plugin import Plugin
from tests.plugins.fakes import loaded
from tests.web.asgi import Answer, call, site_of


@attrs.frozen
class Shown:
    topbar_order: int
    names: list[int] = attrs.field(factory=list)


async def validate(name: str, values: object) -> Answer:
    site = site_of(loaded(Plugin(frontend_config_class=Shown)), loaded(Plugin(), "plain"))
    headers = {"content-type": "application/json"}
    return await call(
        site, "POST", f"/settings/validate/{name}", headers=headers, body=json.dumps(values).encode()
    )


@pytest.mark.parametrize("name", ["tangram_demo", "tangram-demo", "Tangram.Demo"])
async def test_good_values_are_a_success(name: str) -> None:
    """Lax values and unknown keys are accepted, under any spelling of the name."""
    answer = await validate(name, {"topbar_order": "3", "unknown": 1})

    assert (answer.status, answer.json()) == (200, {"success": True, "errors": {}})


async def test_each_bad_value_has_an_error_at_its_place() -> None:
    """Every fault, its place joined by dots, and status 200."""
    answer = await validate("tangram_demo", {"topbar_order": "three", "names": [1, "x"]})

    assert answer.status == 200
    told = answer.json()
    assert told["success"] is False
    assert set(told["errors"]) == {"topbar_order", "names.1"}


async def test_the_cores_own_settings() -> None:
    """tangram_core means the shell's settings, with the bounds of the configuration."""
    good: dict[str, Any] = {
        "core": {"theme": {"light": "light", "dark": "dark"}, "themes": []},
        "map": {"zoom": 5, "style": {"version": 8}, "styles": ["https://example.org/s.json"]},
        "channel": {"url": "http://127.0.0.1:2346"},
    }
    assert (await validate("tangram_core", good)).json() == {"success": True, "errors": {}}
    bad = {**good, "map": {"zoom": 25}, "core": {"theme": "x", "themes": [{"name": "a"}]}}
    errors = (await validate("tangram_core", bad)).json()["errors"]
    assert "map.zoom" in errors
    assert "core.themes.0.error" in errors


async def test_the_manifests_configuration_is_valid() -> None:
    """The configuration in the manifest passes validation."""
    shown = (await call(site_of(), "GET", "/manifest.json")).json()["core"]["config"]

    assert (await validate("tangram_core", shown)).json() == {"success": True, "errors": {}}


async def test_a_plugin_without_a_class_always_succeeds() -> None:
    """A plugin without a declared class accepts any values."""
    assert (await validate("tangram_plain", {"anything": 1})).json() == {"success": True, "errors": {}}


async def test_an_unknown_plugin_is_a_404() -> None:
    """Not a failure of the server."""
    assert (await validate("ghost", {})).status == 404


@pytest.mark.parametrize("values", [[1], "text", None, 3])
async def test_a_body_that_is_no_object_is_a_422(values: object) -> None:
    """With a detail list, as for every route."""
    answer = await validate("tangram_demo", values)

    assert answer.status == 422
    assert isinstance(answer.json()["detail"], list)
