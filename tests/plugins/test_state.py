from __future__ import annotations

import sys

import attrs
import pytest
import trio
from trio.testing import MockClock

from tangram.config.model import Config, ServerConfig
from tangram.errors import PluginError
from tangram.plugins.plugin import Plugin
from tests.plugins.fakes import FakeBus, make_state


@attrs.frozen
class Settings:
    rate: int = 1


async def test_publish_and_subscribe_go_to_the_bus() -> None:
    """Messages that a plugin publishes reach the bus unchanged."""
    bus = FakeBus()
    state = make_state(bus=bus)

    assert await state.publish("to:system:x", b"1") == 1
    assert bus.published == [("to:system:x", b"1")]
    assert state.subscribe("from:*", "to:*") == ("from:*", "to:*")


def test_plugins_may_hang_attributes_on_it() -> None:
    """Attributes that a plugin sets can be read by other plugins and routes."""
    state = make_state()
    state.weather = "fine"

    assert state.weather == "fine"


def test_a_configuration_is_found_by_plugin_name_and_class() -> None:
    """Plugin, name and class give the same validated object."""
    plugin = Plugin(config_class=Settings)
    plugin.dist_name = "tangram-demo"
    state = make_state()
    state.set_plugin_config("tangram-demo", Settings, Settings(5))

    assert state.plugin_config(plugin) == Settings(5)
    assert state.plugin_config("Tangram_Demo") == Settings(5)
    assert state.plugin_config(Settings).rate == 5


def test_a_configuration_that_is_not_there_is_an_error_that_names_it() -> None:
    """The error for the configuration of a plugin that does not run names the plugin."""
    with pytest.raises(PluginError, match="'ghost' has no configuration here"):
        make_state().plugin_config("ghost")
    with pytest.raises(PluginError, match="no running plugin has 'Settings'"):
        make_state().plugin_config(Settings)


async def test_the_http_client_is_made_when_first_used_and_closed() -> None:
    """There is one HTTP client, closed with the state; no other is created afterwards."""
    state = make_state()
    client = state.http_client

    assert state.http_client is client
    await state.aclose()
    assert client.is_closed
    with pytest.raises(PluginError, match="has ended"):
        _ = state.http_client


async def test_closing_is_bounded_and_survives_cancellation(autojump_clock: MockClock) -> None:
    """Closing a stubborn client takes two seconds, also during a cancellation."""

    class Stubborn:
        async def aclose(self) -> None:
            await trio.sleep_forever()

    state = make_state()
    state.http_client = Stubborn()  # type: ignore[assignment]
    with trio.CancelScope() as scope:
        scope.cancel()
        await state.aclose()
    assert trio.current_time() == pytest.approx(2)


def test_without_httpx_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without httpx the error names the package to install."""
    monkeypatch.setitem(sys.modules, "httpx", None)

    with pytest.raises(PluginError, match=r"pip install 'tangram-trio\[http\]'"):
        _ = make_state().http_client


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:2346"),
        ("0.0.0.0", "http://127.0.0.1:2346"),
        ("::", "http://[::1]:2346"),
        ("maps.example", "http://maps.example:2346"),
    ],
)
def test_the_base_url_is_one_that_can_be_used(host: str, url: str) -> None:
    """For a server that listens on all addresses, the base URL has a loopback address."""
    assert make_state(Config(server=ServerConfig(host=host))).base_url == url
