"""The children of the supervision tree, and what the parts of one incarnation know of each other.

    broker, incarnation [state, bus, plugin:NAME ..., channels, web]

1. Each child's ``run`` makes its part anew and puts it here; the others look it up late, when they need it.
   So a part may be restarted alone (``one_for_one``) or with all others, and nobody holds on to one that
   has ended.
2. What outlives an incarnation (sockets, the broker, secrets, plugins' modules) is handed in from above.
3. ``state`` comes first: attributes that plugins hang on it live exactly as long as the strategy lets
   plugins live.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import attrs
import structlog
import trio

from tangram.app.redis_outage import RedisOutage
from tangram.broker import EmbeddedBroker, ExternalBroker
from tangram.bus import Bus, RedisClient
from tangram.channels.disconnects import RESTART, SHUTDOWN, Disconnect
from tangram.channels.origins import OriginPolicy
from tangram.channels.policy import Authorizer
from tangram.config import BrokerConfig, Config, cache_dir
from tangram.errors import BrokerUnavailable, StartFailed
from tangram.gateway.channels import Channels
from tangram.gateway.tokens import token_router
from tangram.http.listeners import HeldSocket
from tangram.plugins.host import PluginHost
from tangram.plugins.registry import LoadedPlugin, LoadedPlugins
from tangram.plugins.state import BackendState
from tangram.supervision import Backoff, Child, Crash, SupervisionEvent, Supervisor, Window, open_supervisor
from tangram.task_status import RelayedStatus
from tangram.web.operator import Operator
from tangram.web.site import SiteParts

if TYPE_CHECKING:
    from tangram.compat.island import Island

__all__ = ["CRASH_GRACE", "PLUGIN", "Secrets", "Tree", "Why"]

log = structlog.get_logger("tangram.app")

PLUGIN = "plugin:"
"""What the names of plugins' children begin with: no plugin can be taken for a part of ours."""

CRASH_GRACE = 0.05
"""Seconds that requests in flight get when something crashed: most answers take less, and nobody should wait
longer for the server to be back (the longest gap that is promised is 250 ms)."""

WEB_MARGIN = 1.0
"""Seconds of the web's stop time beyond its grace: to close what is left, forcefully."""

Why = Literal["crash", "restart", "stop"]


@attrs.frozen
class Secrets:
    """What must not be told: made once, kept in the state folder."""

    jwt: str = attrs.field(repr=False)
    operator: str = attrs.field(repr=False)


