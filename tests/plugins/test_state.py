from __future__ import annotations

import sys
from pathlib import PurePosixPath
from typing import Any

import attrs
import pytest
import structlog
import trio
from trio.testing import MockClock

from tangram.config.model import Config, ServerConfig
from tangram.errors import PluginError
from tangram.plugins.plugin import Plugin
from tangram.plugins.state import MAX_WARNED, StateKey
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
    subscribed: object = state.subscribe("from:*", "to:*")
    assert subscribed == ("from:*", "to:*")


@attrs.define
class Reading:
    level: int
    place: PurePosixPath = attrs.field(factory=lambda: PurePosixPath("/a"))


@pytest.mark.parametrize(
    ("payload", "sent"),
    [
        ({"a": [1, None]}, b'{"a":[1,null]}'),
        ([1, 2.5], b"[1,2.5]"),
        (Reading(3), b'{"level":3,"place":"/a"}'),
        (bytearray(b"raw"), b"raw"),
        (memoryview(b"raw"), b"raw"),
        (None, b"null"),
        ("text", "text"),
        (b"bytes", b"bytes"),
    ],
)
async def test_other_payloads_than_text_and_bytes_are_published_as_json(payload: Any, sent: object) -> None:
    """Dicts, lists and attrs objects are encoded as JSON; text and bytes are sent unchanged."""
    bus = FakeBus()
    await make_state(bus=bus).publish("to:a:b", payload)

    assert bus.published == [("to:a:b", sent)]


async def test_a_payload_that_json_cannot_represent_is_an_error_that_says_so() -> None:
    """The error names the channel and the accepted types, and nothing is published."""
    bus = FakeBus()
    with pytest.raises(TypeError, match=r"object on 'to:a:b': expected bytes, str or a value"):
        await make_state(bus=bus).publish("to:a:b", object())

    assert bus.published == []


async def test_a_channel_without_receivers_is_warned_of_once() -> None:
    """A channel that neither browsers nor plugins receive is logged once."""
    bus = FakeBus(receivers=0)
    state = make_state(bus=bus)
    with structlog.testing.capture_logs() as logs:
        for channel in ("tox:y", "tox:y", "to:topic-without-event", "from:a:b", "to:a:b"):
            await state.publish(channel, "{}")

    assert [(one["event"], one["channel"], one["log_level"]) for one in logs] == [
        ("message without receivers", "tox:y", "warning"),
        ("message without receivers", "to:topic-without-event", "warning"),
    ]
    assert "to:<topic>:<event>" in logs[0]["hint"]
    bus.receivers = 1
    with structlog.testing.capture_logs() as logs:
        await state.publish("my-plugin:status", "alive")
    assert logs == []


async def test_the_warned_channels_are_bounded() -> None:
    """A plugin that publishes on ever new channels does not fill the log or the memory."""
    state = make_state(bus=FakeBus(receivers=0))
    with structlog.testing.capture_logs() as logs:
        for number in range(1_000):
            await state.publish(f"x{number}", "{}")

    assert len(logs) == MAX_WARNED


def test_plugins_may_hang_attributes_on_it() -> None:
    """Attributes that a plugin sets can be read by other plugins and routes."""
    state = make_state()
    setattr(state, "weather", "fine")  # noqa: B010 - code without type checks

    assert getattr(state, "weather") == "fine"  # noqa: B009 - code without type checks


def test_objects_are_kept_by_class_and_by_key() -> None:
    """``get`` finds the object of a class, a key its value, and an absent one says how to put it there."""
    limit, other = StateKey[int]("limit"), StateKey[int]("limit")
    state = make_state()
    settings = state.put(Settings(5))
    state.put(7, of=object)
    state[limit] = 3

    assert state.get(Settings) is settings
    assert state.get(object) == 7
    assert (state[limit], limit in state, other in state, str in state) == (3, True, False, False)
    del state[limit]
    for call in (lambda: state[limit], lambda: state.__delitem__(limit)):
        with pytest.raises(PluginError, match=r"write state\[limit\] = \.\.\. in a lifespan"):
            call()
    with pytest.raises(PluginError, match=r"write state\.put\(str\(\.\.\.\)\)"):
        state.get(str)


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
