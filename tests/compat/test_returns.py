"""Services of existing plugins that return: called again, finished, or a crash."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tangram.compat import returns as module
from tangram.compat.plugin import Plugin
from tangram.compat.returns import MOST_CALLS, STREAM_SECONDS, WINDOW_SECONDS, Returns, has_extension
from tangram.compat.state import BackendState
from tangram.errors import PluginConfigError
from tangram.testing import open_broker, open_tangram


class Redis:
    """An outage that a test sets."""

    def __init__(self, *, away: bool) -> None:
        self.away = away
        self.waits: list[float] = []

    async def lost_since(self, _began: float) -> bool:
        await trio.lowlevel.checkpoint()
        return self.away

    async def wait(self, _name: str, pause: float) -> None:
        self.waits.append(pause)
        await trio.sleep(pause)


def named(plugin: Plugin, name: str) -> Plugin:
    plugin.name = name
    return plugin


async def test_a_return_in_an_outage_is_followed_by_a_call(autojump_clock: MockClock) -> None:
    """Every plugin's service is called again, each time; the pauses grow."""
    redis = Redis(away=True)
    returns = Returns("demo", redis, restart="transient", streams=lambda: False)
    for _ in range(9):
        assert await returns.reason(trio.current_time()) == "redis was away"
        await returns.wait()

    assert redis.waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]


async def test_a_return_without_an_outage_ends_the_work(autojump_clock: MockClock) -> None:
    """A service in Python has done its work, however long it ran."""
    returns = Returns("demo", Redis(away=False), restart="transient", streams=lambda: False)
    began = trio.current_time()
    await trio.sleep(1000)

    assert await returns.reason(began) is None


async def test_a_stream_that_ended_is_followed_by_a_bounded_number_of_calls(
    autojump_clock: MockClock,
) -> None:
    """Of an extension's service that has run for a while."""
    returns = Returns("demo", Redis(away=False), restart="transient", streams=lambda: True)
    began = trio.current_time()
    assert await returns.reason(began) is None
    for _ in range(MOST_CALLS):
        began = trio.current_time()
        await trio.sleep(STREAM_SECONDS)
        assert await returns.reason(began) == "its stream ended"
        await returns.wait()
    began = trio.current_time()
    await trio.sleep(STREAM_SECONDS)
    assert await returns.reason(began) is None
    await trio.sleep(WINDOW_SECONDS)
    assert await returns.reason(began) == "its stream ended"


@pytest.mark.parametrize("restart", ["temporary", "permanent"])
async def test_the_operators_restart_type_counts(restart: str, autojump_clock: MockClock) -> None:
    """``temporary`` ends the service; ``permanent`` calls it again in an outage alone."""
    for away in (True, False):
        returns = Returns("demo", Redis(away=away), restart=restart, streams=lambda: True)
        began = trio.current_time()
        await trio.sleep(10)
        expected = "redis was away" if away and restart == "permanent" else None

        assert await returns.reason(began) == expected


def test_an_extension_module_is_found() -> None:
    """Among the imported modules of the plugin's package."""
    assert has_extension("msgspec")
    assert not has_extension("tangram")
    assert module.WINDOW_SECONDS > module.PAUSE_MOST


@dataclass
class Own:
    restart: int = 0


def test_restart_is_separated_from_the_plugins_settings() -> None:
    """Unless the plugin has a setting of this name; a wrong value is a fault with its path."""
    plugin = Plugin()

    assert plugin.split_config({"a": 1, "restart": "permanent"}, key="demo") == ({"a": 1}, "permanent")
    assert plugin.split_config({"a": 1}, key="demo") == ({"a": 1}, None)
    assert Plugin(config_class=Own).split_config({"restart": 3}, key="demo") == ({"restart": 3}, None)
    with pytest.raises(PluginConfigError) as caught:
        plugin.structure_config({"restart": "always"}, key="demo")
    (fault,) = caught.value.faults
    assert str(fault) == (
        "expected one of 'permanent', 'transient', 'temporary', got 'always' @ plugins.demo.restart"
    )


@pytest.mark.slow
async def test_a_plugin_whose_services_have_returned_is_finished() -> None:
    """``/-/plugins`` shows it, the server stays ready, and the log has each return."""
    done, both = named(Plugin(), "done"), named(Plugin(), "both")

    @done.register_service()
    async def work(_state: BackendState) -> None:
        await asyncio.sleep(0)

    both.register_service()(work)

    @both.register_service()
    async def stay(_state: BackendState) -> None:
        await asyncio.Future()

    async with open_tangram([done, both], fakes=True) as tangram:
        with trio.fail_after(30):
            states: dict[str, str] = {}
            while states.get("done") != "finished" or len(_returned(tangram)) < 2:
                states = await _states(tangram)

        assert states == {"done": "finished", "both": "running"}
        assert _returned(tangram) == {("done", "work"), ("both", "work")}
        assert (await tangram.http.get("/-/readyz")).status_code == 200


def _returned(tangram: Any) -> set[tuple[str, str]]:
    records = [one for one in tangram.logs if one["event"] == "service returned"]
    return {(one["plugin"], one["service"]) for one in records}


async def _states(tangram: Any) -> dict[str, str]:
    answer = await tangram.http.get("/-/plugins", headers=tangram.operator)
    return {plugin["name"]: plugin["state"] for plugin in answer.json()}


@pytest.mark.slow
async def test_a_permanent_service_that_returns_has_crashed() -> None:
    """``[plugins.NAME] restart`` applies to all services; the plugin does not see the key."""
    plugin = named(Plugin(), "demo")
    seen: list[Any] = []

    @plugin.register_service()
    async def work(state: BackendState) -> None:
        seen.append(dict(state.config.plugins["demo"]))
        await asyncio.sleep(0)

    config = {"plugins": {"demo": {"restart": "permanent", "n": 1}}, "supervisor": {"plugin_restarts": 1}}
    async with open_tangram([plugin], config, fakes=True) as tangram:
        await tangram.wait_event("quarantined", "plugin:demo")

    assert seen
    assert all(table == {"n": 1} for table in seen)


@pytest.mark.slow
async def test_services_that_return_when_redis_goes_come_back_with_it() -> None:
    """As the published plugins with a Rust client do; no crash is charged."""
    plugin = named(Plugin(), "stream")
    received: list[bytes] = []

    @plugin.register_service()
    async def listen(state: BackendState) -> None:
        from redis.asyncio import Redis as Client
        from redis.exceptions import RedisError

        client = Client.from_url(state.config.core.redis_url)
        try:
            pubsub = client.pubsub()
            await pubsub.subscribe("stream")
            async for message in pubsub.listen():
                received.extend([message["data"]] if message["type"] == "message" else [])
        except RedisError:
            return
        finally:
            await client.aclose()

    async def receives(tangram: Any) -> None:
        received.clear()
        with trio.fail_after(60):
            while not received:
                if tangram.server.tree.incarnation.has_redis:
                    await tangram.server.tree.incarnation.publish("stream", b"x")
                await trio.sleep(0.05)

    with open_broker() as broker:
        async with open_tangram([plugin], {"core": {"redis_url": broker.url}}) as tangram:
            await receives(tangram)
            for _ in range(2):
                broker.kill()
                await trio.sleep(0.5)
                broker.start()
                await receives(tangram)

            assert [event for event in tangram.events if event.kind == "crashed"] == []
