"""The operator's view of a server: the answers of ``/-/``, read from statistics only."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

import attrs
import structlog
import trio

from tangram.app.absence import describe_absence, is_final
from tangram.app.event_log import EventLog
from tangram.app.incarnation import Incarnation
from tangram.app.measuring import Measuring
from tangram.app.node_view import move_plugin, shown_nodes
from tangram.app.tree import PLUGIN, Tree
from tangram.config import normalise
from tangram.errors import NoSuchChild, PluginError
from tangram.gateway.tails import Tails
from tangram.metrics.moment import Moment
from tangram.plugins.plugin import Plugin
from tangram.plugins.registry import LoadedPlugin
from tangram.plugins.reload import reload_plugin
from tangram.routing.router import Route
from tangram.supervision import ChildStatistics, Supervisor, Watchdog, thread_statistics

__all__ = ["ServerOperator", "ServerView", "routes_of"]

log = structlog.get_logger("tangram.app")

RESTART_WAIT: Final = 2.0
"""Seconds that a request waits for a plugin that restarts: as long as a person waits without doubt."""

_NOTHING: Final[Mapping[str, str]] = {}


class ServerView(Protocol):
    """The attributes of `Server` that are read here."""

    event_log: EventLog
    measuring: Measuring
    tree: Tree | None
    root: Supervisor | None
    watchdog: Watchdog | None
    stopping: bool


class ServerOperator:
    """The ``Operator`` of a server's site, over all incarnations.

    Args:
        server: the server whose state is shown.
    """

    def __init__(self, server: ServerView) -> None:
        self._server = server
        self._began = trio.current_time()

    def is_stopping(self) -> bool:
        """Return whether the stop of the server has begun."""
        return self._server.stopping

    def readiness(self) -> tuple[bool, Sequence[str]]:
        """Return whether the server is ready, and the reasons why not.

        It is ready when broker and bus are connected, and every part runs that is not in quarantine. Plugins
        that are in quarantine or could not be loaded are reasons too; they count if ``[server]
        ready_requires`` names them.
        """
        blocking = list(self._reasons())
        if self._server.stopping or self._incarnation.supervisor is None:
            return False, blocking
        required = {normalise(name) for name in self._tree.config.server.ready_requires}
        others: list[str] = []
        for plugin, reason in self._absent_plugins():
            counts = "all" in required or normalise(plugin) in required
            (blocking if counts else others).append(reason)
        return not blocking, [*blocking, *others]

    def _absent_plugins(self) -> Iterator[tuple[str, str]]:
        """Yield the plugins in quarantine and those not loaded, each with a public reason."""
        for name in self._tree.quarantined:
            yield name, f"{PLUGIN}{name} is quarantined"
        for failure in self._tree.plugins.failures:
            yield failure.name, f"{PLUGIN}{failure.name} is not loaded"

    def _reasons(self) -> Sequence[str]:
        incarnation = self._incarnation
        if self._server.stopping:
            return ["the server is stopping"]
        if incarnation.supervisor is None:
            return ["the incarnation is starting"]
        found = []
        if not incarnation.has_redis:
            found.append("redis is away")
        for child in incarnation.supervisor.statistics().children:
            # The web answers this very request, possibly while its own state is still "starting".
            state = _state_of(child)
            if state not in {"running", "quarantined", "finished"} and child.name != "web":
                found.append(f"{child.name} is {state}")
        return found

    def supervision(self) -> Mapping[str, Any]:
        """Return the whole tree, the watchdog's findings and the last events, as plain values."""
        server, incarnation = self._server, self._incarnation
        watchdog, broker = server.watchdog, self._tree.broker
        bus, channels = incarnation.bus, incarnation.channels
        return {
            "now": time.time(),
            "uptime": trio.current_time() - self._began,
            "ready": self.readiness()[0],
            "counts": server.event_log.counts,
            "tree": None if server.root is None else self._tree_shown(server.root),
            "watchdog": None if watchdog is None else attrs.asdict(watchdog.statistics()),
            "threads": attrs.asdict(thread_statistics()),
            "bus": None if bus is None else attrs.asdict(bus.statistics()),
            "broker": None if broker is None else attrs.asdict(broker.statistics()),
            "channels": None if channels is None else _plain(channels.statistics()),
            "events": [event.to_dict() for event in server.event_log.events],
        }

    def _tree_shown(self, root: Supervisor) -> Mapping[str, Any]:
        """Return the tree as plain values, with the state of plugins that stand by."""
        tree = root.statistics().to_dict()
        waiting = self._tree.placement.waiting
        for part in tree["children"] if waiting else ():
            for nested in part.get("nested") or ():
                for child in nested["children"]:
                    if child["state"] == "running" and child["name"].removeprefix(PLUGIN) in waiting:
                        child["state"] = "standby"
        return tree

    def plugins(self) -> Sequence[Mapping[str, Any]]:
        """Return every plugin that the configuration names, also those that could not be loaded."""
        children = self._children()
        listed = [self._plugin(name, children.get(PLUGIN + name)) for name in self._incarnation.hosts]
        not_loaded = (
            {"name": failure.name, "state": "not loaded", "error": str(failure.error)}
            for failure in self._tree.plugins.failures
        )
        return [*listed, *not_loaded]

    def _plugin(self, name: str, child: ChildStatistics | None) -> Mapping[str, Any]:
        host = self._incarnation.hosts[name]
        loaded = host.loaded
        found: dict[str, Any] = {
            "name": name,
            "distribution": loaded.dist_name,
            "state": self._state(name, child),
            "services": [service.name for service in loaded.plugin.services],
            "routes": list(routes_of(loaded.plugin)),
            "topics": list(self._topics_of(name, loaded.plugin)),
            "ghosts": [attrs.asdict(ghost) for ghost in host.statistics().ghosts],
        }
        if child is not None:
            found |= {
                "incarnation": child.incarnation,
                "restarts": child.restarts,
                "next_delay": child.next_delay,
                "last_crash": None if child.last_crash is None else attrs.asdict(child.last_crash),
            }
        if name in self._incarnation.web_failures:
            found["error"] = self._incarnation.web_failures[name]
        return found

    def _topics_of(self, name: str, plugin: Plugin) -> Iterable[str]:
        """Return the topics that the plugin's code names: it authorizes, keeps or receives them."""
        authorized = plugin.authorize if isinstance(plugin.authorize, Mapping) else ()
        return dict.fromkeys([*self._incarnation.topics.get(name, ()), *authorized, *plugin.history])

    def _state(self, name: str, child: ChildStatistics | None) -> str:
        if name in self._tree.redis_outage.waiting:
            return "waiting for redis"
        if name in self._tree.placement.waiting:
            return "standby"
        return "stopped" if child is None else _state_of(child)

    def moment(self) -> Moment:
        """Return all numbers of now, for the metrics."""
        return self._server.measuring.moment(self._tree, self._tree.config.metrics.topics)

    async def restart_plugin(self, name: str, *, reload: bool = False) -> None:
        """Restart one plugin, also one in quarantine, with an empty window of restarts.

        Args:
            name: the plugin.
            reload: import its code again first.

        Raises:
            NoSuchChild: no plugin has this name, or no incarnation runs at the moment.
            PluginError: the code cannot be imported again; the plugin runs on as it is.
            StartFailed: the plugin did not start.
        """
        known, supervisor = self._find_plugin(name)
        if reload:
            old = self._incarnation.hosts[known].loaded
            self._tree.replace_plugin(reload_plugin(old, check=partial(self._check_replacement, old)))
            log.info("plugin imported again", plugin=known)
        self._tree.clear_quarantine(known)
        self._tree.placement.stopped.discard(known)
        await supervisor.restart_child(PLUGIN + known)

    async def stop_plugin(self, name: str) -> None:
        """Stop one plugin, until it is restarted by hand or with everything else.

        Raises:
            NoSuchChild: no plugin has this name, or no incarnation runs at the moment.
        """
        known, supervisor = self._find_plugin(name)
        self._tree.placement.stopped.add(known)
        await supervisor.stop_child(PLUGIN + known)

    def _find_plugin(self, name: str) -> tuple[str, Supervisor]:
        """Return a plugin's own name for any spelling of it, and its supervisor.

        Raises:
            NoSuchChild: no plugin has this name, or no incarnation runs at the moment.
        """
        incarnation = self._incarnation
        wanted = normalise(name)
        for known, host in incarnation.hosts.items():
            if wanted in {normalise(known), host.loaded.key} and incarnation.supervisor is not None:
                return known, incarnation.supervisor
        raise NoSuchChild(f"no plugin is called {name!r}")

    def _check_replacement(self, old: LoadedPlugin, new: LoadedPlugin) -> None:
        """Raise PluginError if a plugin cannot take the place of its old version."""
        if new.plugin.island != old.plugin.island:
            raise PluginError(
                f"plugin {new.name!r} has moved between tangram and tangram_core: restart the process",
                plugin=new.name,
            )
        new.plugin.structure_config(self._tree.config.plugins.get(new.key, {}), key=new.key)

    def nodes(self) -> Sequence[Mapping[str, Any]]:
        """Return each node that is alive; none on a server that is alone."""
        return shown_nodes(self._tree)

    async def move_plugin(self, name: str, to: str) -> Mapping[str, Any]:
        """Move a placed plugin to another node; see `move_plugin`."""
        return await move_plugin(self._tree, name, to)

    def topics(self) -> Sequence[Mapping[str, Any]] | None:
        """Return the numbers of each topic with members, or None while the channels restart."""
        channels = self._incarnation.channels
        return None if channels is None else [attrs.asdict(one) for one in channels.hub.topic_statistics()]

    @property
    def tails(self) -> Tails:
        """The topics that the operator follows."""
        return self._incarnation.tails

    async def publish(self, channel: str, payload: bytes) -> int:
        """Publish on Redis, and return the number of Redis clients that received it.

        Raises:
            BrokerUnavailable: Redis is away.
        """
        return await self._incarnation.publish(channel, payload)

    def unavailable(self) -> Mapping[str, str]:
        """Return the plugins that do not run now, each with the reason.

        Every request asks for it, so the usual answer costs next to nothing.
        """
        down = [name for name, host in self._incarnation.hosts.items() if not host.running]
        if not down:
            return _NOTHING
        waiting = self._tree.placement.waiting
        return {
            name: f"plugin {name!r} runs on another node"
            if name in waiting
            else describe_absence(self._tree, name)
            for name in down
        }

    def websockets_of(self, plugin: str) -> set[trio.CancelScope]:
        """Return the scopes of the plugin's WebSockets, which are cancelled when it ends."""
        host = self._incarnation.hosts.get(plugin)
        return set() if host is None else host.websockets

    async def wait_available(self, plugin: str) -> str | None:
        """Wait until a plugin runs, at most `RESTART_WAIT` seconds, and return None.

        Most restarts are over in milliseconds, so that a waiting client does not notice them.

        Returns:
            The reason why the plugin does not run; at once for one that waits for the operator.
        """
        with trio.move_on_after(RESTART_WAIT):
            while (reason := self.unavailable().get(plugin)) is not None:
                if is_final(self._tree, plugin):
                    return reason
                await self._server.event_log.wait_event()
        return self.unavailable().get(plugin)

    @property
    def _tree(self) -> Tree:
        assert self._server.tree is not None
        return self._server.tree

    @property
    def _incarnation(self) -> Incarnation:
        return self._tree.incarnation

    def _children(self) -> dict[str, ChildStatistics]:
        supervisor = self._incarnation.supervisor
        return {} if supervisor is None else {child.name: child for child in supervisor.statistics().children}


