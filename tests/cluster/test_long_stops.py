"""Services that ask for more time than a lost lease leaves them."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import trio

import tangram
from tangram.app.node_parts import long_stops
from tangram.config import Config
from tangram.config.model import ClusterConfig, CoreConfig
from tangram.plugins.registry import LoadedPlugin
from tangram.testing import open_tangram
from tangram.testing.fakes.memory_broker import MemoryBroker


def placed(
    instances: Literal["each", "one"] = "one", *, service: Literal["each", "one"] = "each"
) -> tangram.Plugin:
    plugin = tangram.Plugin(instances=instances)
    plugin.name = "globe"

    @plugin.register_service(stop_timeout=4.0, instances=service)
    async def save(state: tangram.BackendState) -> None:
        await trio.sleep_forever()

    @plugin.register_service(stop_timeout=1.8)
    async def quick(state: tangram.BackendState) -> None:
        await trio.sleep_forever()

    @plugin.register_service()
    async def usual(state: tangram.BackendState) -> None:
        await trio.sleep_forever()

    return plugin


def found(plugin: tangram.Plugin, *, url: str | None = "redis://other", ttl: float = 6.0) -> list[Any]:
    config = Config(core=CoreConfig(redis_url=url), cluster=ClusterConfig(lease_ttl=ttl))
    return list(long_stops([LoadedPlugin("globe", "tangram_globe", plugin, "globe", "globe:plugin")], config))


def test_only_placed_services_with_a_longer_time_of_their_own_are_named() -> None:
    """A time that fits, the default, a plugin on every node and a server alone are no news."""
    assert found(placed()) == [("globe/save", 4.0)]
    assert found(placed("each", service="one")) == [("globe/save", 4.0)]
    assert found(placed("each")) == []
    assert found(placed(), ttl=14.0) == []
    assert found(placed(), url=None) == []


@pytest.mark.usefixtures("autojump_clock")
async def test_the_start_names_both_settings(memory: MemoryBroker) -> None:
    """The line has the time, the limit, and a lease_ttl that is enough."""
    settings = {"core": {"redis_url": f"redis://127.0.0.1:{memory._port}"}}
    async with open_tangram([placed()], settings, checks=()) as running:
        lines = [one for one in running.logs if one["event"].startswith("stop_timeout is longer")]

    assert [(one["service"], one["stop_timeout"], one["lease_ttl"], one["enough"]) for one in lines] == [
        ("globe/save", 4.0, 6.0, 13.3)
    ]