class Tree:
    """Makes the children, and is what they find each other through."""

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
        on_feed: Callable[[bool], None],
        embedded: Callable[[BrokerConfig], EmbeddedBroker] = EmbeddedBroker,
        rng: random.Random | None = None,
        timer: Callable[[], float] = time.thread_time,
    ) -> None:
        self.outer_nursery = outer_nursery
        """Outlives every incarnation: who is still connected to one that has ended is told there to come
        back."""
        self.config = config
        self.plugins = plugins
        self.held = held
        self.secrets = secrets
        self.environ = environ
        self.operator: Operator | None = None
        self.why: Why = "crash"
        """Why the parts are stopped next: a crash, unless somebody asked for it."""
        self.url = ""
        self.broker: EmbeddedBroker | ExternalBroker | None = None
        self.incarnation: Supervisor | None = None
        self.state: BackendState | None = None
        self.bus: Bus | None = None
        self.channels: Channels | None = None
        self.island: Island | None = None
        """The loop that existing plugins share, if they do."""
        self.hosts: dict[str, PluginHost] = {}
        self.booted = False
        """The first boot is over: what cannot start from now on is left out, also where ``strict`` is set."""
        self.quarantined: dict[str, Crash] = {}
        """Plugins that were left stopped, with the cause, until the operator or a reload tries again. It is
        kept here because a broker's crash makes a new incarnation with new children."""
        self._windows: dict[str, Window] = {}
        self._started: dict[str, set[str]] = {}
        """The temporary services of each plugin that have had their one start. It is kept here for the same
        reason."""
        self.patience = RedisOutage(lambda: self.bus is not None and self.bus.up)
        self.web_failures: dict[str, str] = {}
        """Plugins parts of whose HTTP side cannot be served, with the cause."""
        self._on_event = on_event
        self._on_broker = on_broker
        self._wrap = wrap
        self._embedded = embedded
        self._serve_web = serve_web
        self._tell_feed = on_feed
        self._rng = rng or random.Random()  # noqa: S311 - jitter is no secret
        self._timer = timer
        settings = config.supervisor
        self.window = Window(settings.root_restarts, settings.root_window)
        """The root's budget, of the broker and of the incarnation's own parts together."""

    # -- the root --------------------------------------------------------------------------------------------

    def root_children(self) -> list[Child]:
        """Broker and incarnation, under ``rest_for_one``: who loses its broker begins anew."""
        times = self._root_times()
        start, stop = times["broker"]
        broker = Child("broker", self._run_broker, start_timeout=start, stop_timeout=stop)
        start, stop = times["incarnation"]
        return [
            self._wrap(broker),
            Child(
                "incarnation",
                self._run_incarnation,
                start_timeout=start,
                stop_timeout=stop,
                # It ends by itself only when its own budget is spent, or a plugin's where that ends the
                # server: the root must not begin a new count.
                window=Window(0, self.config.supervisor.root_window),
                exhausted="escalate",
            ),
        ]

    def take_over(self, config: Config, plugins: LoadedPlugins, secrets: Secrets, root: Supervisor) -> None:
        """Another configuration for the next incarnation, and at once for what stands above it."""
        self.config, self.plugins, self.secrets = config, plugins, secrets
        limits = config.supervisor
        self.window.resize(limits.root_restarts, limits.root_window)
        root.adjust(self._root_times(), backoff=self.backoff(), shutdown_timeout=limits.shutdown_timeout)
        if isinstance(self.broker, EmbeddedBroker):
            self.broker.adjust(config.broker)

    def _root_times(self) -> dict[str, tuple[float, float]]:
        """Seconds for the start and the stop of the root's children."""
        limits = self.config.supervisor
        return {
            "broker": (limits.start_timeout, limits.stop_timeout),
            # Each of the incarnation's own children has a limit.
            "incarnation": (float("inf"), limits.shutdown_timeout),
        }

    def backoff(self) -> Backoff:
        limits = self.config.supervisor
        return Backoff(initial=limits.backoff_initial, maximum=limits.backoff_max, reset=limits.backoff_reset)

    async def _run_broker(self, *, task_status: trio.TaskStatus[str]) -> None:
        url = self.config.core.redis_url
        if url is not None:
            self.broker = ExternalBroker(url, on_change=self._on_external)
        elif not isinstance(self.broker, EmbeddedBroker):
            self.broker = self._embedded(self.config.broker)
        broker = self.broker
        assert broker is not None
        try:
            await broker.run(task_status=RelayedStatus(task_status, on_started=self._heard_url))
        finally:
            self._on_broker(None)

    def _heard_url(self, url: str) -> None:
        self.url = url
        if self.broker is not None:
            self._on_broker(self.broker.statistics().pid)

    def _on_external(self, up: bool) -> None:
        # Whoever failed because Redis was away need not wait out its back-off.
        if up and self.incarnation is not None:
            self.incarnation.hurry()

    # -- the incarnation -------------------------------------------------------------------------------------

    async def _run_incarnation(self, *, task_status: trio.TaskStatus[Supervisor]) -> None:
        """The incarnation. One that does not come up in a restart counts as another restart, and is begun
        anew.
        """
        attempt = 0
        while True:
            try:
                await self._run_one_incarnation(task_status=task_status)
            except StartFailed as error:
                # The first boot is not retried; and `started` is told once, so after it the root decides.
                if not self.booted or not self.window.charge(trio.current_time()):
                    raise
                delay = self.backoff().delay(attempt, self._rng.random())
                attempt += 1
                log.warning(
                    "the incarnation did not come up; it is begun anew", cause=str(error), delay=delay
                )
                await trio.sleep(delay)
            else:
                return

    async def _run_one_incarnation(self, *, task_status: trio.TaskStatus[Supervisor]) -> None:
        limits = self.config.supervisor
        self.hosts = {loaded.name: self._host(loaded) for loaded in self.plugins.plugins}
        async with open_supervisor(
            self._parts(),
            name="incarnation",
            strategy=limits.strategy,
            window=self.window,
            backoff=self.backoff(),
            shutdown_timeout=limits.shutdown_timeout,
            rng=self._rng,
            on_event=self._on_event,
        ) as supervisor:
            self.incarnation = supervisor
            try:
                task_status.started(supervisor)
                await supervisor.wait()
            finally:
                self.incarnation = None

    def _parts(self) -> list[Child]:
        limits = self.config.supervisor
        part = partial(Child, start_timeout=limits.start_timeout, stop_timeout=limits.stop_timeout)
        grace = self.config.server.drain_grace
        children = [
            part("state", self._run_state),
            part("bus", self._run_bus),
            *self._island_children(),
            *(self._plugin_child(host) for host in self.hosts.values()),
            part("channels", self._run_channels),
            part("web", self._run_web, stop_timeout=max(limits.stop_timeout, grace + WEB_MARGIN)),
        ]
        return [self._wrap(child) for child in children]

    def _plugin_child(self, host: PluginHost) -> Child:
        limits = self.config.supervisor
        services = host.loaded.plugin.services
        return Child(
            PLUGIN + host.name,
            partial(self.patience.run, host),
            # Its services have limits of their own; what is left is the lifespan's.
            start_timeout=limits.start_timeout + sum(service.start_timeout for service in services),
            stop_timeout=limits.stop_timeout + sum(service.stop_timeout for service in services),
            window=self._windows.setdefault(host.name, Window(limits.plugin_restarts, limits.plugin_window)),
            exhausted="escalate" if limits.exhausted == "exit" else "quarantine",
            start_failure="fail" if self.config.core.strict and not self.booted else "quarantine",
            quarantined=self.quarantined.get(host.name),
        )

    def keep_out(self, event: SupervisionEvent) -> None:
        """A child was quarantined: if it is a plugin, the next incarnation begins without it, too."""
        match event.path:
            case ("incarnation", str(child)) if child.startswith(PLUGIN) and event.crash is not None:
                self.quarantined[child.removeprefix(PLUGIN)] = event.crash

    def forgive(self, plugin: str | None = None) -> None:
        """Somebody mended the cause: one plugin, or all, may try again with a clear window."""
        for name in [plugin] if plugin is not None else list(self._windows):
            self.quarantined.pop(name, None)
            if name in self._windows:
                self._windows[name].clear()
        if plugin is None:
            self.quarantined.clear()
            self._windows.clear()  # the configuration may have other limits now
            self._started.clear()  # and services others to do

    def _host(self, loaded: LoadedPlugin) -> PluginHost:
        config = self.config.plugins.get(loaded.key, {})
        events = {"on_event": self._on_event, "rng": self._rng}
        started = self._started.setdefault(loaded.name, set())
        if not loaded.plugin.island:
            return PluginHost(
                loaded, state=self._the_state, config=config, supervisor=events, started=started
            )
        # asyncio and all that hangs on it are imported only where a plugin needs them.
        from tangram.compat.host import IslandHost

        return IslandHost(
            loaded,
            state=self._the_state,
            shared=lambda: self.island,
            config=config,
            supervisor=events,
            started=started,
        )

    def _island_children(self) -> list[Child]:
        """The loop that existing plugins share, where they are to share one."""
        wanted = self.config.compat.islands == "one"
        if not wanted or not any(one.plugin.island for one in self.plugins.plugins):
            return []
        from tangram.compat.host import run_shared_island

        limits = self.config.supervisor
        run = partial(run_shared_island, self._keep_island)
        return [Child("island", run, start_timeout=limits.start_timeout, stop_timeout=limits.stop_timeout)]

    def _keep_island(self, island: Island | None) -> None:
        self.island = island

    def _the_state(self) -> BackendState:
        if self.state is None:
            raise BrokerUnavailable("the server is between two incarnations; try again")
        return self.state

    async def _run_state(self, *, task_status: trio.TaskStatus[BackendState]) -> None:
        state = BackendState(
            self.config.with_redis_url(self.url),
            redis_client=RedisClient(lambda: self.bus),
            publish=self._publish,
            subscribe=self._subscribe,
            loaded_plugins={one.dist_name: one.plugin for one in self.plugins.plugins},
            base_url=self.base_url,
        )
        self.state = state
        try:
            task_status.started(state)
            await trio.sleep_forever()
        finally:
            self.state = None
            await state.aclose()

    async def _run_bus(self, *, task_status: trio.TaskStatus[Bus]) -> None:
        bus = Bus(self.url, sink=self._deliver, on_up=self._on_feed, rng=self._rng, timer=self._timer)
        self.bus = bus
        try:
            await bus.run(task_status=task_status)
        finally:
            self.bus = None

    async def _run_channels(self, *, task_status: trio.TaskStatus[Channels]) -> None:
        channels = Channels(
            self.config.channel,
            self.secrets.jwt,
            self._publish_all_nowait,
            origins=self.origins,
            operator_token=self.secrets.operator,
            authorizers=[
                Authorizer(one.name, one.plugin.authorize)
                for one in self.plugins.plugins
                if one.plugin.authorize is not None
            ],
            up=self.bus is not None and self.bus.up,
            outer_nursery=self.outer_nursery,
            backpressure=lambda: self.bus,
            streaming_grace=self.config.channel.streaming_grace,
        )
        self.channels = channels
        try:
            await channels.run(task_status=task_status)
        finally:
            self.channels = None

    async def _run_web(self, *, task_status: trio.TaskStatus[object]) -> None:
        await self._serve_web(self, task_status=task_status)

    def site_parts(self, **more: object) -> SiteParts:
        """What this incarnation's site is made of; ``more`` is the engine's."""
        assert self.operator is not None
        return SiteParts(
            config=self.config.with_redis_url(self.url),
            operator=self.operator,
            operator_token=self.secrets.operator,
            state=self._the_state,
            plugins=self.plugins.plugins,
            routers=[token_router(lambda: self.channels)],
            apps=[
                app
                for host in self.hosts.values()
                if (app := host.app(self.config.server.max_body)) is not None
            ],
            allowed=self.origins.allows,
            **more,  # type: ignore[arg-type]
        )

    # -- how the parts reach each other ----------------------------------------------------------------------

    def _deliver(self, batch: Sequence[tuple[bytes, bytes]]) -> None:
        if self.channels is not None:
            self.channels.deliver(batch)

    def _on_feed(self, up: bool) -> None:
        self.patience.note(up)
        if self.channels is not None:
            self.channels.on_up(up)
        self._tell_feed(up)

    def _the_bus(self) -> Bus:
        if self.bus is None:
            raise BrokerUnavailable("the bus is restarting; try again")
        return self.bus

    async def _publish(self, channel: str, payload: bytes | str) -> int:
        return await self._the_bus().publish(channel, payload)

    def _publish_all_nowait(
        self,
        messages: Sequence[tuple[str, bytes]],
        done: Callable[[Mapping[int, Exception]], None] | None,
    ) -> None:
        self._the_bus().publish_all_nowait(messages, done)

    def _subscribe(self, *patterns: str) -> object:
        return self._the_bus().subscribe(*patterns)

    def announce(self, channel: str, payload: bytes) -> None:
        """Publish if there is a way: an event must not fail because Redis is what failed."""
        if self.bus is not None and self.bus.up:
            try:
                self.bus.publish_nowait(channel, payload)
            except BrokerUnavailable:
                log.debug("an event could not be announced", channel=channel)

    @property
    def origins(self) -> OriginPolicy:
        """Whose pages may use this server: the same for answers over HTTP, tokens and WebSockets."""
        server, channel = self.config.server, self.config.channel
        public = urlsplit(channel.public_url).hostname if channel.public_url else None
        named = (server.host, *server.hosts, channel.host, public)
        return OriginPolicy(server.allowed_origins, [host for host in named if host])

    # -- ends ------------------------------------------------------------------------------------------------

    def grace(self, config: Config) -> float:
        """Seconds for what is in flight, when a web that was started with ``config`` is stopped now: a reload
        has put another one here by then, of which the supervisor that waits for this web knows nothing.
        """
        if self.why == "crash":
            return min(CRASH_GRACE, config.server.drain_grace)
        return min(config.server.drain_grace, config.supervisor.shutdown_timeout / 2)

    def keep_adopted(self) -> bool:
        """Whether WebSockets are told to go while the next incarnation starts already."""
        return self.why != "stop"

    def close_reason(self) -> Disconnect:
        """What WebSockets are told when the web is stopped now."""
        return SHUTDOWN if self.why == "stop" else RESTART

    @property
    def base_url(self) -> str:
        """Where this server answers, as a program on the same machine writes it."""
        server = self.config.server
        host, port = self.held[0].host, self.held[0].port
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
        scheme = "https" if server.tls_cert else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    @property
    def cache_folder(self) -> Path:
        """Where fetched files without a ``local_path`` go."""
        return cache_dir(self.environ)
