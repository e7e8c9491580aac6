"""What the operator sees and may do: the answers of ``/-/``, read from statistics and from nothing else."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs
import trio

from tangram.app.event_log import EventLog
from tangram.app.tree import PLUGIN, Tree
from tangram.config import normalise
from tangram.errors import NoSuchChild
from tangram.supervision import ChildStatistics, Supervisor, Watchdog, thread_statistics

__all__ = ["Operations"]

RESTART_WAIT = 2.0
"""Seconds that a request waits for a plugin that restarts: as long as a person waits without wondering."""

_NOTHING: Mapping[str, str] = {}


class ServerView(Protocol):
    """What is read of the server."""

    ledger: EventLog
    tree: Tree | None
    root: Supervisor | None
    watchdog: Watchdog | None
    stopping: bool


class Operations:
    """The ``Operator`` of a site, for one server over all its incarnations."""

    def __init__(self, server: ServerView) -> None:
        self._server = server
        self._began = trio.current_time()

    def health(self) -> bool:
        """It is asked on the loop, so the loop turns; false once the end has begun."""
        return not self._server.stopping

    def readiness(self) -> tuple[bool, Sequence[str]]:
        """Ready is: broker and bus there, and every part up that is not in quarantine."""
        reasons = list(self._reasons())
        return not reasons, reasons

    def _reasons(self) -> Sequence[str]:
        tree = self._tree
        if self._server.stopping:
            return ["the server is stopping"]
        if tree.incarnation is None:
            return ["the incarnation is starting"]
        found = []
        if tree.bus is None or not tree.bus.up:
            found.append("redis is away")
        for child in tree.incarnation.statistics().children:
            # The web answers this very question: it may still be called starting while it does.
            state = _state_of(child)
            if state not in {"running", "quarantined", "finished"} and child.name != "web":
                found.append(f"{child.name} is {state}")
        return found

    def supervision(self) -> Mapping[str, Any]:
        """The whole tree, the watchdog, and the last events, as plain values."""
        server, tree = self._server, self._tree
        watchdog = server.watchdog
        return {
            "now": time.time(),
            "uptime": trio.current_time() - self._began,
            "ready": self.readiness()[0],
            "counts": server.ledger.counts,
            "tree": None if server.root is None else server.root.statistics().to_dict(),
            "watchdog": None if watchdog is None else attrs.asdict(watchdog.statistics()),
            "threads": attrs.asdict(thread_statistics()),
            "bus": None if tree.bus is None else attrs.asdict(tree.bus.statistics()),
            "broker": None if tree.broker is None else attrs.asdict(tree.broker.statistics()),
            "channels": None if tree.channels is None else _plain(tree.channels.statistics()),
            "events": [event.to_dict() for event in server.ledger.events],
        }

    def plugins(self) -> Sequence[Mapping[str, Any]]:
        """Every plugin that the configuration names, also those that could not be loaded."""
        tree = self._tree
        children = self._children()
        listed = [self._plugin(name, children.get(PLUGIN + name)) for name in tree.hosts]
        left_out = (
            {"name": failure.name, "state": "not loaded", "error": str(failure.error)}
            for failure in tree.plugins.failures
        )
        return [*listed, *left_out]

    def _plugin(self, name: str, child: ChildStatistics | None) -> Mapping[str, Any]:
        host = self._tree.hosts[name]
        loaded = host.loaded
        told: dict[str, Any] = {
            "name": name,
            "distribution": loaded.dist_name,
            "state": self._state(name, child),
            "services": [service.name for service in loaded.plugin.services],
            "ghosts": [attrs.asdict(ghost) for ghost in host.statistics().ghosts],
        }
        if child is not None:
            told |= {
                "incarnation": child.incarnation,
                "restarts": child.restarts,
                "next_delay": child.next_delay,
                "last_crash": None if child.last_crash is None else attrs.asdict(child.last_crash),
            }
        if name in self._tree.web_failures:
            told["error"] = self._tree.web_failures[name]
        return told

    def _state(self, name: str, child: ChildStatistics | None) -> str:
        if name in self._tree.patience.waiting:
            return "waiting for redis"
        return "stopped" if child is None else _state_of(child)

    async def restart_plugin(self, name: str) -> None:
        """Restart one plugin, also one in quarantine; its window begins anew.

        Raises:
            NoSuchChild: no plugin is called so, or none runs at the moment.
            StartFailed: it failed again.
        """
        tree = self._tree
        wanted = normalise(name)
        for known, host in tree.hosts.items():
            if wanted in {normalise(known), host.loaded.key} and tree.incarnation is not None:
                tree.forgive(known)
                await tree.incarnation.restart_child(PLUGIN + known)
                return
        raise NoSuchChild(f"no plugin is called {name!r}")

    def unavailable(self) -> Mapping[str, str]:
        """Plugins that do not run now; asked at every request, so the usual answer costs next to nothing."""
        down = [name for name, host in self._tree.hosts.items() if not host.running]
        if not down:
            return _NOTHING
        states = self._children()
        return {name: _why_down(name, states.get(PLUGIN + name)) for name in down}

    async def wait_available(self, plugin: str) -> str | None:
        """Until the plugin serves: ``None``; a reason at once if it is in quarantine, else after
        `RESTART_WAIT`.

        Most restarts are over in milliseconds, and whoever asked meanwhile need not know.
        """
        with trio.move_on_after(RESTART_WAIT):
            while (reason := self.unavailable().get(plugin)) is not None:
                child = self._children().get(PLUGIN + plugin)
                if child is not None and child.state == "quarantined":
                    return reason
                await self._server.ledger.wait_news()
        return self.unavailable().get(plugin)

    @property
    def _tree(self) -> Tree:
        assert self._server.tree is not None
        return self._server.tree

    def _children(self) -> dict[str, ChildStatistics]:
        incarnation = self._tree.incarnation
        return (
            {} if incarnation is None else {child.name: child for child in incarnation.statistics().children}
        )


def _state_of(child: ChildStatistics) -> str:
    """As the child's own, but a plugin whose services are on their way down does not run any more."""
    ends = child.state == "running" and any(below.state == "closing" for below in child.nested)
    return "stopping" if ends else child.state


def _why_down(name: str, child: ChildStatistics | None) -> str:
    if child is not None and child.state == "quarantined":
        return f"plugin {name!r} is in quarantine: it crashed too often or did not start"
    return f"plugin {name!r} is restarting"


def _plain(statistics: attrs.AttrsInstance) -> dict[str, Any]:
    return attrs.asdict(
        statistics,
        value_serializer=lambda _inst, _attr, value: dict(value) if isinstance(value, Mapping) else value,
    )
