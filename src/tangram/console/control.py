"""The running server, as the console sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tangram.gateway.connections import ConnectionStatistics
from tangram.gateway.tails import Tails
from tangram.metrics.pictures import Pictures

__all__ = ["ConsoleControl"]


class ConsoleControl(Protocol):
    """The numbers that the console shows, and the actions that it offers."""

    def overview(self) -> Mapping[str, Any]:
        """Return the line at the top of every page: readiness, Redis, connections and memory."""
        ...

    def tree_view(self) -> Mapping[str, Any]:
        """Return the supervision tree with times and memory, and the last crash."""
        ...

    def topics(self) -> Sequence[Mapping[str, Any]] | None:
        """Return the numbers of each topic with members, or None while the channels restart."""
        ...

    def histories(self) -> Sequence[Mapping[str, Any]]:
        """Return the patterns of topics with a history, each with its settings."""
        ...

    async def kept(self, topic: str) -> Mapping[str, Any] | None:
        """Return the newest messages that the history of a topic keeps, or None without a history.

        Raises:
            BrokerUnavailable: Redis is away.
            BrokerRefused: Redis refuses the call.
        """
        ...

    def connections(self, limit: int) -> Sequence[ConnectionStatistics]:
        """Return the connections with the largest backlogs."""
        ...

    def plugin_views(self) -> Sequence[Mapping[str, Any]]:
        """Return the plugins with version, configuration, routes, services and console page."""
        ...

    def page_folder(self, plugin: str) -> Path | None:
        """Return the folder of a plugin's own page, or None if it has none."""
        ...

    def settings_view(self) -> Sequence[Mapping[str, Any]]:
        """Return the server's own settings in force."""
        ...

    @property
    def pictures(self) -> Pictures:
        """The pictures of the last hours."""
        ...

    @property
    def tails(self) -> Tails:
        """The topics that the operator follows."""
        ...

    def disconnect(self, conn: str) -> bool:
        """Close one connection; return False if there is none of this id."""
        ...

    async def publish(self, channel: str, payload: bytes) -> int:
        """Publish on Redis, and return the number of Redis clients that received it."""
        ...

    async def restart_plugin(self, name: str) -> None:
        """Restart one plugin, also one in quarantine."""
        ...

    async def stop_plugin(self, name: str) -> None:
        """Stop one plugin until it is restarted by hand, or with everything else."""
        ...

    async def wait_event(self) -> None:
        """Wait for the next event of a supervisor."""
        ...
