"""The server as the console shows it: read from statistics only."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import attrs

from tangram.app.incarnation import Incarnation
from tangram.app.node_view import shown_nodes
from tangram.app.status import ServerOperator, ServerView, routes_of
from tangram.app.tree import Tree
from tangram.console.settings_view import settings_of, table_of
from tangram.gateway.connections import ConnectionStatistics
from tangram.gateway.tails import Tails, shown
from tangram.history.rules import History
from tangram.history.store import HistoryStore
from tangram.metrics.pictures import Pictures
from tangram.metrics.process import read_process, resident_of
from tangram.plugins.frontend import resolve_console
from tangram.plugins.registry import LoadedPlugin
from tangram.supervision import ChildStatistics, Crash, SupervisorStatistics

__all__ = ["ConsoleView"]

CONSOLE_PREFIX: Final = "pages"
"""The folder below ``/-/`` with the pages of plugins."""

KEPT: Final = 20
"""Kept messages that the page of a topic shows: a look, and no export."""

KEPT_BYTES: Final = 1_048_576
"""Bytes of these messages together, which pass the event loop in one piece."""


class ConsoleView:
    """The ``ConsoleControl`` of a server, over all incarnations.

    Args:
        server: the server whose state is shown.
        operator: answers the questions that the operator's routes have, too.
    """

    def __init__(self, server: ServerView, operator: ServerOperator) -> None:
        self._server = server
        self._operator = operator
        self._began = time.time()

    @property
    def _tree(self) -> Tree:
        assert self._server.tree is not None
        return self._server.tree

    @property
    def _incarnation(self) -> Incarnation:
        return self._tree.incarnation

    def overview(self) -> Mapping[str, Any]:
        """Return readiness with its reasons, Redis, connections and memory."""
        ready, reasons = self._operator.readiness()
        incarnation, measuring = self._incarnation, self._server.measuring
        channels = incarnation.channels
        return {
            "ready": ready,
            "reasons": list(reasons),
            "began": self._began,
            "redis": {
                "up": incarnation.has_redis,
                "since": measuring.redis_since,
                "cause": "" if incarnation.bus is None else incarnation.bus.statistics().cause,
            },
            "connections": 0 if channels is None else channels.connection_count,
        }

    def tree_view(self) -> Mapping[str, Any]:
        """Return the tree with times of starts, memory, the last crash, and nodes."""
        root = self._server.root
        statistics = None if root is None else root.statistics()
        broker = self._tree.broker
        pid = None if broker is None else broker.statistics().pid
        newest = None if statistics is None else max(_crashes(statistics), key=_when, default=None)
        return {
            "tree": None if statistics is None else statistics.to_dict(),
            "started": {"/".join(path): at for path, at in self._server.measuring.started.items()},
            "memory": {
                "process": read_process().resident_bytes,
                "broker": None if pid is None else resident_of(pid),
            },
            "last_crash": None if newest is None else attrs.asdict(newest),
            "quarantined": list(self._tree.quarantined),
            "not_loaded": [
                {"name": one.name, "cause": str(one.error)} for one in self._tree.plugins.failures
            ],
            "nodes": list(shown_nodes(self._tree)),
        }

    def topics(self) -> Sequence[Mapping[str, Any]] | None:
        """Return the numbers of each topic with members, or None while the channels restart."""
        return self._operator.topics()

    def histories(self) -> Sequence[Mapping[str, Any]]:
        """Return the patterns of topics with a history, each with its settings."""
        return [{"pattern": pattern, **_settings(found)} for pattern, found in self._tree.rules.rules]

    async def kept(self, topic: str) -> Mapping[str, Any] | None:
        """Return the newest messages that the history of a topic keeps, or None without a history."""
        rules = self._tree.rules
        found = rules.find(topic)
        if found is None:
            return None
        replay = await HistoryStore(rules, self._incarnation.call).newest(topic, KEPT, KEPT_BYTES)
        return {
            **_settings(found),
            "position": str(replay.position),
            "reason": replay.reason,
            "messages": [{"event": event, "payload": shown(payload)} for event, payload in replay.events],
        }

    def connections(self, limit: int) -> Sequence[ConnectionStatistics]:
        """Return the connections with the largest backlogs."""
        channels = self._incarnation.channels
        return [] if channels is None else channels.connections(limit)

    def plugin_views(self) -> Sequence[Mapping[str, Any]]:
        """Return each plugin with version, settings, routes, services and console page."""
        listed = {one["name"]: dict(one) for one in self._operator.plugins()}
        for loaded in self._tree.plugins.plugins:
            if loaded.name in listed:
                listed[loaded.name] |= self._plugin(loaded)
        return list(listed.values())

    def _plugin(self, loaded: LoadedPlugin) -> Mapping[str, Any]:
        given = self._tree.config.plugins.get(loaded.key, {})
        try:
            settings = table_of(loaded.plugin.structure_config(given, key=loaded.key), given)
        except Exception as error:  # noqa: BLE001 - the class of a plugin's author may raise anything
            settings = [{"key": "(unreadable)", "value": repr(error), "default": False}]
        return {
            "version": _version(loaded.dist_name),
            "settings": settings,
            "routes": list(routes_of(loaded.plugin)),
            "service_details": [
                {"name": one.name, "restart": one.restart, "threaded": one.threaded}
                for one in loaded.plugin.services
            ],
            "console": self._console_link(loaded),
        }

    def _console_link(self, loaded: LoadedPlugin) -> str | None:
        """Return the address of a plugin's own page, relative to the console."""
        wanted = loaded.plugin.console
        if wanted is None:
            return None
        return (
            f"..{wanted}" if wanted.startswith("/") else f"{CONSOLE_PREFIX}/{quote(loaded.name)}/index.html"
        )

    def page_folder(self, plugin: str) -> Path | None:
        """Return the folder of a plugin's own page, or None if it has none."""
        found = (one for one in self._tree.plugins.plugins if one.name == plugin)
        return next((resolve_console(loaded) for loaded in found), None)

    def settings_view(self) -> Sequence[Mapping[str, Any]]:
        """Return the server's own settings in force."""
        return list(settings_of(self._tree.config))

    @property
    def pictures(self) -> Pictures:
        """The pictures of the last hours."""
        return self._server.measuring.pictures

    @property
    def tails(self) -> Tails:
        """The topics that the operator follows."""
        return self._incarnation.tails

    def disconnect(self, conn: str) -> bool:
        """Close one connection; return False if there is none of this id."""
        channels = self._incarnation.channels
        return channels is not None and channels.disconnect(conn)

    async def publish(self, channel: str, payload: bytes) -> int:
        """Publish on Redis, and return the number of Redis clients that received it."""
        return await self._operator.publish(channel, payload)

    async def restart_plugin(self, name: str) -> None:
        """Restart one plugin, also one in quarantine."""
        await self._operator.restart_plugin(name)

    async def stop_plugin(self, name: str) -> None:
        """Stop one plugin until it is restarted by hand, or with everything else."""
        await self._operator.stop_plugin(name)

    async def wait_event(self) -> None:
        """Wait for the next event of a supervisor."""
        await self._server.event_log.wait_event()


def _settings(history: History) -> Mapping[str, Any]:
    return {"mode": history.mode, "size": history.size, "ttl": history.ttl}


def _crashes(supervisor: SupervisorStatistics) -> Iterator[Crash]:
    """Yield the last crash of every child in the tree."""
    for child in supervisor.children:
        yield from _crashes_of(child)


def _crashes_of(child: ChildStatistics) -> Iterator[Crash]:
    if child.last_crash is not None:
        yield child.last_crash
    for nested in child.nested:
        yield from _crashes(nested)


def _when(crash: Crash) -> float:
    return crash.when or 0.0


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except (PackageNotFoundError, ValueError):
        return ""
