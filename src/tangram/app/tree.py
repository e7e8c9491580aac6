"""The children of the supervision tree, and everything that outlives one incarnation.

    broker, incarnation [state, bus, plugin:NAME ..., channels, web]

1. Each child's ``run`` makes its part anew and puts it into the `Incarnation`, where the other parts look it
   up at the moment of use.
2. `Tree` keeps the budgets of restarts, the quarantine, secrets and sockets, which outlive an incarnation.
3. ``state`` comes first: the attributes that plugins set on it live exactly as long as the strategy lets
   plugins live.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal

import attrs
import structlog
import trio

from tangram.app.absence import refusal_of
from tangram.app.addresses import base_url, origin_policy
from tangram.app.draining import drained
from tangram.app.forwarding import internal_children
from tangram.app.incarnation import PLUGIN, Incarnation
from tangram.app.internal_listener import address_of, open_internal
from tangram.app.measuring import Measuring
from tangram.app.node_parts import node_parts, open_nodes, placed_names
from tangram.app.recorder import RecorderPlace
from tangram.app.redis_outage import RedisOutage
from tangram.app.start_gate import StartGate
from tangram.broker import EmbeddedBroker, ExternalBroker, SharedBroker
from tangram.bus import Bus
from tangram.channels.disconnects import RESTART, SHUTDOWN, Disconnect
from tangram.channels.origins import OriginPolicy
from tangram.channels.policy import Authorizer
from tangram.cluster import Fencing, NodeRecord, Nodes, Placement, load_functions
from tangram.config import BrokerConfig, Config, broker_folder, cache_dir
from tangram.console.access import OperatorAccess
from tangram.console.control import ConsoleControl
from tangram.console.routes import console_router
from tangram.declared.counts import PushCounts
from tangram.declared.table import DeclaredTable
from tangram.errors import StartFailed
from tangram.gateway.channels import Channels
from tangram.gateway.longpoll import longpoll_router
from tangram.gateway.pushes import DeclaredPushes
from tangram.gateway.sse import sse_router
from tangram.gateway.tokens import token_router
from tangram.history.recording import Recording
from tangram.history.rules import History, Rule, Rules
from tangram.history.store import HistoryStore
from tangram.http.closing import LAST_REQUEST_TIME
from tangram.http.forward.in_flight import InFlight
from tangram.http.listeners import HeldSocket, close_listeners
from tangram.plugins.authorizers import authorizers_of
from tangram.plugins.host import PluginHost
from tangram.plugins.registry import LoadedPlugin, LoadedPlugins
from tangram.plugins.state import BackendState
from tangram.presence.keeper import load_presence
from tangram.supervision import Backoff, Child, Crash, SupervisionEvent, Supervisor, Window, open_supervisor
from tangram.task_status import RelayedStatus
from tangram.web.channel_docs import channel_docs_router
from tangram.web.operator import ServerControl
from tangram.web.site import AppMount, SiteParts

__all__ = ["CRASH_GRACE", "PLUGIN", "Secrets", "StopReason", "Tree"]

log = structlog.get_logger("tangram.app")

CRASH_GRACE: Final = 0.05
"""Seconds that requests in flight get after a crash: most answers take less, and clients should not wait
longer for the server to be back (the longest gap that is promised is 250 ms)."""

REPLACED_TIME: Final = 1.0
"""The same for a process whose clients another one serves already: it can wait until each kept connection has
had a request, whose answer closes it. A client then never meets a connection that is being closed."""

WEB_MARGIN: Final = 1.0
"""Seconds of the web's stop time after its grace: to close the remaining connections by force."""

StopReason = Literal["crash", "restart", "replaced", "stop"]
"""``replaced``: the process ends, and another one serves its sockets."""


@attrs.frozen
class Secrets:
    """The secrets of a server, made once and kept in the state folder."""

    jwt: str = attrs.field(repr=False)
    operator: str = attrs.field(repr=False)


