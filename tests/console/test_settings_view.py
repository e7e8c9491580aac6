"""The configuration in force, as the console shows it."""

from __future__ import annotations

from dataclasses import dataclass

import attrs

from tangram.config.model import ChannelConfig, Config, CoreConfig, ServerConfig
from tangram.console.settings_view import HIDDEN, settings_of, table_of


@attrs.frozen
class Weather:
    station: str = "LHR"
    api_key: str = ""
    upstream: str = "redis://user:pass@host/0"
    limits: dict[str, str] = attrs.Factory(dict)
    hidden: str = attrs.field(default="x", repr=False)


@dataclass
class Radar:
    range_km: float = 100.0


def test_secrets_are_starred_and_defaults_told_apart() -> None:
    """By the name of the key, by the author's ``repr=False``, in URLs, and at any depth."""
    table = Weather(api_key="sesame", limits={"password": "p", "rate": "5"})
    shown = {one["key"]: one for one in table_of(table, {"api-key": "sesame", "limits": {}})}

    assert shown["station"] == {"key": "station", "value": "LHR", "default": True}
    assert shown["api_key"] == {"key": "api_key", "value": HIDDEN, "default": False}
    assert shown["hidden"]["value"] == HIDDEN
    assert shown["limits"]["value"] == {"password": HIDDEN, "rate": "5"}
    assert "pass" not in shown["upstream"]["value"]


def test_dataclasses_and_plain_tables_are_shown() -> None:
    """The three kinds of ``config_class``, and none."""
    assert table_of(Radar(), {}) == [{"key": "range_km", "value": 100.0, "default": True}]
    assert table_of({"a": 1}, {"a": 1}) == [{"key": "a", "value": 1, "default": False}]


def test_the_server_shows_no_secret_of_its_own() -> None:
    """Neither its tokens nor the password of Redis are in the settings."""
    config = Config(
        core=CoreConfig(redis_url="redis://:sesame@host:6379"),
        server=ServerConfig(operator_token="sesame", port=99),
        channel=ChannelConfig(jwt_secret="sesame"),
    )
    tables = {one["table"]: {row["key"]: row for row in one["settings"]} for one in settings_of(config)}

    assert "sesame" not in repr(tables)
    assert tables["server"]["operator_token"]["value"] == HIDDEN
    assert tables["server"]["port"] == {"key": "port", "value": 99, "default": False}
    assert tables["server"]["max_body"]["default"] is True
    assert {"core", "server", "channel", "supervisor", "broker"} <= set(tables)
