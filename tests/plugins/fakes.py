"""Fake entry points, plugins and states, for tests without an installation or a broker."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from typing import Any, cast

from tangram.bus.client import RedisClient
from tangram.config.model import Config
from tangram.plugins.plugin import Plugin
from tangram.plugins.registry import LoadedPlugin
from tangram.plugins.state import BackendState


class FakeDistribution(Distribution):
    """A distribution with a name and one file."""

    def __init__(self, name: str, direct_url: str | None = None) -> None:
        self._name = name
        self._direct_url = direct_url

    @property
    def name(self) -> str:
        return self._name

    def read_text(self, filename: str) -> str | None:
        return self._direct_url if filename == "direct_url.json" else None

    def locate_file(self, path: Any) -> Any:
        return Path(path)


def entry_point(
    name: str,
    value: str,
    dist: str,
    *,
    group: str = "tangram.plugins",
    direct_url: str | None = None,
) -> EntryPoint:
    point = EntryPoint(name, value, group)
    vars(point)["dist"] = FakeDistribution(dist, direct_url)
    return point


def loaded(plugin: Plugin, name: str = "demo", **fields: Any) -> LoadedPlugin:
    plugin.name, plugin.dist_name = name, fields.get("dist_name", f"tangram-{name}")
    return LoadedPlugin(
        **{
            "name": name,
            "dist_name": plugin.dist_name,
            "plugin": plugin,
            "module": f"{name}_module",
            "entry_point": f"{name}_module:plugin",
            **fields,
        }
    )


class FakeBus:
    """A bus that records the published messages."""

    def __init__(self, receivers: int = 1) -> None:
        self.published: list[tuple[str, bytes | str]] = []
        self.receivers = receivers

    async def publish(self, channel: str, payload: bytes | str) -> int:
        self.published.append((channel, payload))
        return self.receivers

    def subscribe(self, *patterns: str) -> tuple[str, ...]:
        return patterns


def make_state(config: Config | None = None, bus: FakeBus | None = None) -> BackendState:
    bus = bus or FakeBus()
    redis = cast("RedisClient", object())
    return BackendState(config or Config(), redis_client=redis, publish=bus.publish, subscribe=bus.subscribe)


def state_of(state: BackendState) -> Callable[[], BackendState]:
    return lambda: state