class Tree:
    """Makes the children of the root supervisor and of each incarnation.

    Args:
        config: the configuration.
        plugins: the loaded plugins.
        held: the listening sockets.
        secrets: the secrets in force.
        environ: for the cache folder.
        on_event: called with each event of every supervisor below the root.
        on_broker: called with the process id of the embedded broker whenever it changes.
        wrap: applied to each child; tests inject faults there.
        outer_nursery: outlives every incarnation; the WebSockets of one that has ended are closed there.
        serve_web: runs the child ``web``.
        on_bus_change: called with True or False when the bus connects to Redis or loses it.
        embedded: makes the embedded broker.
        rng: the source of all jitter.
        timer: returns the CPU seconds by which the bus gathers messages.
        measuring: the measurements of all incarnations.
    """

    operator: ServerControl | None = None
    console: ConsoleControl | None = None
    shared_broker: SharedBroker | None = None
    """The broker of the parent process, in place of an embedded one."""
    booted = False
    """Whether the first boot is over. From then on a plugin that cannot start is left out, also where
    ``strict`` is set."""
    nodes: Nodes | None = None
    """This node and those that it knows; None on a server that is not one of several."""
    internal: Sequence[HeldSocket] = ()  # on which other nodes reach this one
    in_flight: InFlight
    """The requests of placed plugins that are answered here."""
    placed: frozenset[str] = frozenset()
    """The plugins that run on one node at a time, and the services as ``PLUGIN/SERVICE``."""
    _records = False
    """Whether the recorder is a child of the root."""

    def __init__(
        self,
        config: Config,
        plugins: LoadedPlugins,
        *,
        held: Sequence[HeldSocket],
        secrets: Secrets,
        environ: Mapping[str, str],
        on_event: Callable[[SupervisionEvent], None],
        on_broker: Callable[[int | None], None],
        wrap: Callable[[Child], Child],
        outer_nursery: trio.Nursery,
        serve_web: Callable[..., Awaitable[None]],
        on_bus_change: Callable[[bool], None],
        embedded: Callable[[BrokerConfig], EmbeddedBroker] = EmbeddedBroker,
        rng: random.Random | None = None,
        timer: Callable[[], float] = time.thread_time,
        measuring: Measuring | None = None,
    ) -> None:
        self.measuring = measuring or Measuring()
        self.access = OperatorAccess(secrets.operator, config.server.root_path)
        """Checks the operator's requests; sessions and wrong tokens outlive an incarnation."""
        self.outer_nursery = outer_nursery
        self.config = config
        self.plugins = plugins
        self.held = held
        self.secrets = secrets
        self.environ = environ
        self.stop_reason: StopReason = "crash"
        """The reason of the parts' next stop: a crash, unless a restart or a stop was requested."""
        self.url = ""
        """The URL of Redis for plugins, as the broker reported it. The bus may have rights of its own: see
        ``server_url`` of the broker."""
        self.broker: EmbeddedBroker | ExternalBroker | SharedBroker | None = None
        self.incarnation = Incarnation()
        """The present incarnation, or the last one; without any part before the first start."""
        self.quarantined: dict[str, Crash] = {}
        """Plugins in quarantine, each with the cause, until the operator or a reload tries again. A crash of
        the broker makes a new incarnation with new children, which must know it."""
        self.placement = Placement(lambda: self.nodes, lambda: self.placed, self.stops)
        """Which node runs a plugin."""
        self._windows: dict[str, Window] = {}
        self.push_counts: dict[str, PushCounts] = {}  # by plugin, over all incarnations
        self._started: dict[str, set[str]] = {}
        """The temporary services of each plugin that have had their only start, for the same reason."""
        self.in_flight, self.redis_outage = InFlight(), RedisOutage(lambda: self.incarnation.has_redis)
        self._on_event = on_event
        self._on_broker = on_broker
        self._wrap = wrap
        self._embedded = embedded
        self._serve_web = serve_web
        self._on_bus_change = on_bus_change
        self._rng = rng or random.Random()  # noqa: S311 - jitter is no secret
        self._timer = timer
        self.rules = self._make_rules()
        """Which topics have a history."""
        self._recorder = RecorderPlace()
        settings = config.supervisor
        self.window = Window(settings.root_restarts, settings.root_window)
        """The budget of restarts of the broker and of the incarnation's own parts together."""

    # -- the root --------------------------------------------------------------------------------------------

    def root_children(self) -> list[Child]:
        """Return broker and incarnation, for ``rest_for_one``: the second needs the first."""
        times = self._root_times()
        start, stop = times["broker"]
        broker = Child("broker", self._run_broker, start_timeout=start, stop_timeout=stop)
        start, stop = times["incarnation"]
        return [
            self._wrap(broker),
            *self._recorder_children(),
            *self._node_children(),
            Child(
                "incarnation",
                self._run_incarnation,
                start_timeout=start,
                stop_timeout=stop,
                # It crashes only when its own budget is spent, or a plugin's that ends the server. The root
                # must not begin a new count.
                window=Window(0, self.config.supervisor.root_window),
                exhausted="escalate",
            ),
        ]

    def take_over(self, config: Config, plugins: LoadedPlugins, secrets: Secrets, root: Supervisor) -> None:
        """Use another configuration: for the root at once, for the parts in the next incarnation."""
        self.config, self.plugins, self.secrets = config, plugins, secrets
        self.access.renew(secrets.operator, config.server.root_path)
        self.rules = self._make_rules()
        limits = config.supervisor
        self.window.resize(limits.root_restarts, limits.root_window)
        root.adjust(self._root_times(), backoff=self.backoff(), shutdown_timeout=limits.shutdown_timeout)
        if isinstance(self.broker, EmbeddedBroker):
            self.broker.adjust(config.broker)

    def _make_rules(self) -> Rules:
        """Return the histories that the operator has set and plugins have declared."""
        operator = [
            Rule(
                one.topics,
                History(mode=one.mode, size=one.size, ttl=one.ttl, max_bytes=one.max_bytes),
            )
            for one in self.config.channel.history
        ]
        return Rules.of(
            operator,
            [one.plugin.history for one in self.plugins.plugins],
            new_epoch=self._new_epoch,
            identity=self._identity,
        )

    def _identity(self) -> str | None:
        """Return a name of the broker's stored data; None if the start of Redis stands for it."""
        return None if isinstance(self.broker, ExternalBroker | None) else self.broker.identity

    def _new_epoch(self) -> str:
        return f"{self._rng.getrandbits(48):012x}"

    def _root_times(self) -> dict[str, tuple[float, float]]:
        """Return the seconds for the start and the stop of each of the root's children."""
        limits = self.config.supervisor
        times = (limits.start_timeout, limits.stop_timeout)
        recorder = {"recorder": times} if self._records else {}
        nodes = {"nodes": times} if self.config.clustered else {}
        # Each of the incarnation's own children has a limit.
        incarnation = (float("inf"), limits.shutdown_timeout)
        return {"broker": times, "incarnation": incarnation, **recorder, **nodes}

    def backoff(self) -> Backoff:
        """Return the delays before restarts, as configured."""
        limits = self.config.supervisor
        return Backoff(initial=limits.backoff_initial, maximum=limits.backoff_max, reset=limits.backoff_reset)

    def _recorder_children(self) -> list[Child]:
        """Return the recorder, which outlives incarnations; none if no topic has a history."""
        self._records = bool(self.rules)
        if not self._records:
            return []
        start, stop = self._root_times()["recorder"]
        return [self._wrap(Child("recorder", self._run_recorder, start_timeout=start, stop_timeout=stop))]

    def _node_children(self) -> list[Child]:
        """Return the child that keeps this node's record; none if there are no other nodes."""
        if not self.config.clustered:
            return []
        start, stop = self._root_times()["nodes"]
        return [self._wrap(Child("nodes", self._run_nodes, start_timeout=start, stop_timeout=stop))]

    async def _run_nodes(self, *, task_status: trio.TaskStatus[Nodes]) -> None:
        assert self.broker is not None
        self.internal = open_internal(self.config, self.broker.server_url)
        self.nodes = open_nodes(self, self.broker.server_url, address_of(self.internal))
        self.placement.attach(self.nodes)
        self.nodes.on_leases(self.in_flight.notify)
        self.nodes.on_gone(self._on_node_gone)
        try:
            await self.nodes.run(task_status=task_status)
        finally:
            close_listeners(self.internal)
            self.nodes, self.internal = None, ()

    def stops(self, lease: str) -> bool:
        """Return whether a plugin ends because it, or this node, was told to stop."""
        name = lease.partition("/")[0]
        return self.stop_reason != "crash" or name in self.placement.stopped or name in self.quarantined

    def _on_node_gone(self, _node: NodeRecord) -> None:
        if self.incarnation.channels is not None:
            self.incarnation.channels.node_gone()

    async def start_recorder(self, root: Supervisor) -> None:
        """Start the recorder after a reload, or restart it if there are other rules.

        Without any rules it goes on with the last ones, so that a history that is turned on again has no gap.
        """
        wanted = bool(self.rules)
        if self._records:
            if wanted and self._recorder.has_other_rules(self.rules):
                await root.restart_child("recorder")
            return
        for child in self._recorder_children():
            await root.start_child(child)

    async def _run_recorder(self, *, task_status: trio.TaskStatus[Recording]) -> None:
        assert self.broker is not None
        await self._recorder.run(self.broker, self.rules, self._rng, task_status=task_status)

    async def _run_broker(self, *, task_status: trio.TaskStatus[str]) -> None:
        url = self.config.core.redis_url
        if url is not None:
            self.broker = ExternalBroker(url, on_change=self._on_external)
        elif self.shared_broker is not None:
            self.broker = self.shared_broker
        elif not isinstance(self.broker, EmbeddedBroker):
            self.broker = self._embedded(self.config.broker)
            self.broker.folder = broker_folder(self.config, self.environ)
        broker = self.broker
        assert broker is not None
        if isinstance(broker, EmbeddedBroker):
            broker.keeps = bool(self.rules)
        try:
            await broker.run(task_status=RelayedStatus(task_status, on_started=self._on_broker_url))
        finally:
            self._on_broker(None)

    def _on_broker_url(self, url: str) -> None:
        self.url = url
        if self.broker is not None:
            self._on_broker(self.broker.statistics().pid)

    def _on_external(self, up: bool) -> None:
        # A part that failed because Redis was away need not wait for the end of its back-off.
        if up and self.incarnation.supervisor is not None:
            self.incarnation.supervisor.hurry()

    # -- the incarnation -------------------------------------------------------------------------------------

    async def _run_incarnation(self, *, task_status: trio.TaskStatus[Supervisor]) -> None:
        """Run incarnations until one ends; charge and retry one that fails to start in a restart."""
        attempt = 0
        while True:
            try:
                await self._run_one_incarnation(task_status=task_status)
            except StartFailed as error:
                # The first boot is not retried; and the start is reported only once, so that the root decides
                # about a failure after it.
                if not self.booted or not self.window.charge(trio.current_time()):
                    raise
                delay = self.backoff().delay(attempt, self._rng.random())
                attempt += 1
                log.warning("incarnation did not start and is retried", cause=str(error), delay=delay)
                await trio.sleep(delay)
            else:
                return

    async def _run_one_incarnation(self, *, task_status: trio.TaskStatus[Supervisor]) -> None:
        limits = self.config.supervisor
        incarnation = self.incarnation = Incarnation(start_gate=StartGate(self._starting_together()))
        self.placed = placed_names(self.plugins.plugins, self.config.plugins)
        self.placement.stopped.clear()
        if self.nodes is not None:
            self.nodes.book.watch(self.placed)
        incarnation.hosts.update((one.name, self._host(one, incarnation)) for one in self.plugins.plugins)
        async with open_supervisor(
            self._parts(incarnation),
            name="incarnation",
            strategy=limits.strategy,
            window=self.window,
            backoff=self.backoff(),
            shutdown_timeout=limits.shutdown_timeout,
            rng=self._rng,
            on_event=self._on_event,
        ) as supervisor:
            incarnation.supervisor = supervisor
            try:
                task_status.started(supervisor)
                await supervisor.wait()
            finally:
                incarnation.supervisor = None

    def _parts(self, incarnation: Incarnation) -> list[Child]:
        limits = self.config.supervisor
        part = partial(Child, start_timeout=limits.start_timeout, stop_timeout=limits.stop_timeout)
        web_stop = max(limits.stop_timeout, self.config.server.drain_grace + WEB_MARGIN)
        children = [
            part("state", partial(self._run_state, incarnation)),
            part("bus", partial(self._run_bus, incarnation)),
            *internal_children(self, incarnation, stop_timeout=web_stop),
            *self._island_children(incarnation),
            *(self._plugin_child(incarnation, host) for host in incarnation.hosts.values()),
            part("channels", partial(self._run_channels, incarnation)),
            part("web", partial(self._serve_web, self, incarnation), stop_timeout=web_stop),
        ]
        return [self._wrap(child) for child in children]

    def _plugin_times(self, host: PluginHost) -> tuple[float, float]:
        """Return the seconds for a plugin's start and stop."""
        limits, services = self.config.supervisor, host.loaded.plugin.services
        # Its services have limits of their own; the rest is for the lifespan.
        start = limits.start_timeout + sum(service.start_timeout for service in services)
        return start, limits.stop_timeout + sum(service.stop_timeout for service in services)

    async def _run_plugin(
        self, incarnation: Incarnation, host: PluginHost, *, task_status: trio.TaskStatus[object]
    ) -> None:
        run = partial(self.redis_outage.run, host)
        if host.name not in self.placed:
            await run(task_status=task_status)
            return
        host.on_running = self.in_flight.notify
        await self.placement.run(
            host.name,
            drained(run, host.name, self),
            task_status=task_status,
            start_timeout=self._plugin_times(host)[0],
            on_standby=partial(incarnation.start_gate.give_up, host.name),
        )

    def _plugin_child(self, incarnation: Incarnation, host: PluginHost) -> Child:
        limits = self.config.supervisor
        start, stop = self._plugin_times(host)
        return Child(
            PLUGIN + host.name,
            partial(self._run_plugin, incarnation, host),
            start_timeout=start,
            stop_timeout=stop,
            window=self._windows.setdefault(host.name, Window(limits.plugin_restarts, limits.plugin_window)),
            exhausted="escalate" if limits.exhausted == "exit" else "quarantine",
            start_failure="fail" if self.config.core.strict and not self.booted else "quarantine",
            quarantined=self.quarantined.get(host.name),
        )

    def _starting_together(self) -> Iterator[str]:
        """Yield the names of the existing plugins that this incarnation starts."""
        for loaded in self.plugins.plugins:
            if loaded.plugin.island and loaded.name not in self.quarantined:
                yield loaded.name

    def keep_quarantine(self, event: SupervisionEvent) -> None:
        """Note a quarantined plugin, so that the next incarnation does not start it either."""
        match event.path:
            case ("incarnation", str(child)) if child.startswith(PLUGIN) and event.crash is not None:
                self.quarantined[child.removeprefix(PLUGIN)] = event.crash
                self.incarnation.start_gate.give_up(child.removeprefix(PLUGIN))
                self.placement.give_up(child.removeprefix(PLUGIN))

    def clear_quarantine(self, plugin: str | None = None) -> None:
        """Let one plugin, or all, start again with an empty window of restarts."""
        for name in [plugin] if plugin is not None else list(self._windows):
            self.quarantined.pop(name, None)
            if name in self._windows:
                self._windows[name].clear()
        if plugin is None:
            self.quarantined.clear()
            self._windows.clear()  # the configuration may have other limits now
            self._started.clear()  # and temporary services another task

    def _host(self, loaded: LoadedPlugin, incarnation: Incarnation) -> PluginHost:
        config = self.config.plugins.get(loaded.key, {})
        events = {"on_event": self._on_event, "rng": self._rng}
        started = self._started.setdefault(loaded.name, set())
        if not loaded.plugin.island:
            return PluginHost(
                loaded,
                state=incarnation.require_state,
                config=config,
                supervisor=events,
                started=started,
                push_counts=self.push_counts.setdefault(loaded.name, PushCounts()),
                place=self.placement.run,
            )
        # asyncio and its libraries are imported only where a plugin needs them.
        from tangram.compat.host import IslandHost

        return IslandHost(
            loaded,
            state=incarnation.require_state,
            shared=lambda: incarnation.island,
            gate=incarnation.start_gate,
            outage=self.redis_outage,
            fenced=lambda: None if self.nodes is None else incarnation,
            config=config,
            supervisor=events,
            started=started,
            place=self.placement.run,
        )

    def _island_children(self, incarnation: Incarnation) -> list[Child]:
        """Return the child that runs the loop of existing plugins, where they are to share one."""
        wanted = self.config.compat.islands == "one"
        if not wanted or not any(one.plugin.island for one in self.plugins.plugins):
            return []
        from tangram.compat.host import run_shared_island

        limits = self.config.supervisor
        run = partial(run_shared_island, partial(setattr, incarnation, "island"))
        return [Child("island", run, start_timeout=limits.start_timeout, stop_timeout=limits.stop_timeout)]

    async def _run_state(
        self, incarnation: Incarnation, *, task_status: trio.TaskStatus[BackendState]
    ) -> None:
        state = BackendState(
            self.config.with_redis_url(self.url),
            redis_client=incarnation.make_redis_client(),
            publish=incarnation.publish,
            subscribe=incarnation.subscribe,
            history=HistoryStore(self.rules, incarnation.call),
            presence=incarnation.presence,
            presence_nowait=incarnation.presence_nowait,
            loaded_plugins={one.dist_name: one.plugin for one in self.plugins.plugins},
            base_url=self.base_url,
            client_url=self.broker.cluster_url if isinstance(self.broker, ExternalBroker) else None,
        )
        incarnation.state = state
        try:
            task_status.started(state)
            await trio.sleep_forever()
        finally:
            incarnation.state = None
            await state.aclose()

    async def _run_bus(self, incarnation: Incarnation, *, task_status: trio.TaskStatus[Bus]) -> None:
        assert self.broker is not None
        bus = Bus(
            self.broker.server_url,
            sink=self.measuring.timed(incarnation.deliver),
            on_up=partial(self._on_bus, incarnation),
            rng=self._rng,
            timer=self._timer,
            history=self.rules or None,
            loads=(load_presence, load_functions) if self.config.clustered else (),
        )
        incarnation.bus = bus
        incarnation.fencing = None if self.nodes is None else Fencing(self.nodes)
        with self.measuring.counting_bus(bus):
            try:
                await bus.run(task_status=task_status)
            finally:
                incarnation.bus = None

    def _on_bus(self, incarnation: Incarnation, up: bool) -> None:
        self.redis_outage.note(up)
        self.measuring.note_redis(up=up)
        if incarnation.channels is not None:
            incarnation.channels.on_up(up)
        self._on_bus_change(up)

    async def _run_channels(
        self, incarnation: Incarnation, *, task_status: trio.TaskStatus[Channels]
    ) -> None:
        channels = Channels(
            self.config.channel,
            self.secrets.jwt,
            incarnation.publish_all_nowait,
            origins=self.origins,
            operator_token=self.secrets.operator,
            authorizers=self._authorizers(),
            up=incarnation.has_redis,
            outer_nursery=self.outer_nursery,
            backpressure=lambda: incarnation.bus,
            streaming_grace=self.config.channel.streaming_grace,
            history=self.rules,
            call=incarnation.call,
            nudge=self._recorder.nudge,
            declared=self._declared(incarnation),
            nodes=node_parts(self, incarnation.call_nowait),
        )
        incarnation.channels = channels
        with self.measuring.counting_channels(channels):
            try:
                await channels.run(task_status=task_status)
            finally:
                incarnation.channels = None

    def _authorizers(self) -> list[Authorizer]:
        return [
            authorizer for one in self.plugins.plugins for authorizer in authorizers_of(one.name, one.plugin)
        ]

    def _declared(self, incarnation: Incarnation) -> DeclaredPushes | None:
        """Return the handlers of declared pushes; None if there are none, and pushes cost no more."""
        table = DeclaredTable((one.name, one.plugin.channels) for one in self.plugins.plugins)
        why = partial(refusal_of, self)
        return DeclaredPushes(table, incarnation.push_pool, incarnation.push_relay, why) if table else None

    def _apps(self, incarnation: Incarnation) -> list[AppMount]:
        made = [host.app(self.config.server.max_body) for host in incarnation.hosts.values()]
        return [app for app in made if app is not None]

    def replace_plugin(self, new: LoadedPlugin) -> None:
        """Use another version of a plugin, which its next start runs.

        Routes and ``authorize`` are those of the new version at once.
        """
        incarnation, limits = self.incarnation, self.config.supervisor
        assert incarnation.supervisor is not None
        plugins = self.plugins.plugins
        plugins[[one.name for one in plugins].index(new.name)] = new
        host = incarnation.hosts[new.name]
        host.replace(new)
        incarnation.supervisor.adjust(
            {PLUGIN + new.name: self._plugin_times(host)},
            backoff=self.backoff(),
            shutdown_timeout=limits.shutdown_timeout,
        )
        if incarnation.state is not None:
            incarnation.state.loaded_plugins[new.dist_name] = new.plugin
        if incarnation.channels is not None:
            incarnation.channels.gate.authorizers = tuple(self._authorizers())
            incarnation.channels.declared = self._declared(incarnation)
        if incarnation.site is not None:
            incarnation.site.replace_plugins(plugins, self._apps(incarnation))

    def site_parts(self, incarnation: Incarnation, **more: object) -> SiteParts:
        """Return the parts of an incarnation's site; ``more`` comes from the engine."""
        assert self.operator is not None
        assert self.console is not None
        return SiteParts(
            config=self.config.with_redis_url(self.url),
            control=self.operator,
            operator_token=self.secrets.operator,
            state=incarnation.require_state,
            plugins=self.plugins.plugins,
            routers=[
                token_router(lambda: incarnation.channels),
                longpoll_router(lambda: incarnation.channels),
                console_router(self.console, self.access, incarnation.live_streams),
                sse_router(lambda: incarnation.channels),
                channel_docs_router(
                    lambda: [(one.name, one.plugin.channels) for one in self.plugins.plugins]
                ),
            ],
            access=self.access,
            apps=self._apps(incarnation),
            allowed=self.origins.allows,
            request_times=self.measuring.request_times,
            **more,  # type: ignore[arg-type]  # the engine's keyword arguments are checked by SiteParts
        )

    @property
    def origins(self) -> OriginPolicy:
        """The origins whose pages may use this server, the same for HTTP, tokens and WebSockets."""
        return origin_policy(self.config)

    # -- stops -----------------------------------------------------------------------------------------------

    def grace(self, config: Config) -> float:
        """Return the seconds that requests in flight get when the web is stopped now.

        Args:
            config: the configuration with which that web was started. After a reload `Tree.config` is
                another one, which the supervisor that waits for the web does not know.
        """
        if self.stop_reason == "crash":
            return min(CRASH_GRACE, config.server.drain_grace)
        return min(config.server.drain_grace, config.supervisor.shutdown_timeout / 2)

    def last_request_time(self) -> float:
        """Return the seconds in which a kept connection may begin its last request."""
        return REPLACED_TIME if self.stop_reason == "replaced" else LAST_REQUEST_TIME

    def keep_adopted(self) -> bool:
        """Return whether WebSockets are closed while the next incarnation starts already."""
        return self.stop_reason not in {"stop", "replaced"}

    def takes_waiting(self) -> bool:
        """Return whether no other engine will take the connections in the kernel's queue."""
        return self.stop_reason == "stop"

    def close_reason(self) -> Disconnect:
        """Return the close code for WebSockets when the web is stopped now."""
        return SHUTDOWN if self.stop_reason == "stop" else RESTART

    @property
    def base_url(self) -> str:
        """The URL of this server for a program on the same machine."""
        return base_url(self.config, self.held[0])

    @property
    def cache_folder(self) -> Path:
        """The folder of fetched files without a ``local_path``."""
        return cache_dir(self.environ)