def routes_of(plugin: Plugin) -> Iterator[str]:
    """Yield method and path of each documented route, those of FastAPI's routers included."""
    routers: list[Any] = list(plugin.routers)
    for router in routers:
        for route in router.routes:
            if isinstance(route, Route):
                shown, path = route.include_in_schema and not route.mounted, route.template.display
            else:  # of FastAPI, which is imported only where a plugin needs it
                shown, path = getattr(route, "include_in_schema", False), getattr(route, "path", "")
            if shown:
                yield from (f"{method} {path}" for method in sorted(route.methods or ()))


def _state_of(child: ChildStatistics) -> str:
    """Return a child's state, with that of a running plugin's services.

    It is "stopping" while they are being stopped, and "finished" when all of them have returned.
    """
    if child.state != "running":
        return child.state
    if any(below.state == "closing" for below in child.nested):
        return "stopping"
    services = [service.state for below in child.nested for service in below.children]
    is_plugin = child.name.startswith(PLUGIN)
    return "finished" if is_plugin and services and set(services) == {"finished"} else "running"


def _plain(statistics: attrs.AttrsInstance) -> dict[str, Any]:
    return attrs.asdict(
        statistics,
        value_serializer=lambda _inst, _attr, value: dict(value) if isinstance(value, Mapping) else value,
    )
