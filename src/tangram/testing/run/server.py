"""A whole server in the test's own loop: with ports, state and a broker of its own."""

from __future__ import annotations

import random
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from tangram.app import Boot, Server
from tangram.bus.resp import current_dial
from tangram.config import BrokerConfig, LoadedConfig
from tangram.plugins import Plugin
from tangram.plugins.registry import LoadedPlugins
from tangram.redis_url import parse_redis_url
from tangram.supervision import Child, SupervisionEvent, SupervisorStatistics
from tangram.testing.checks.census import UNDER_TEST, Census, take_census, track_started, wait_nothing_left
from tangram.testing.checks.invariants import Evidence, InvariantBroken, broken
from tangram.testing.checks.log_records import LogRecords, record_logs, secrets_of
from tangram.testing.checks.quarantines import describe_quarantines
from tangram.testing.fakes.memory_broker import MemoryBroker
from tangram.testing.fakes.memory_port import MemoryPort
from tangram.testing.fakes.redis_route import RedisRoute
from tangram.testing.injection.child_faults import FaultPorts, InjectedFault
from tangram.testing.injection.io_faults import FaultyDial
from tangram.testing.run.lifetime import Lifetime, NeverStarted, TangramEnded, was_cancelled
from tangram.testing.run.setup import configure, load_given

if TYPE_CHECKING:
    import httpx

    from tangram.client import Channel, ClientSocket
    from tangram.plugins import BackendState

__all__ = ["CHEAP", "RunningTangram", "TangramEnded", "open_tangram"]

EVENT_SECONDS: Final = 60.0
"""Seconds that a test waits for an event that must come: a bound that ends a hang."""

LOOK_EVERY: Final = 0.01
"""Seconds between two polls of a tree that has no event for a condition."""

SLOWEST_LOOK: Final = 0.16
"""Most seconds between two polls where nothing happens, for example in a back-off of 5 s."""

DELIVERY_COST: Final = 0.0005
"""Seconds of CPU, where a seed draws them: sometimes enough for the bus to gather messages."""

TOKEN_SECONDS: Final = 3600
"""Seconds for which a token with metadata is valid."""

STEADY_LOOKS: Final = 3
"""Consecutive polls in which the tree must be complete: a crash is reported one scheduling later."""

CHEAP: Final = (
    "nothing_left_alive",
    "stops_within_bound",
    "nobody_is_stubborn",
    "ends_with_its_status",
    "starts_in_order",
    "stops_in_reverse_order",
    "no_two_incarnations",
    "healthy_siblings_untouched",
    "each_crash_logged_once",
    "no_secret_in_logs",
    "close_codes_documented",
)
"""Invariants that hold for every test and cost it some milliseconds; checked at the end by default."""


class RunningTangram:
    """A server under test, made by `open_tangram`."""

    def __init__(self, server: Server, ports: FaultPorts, http: httpx.AsyncClient, logs: LogRecords) -> None:
        self.server = server
        self.http = http
        """An httpx client whose base is the server."""
        self.logs = logs
        """Every log record, as dicts."""
        self.memory: MemoryBroker | None = None
        """The broker, where it is in memory."""
        self.port: MemoryPort | None = None
        """The web port, where it is in memory."""
        self.redis_route = RedisRoute()
        """The way to the broker, for faults of the network."""
        self.faulty_dial = FaultyDial(self.redis_route.dial)
        """Stands before that way, for exceptions out of single operations."""
        self.clients: list[ClientSocket] = []
        """Every channel client that was opened by `open_socket`."""
        self.planned = False
        """Whether the test restarts single children, which no strategy explains."""
        self.stubborn_allowed: set[str] = set()
        """Children that the test makes ignore their cancellation."""
        self.out_of_turn: set[str] = set()
        """Children that the test itself cancels: they may end before their turn."""
        self.stubborn: list[str] = []
        """Tasks that had to be cancelled behind a shield of their own, and where they stood."""
        self.events: list[SupervisionEvent] = []
        """Every event of the tree, from the first start."""
        self.ports = ports
        self._changed = trio.Event()
        self._ended = trio.Event()
        self._secrets: set[str] = set()
        self.status = 0
        """The exit status, once the server has ended."""
        self.stopped_at: int | None = None
        """Number of events when the stop began."""
        self.stop_seconds: float | None = None
        """Seconds that the stop took."""
        self._stop_began = 0.0

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``."""
        return self.server.base_url

    @property
    def operator(self) -> dict[str, str]:
        """Return the header that authenticates the operator."""
        assert self.server.tree is not None
        return {"authorization": f"Bearer {self.server.tree.secrets.operator}"}

    @property
    def redis_url(self) -> str:
        """Return the URL of this server's Redis."""
        assert self.server.tree is not None
        return self.server.tree.url

    def note(self, event: SupervisionEvent) -> None:
        """Keep an event and wake waiters.

        A root that gives up, also because a child does not end, begins the server's end.
        """
        self.events.append(event)
        if event.kind == "ready":  # a reload may bring others, and then restarts
            self._secrets |= secrets_of(self.server.tree)
        if event.kind == "gave_up" and (not event.path or event.child is not None):
            self._begin_stop()
        self._changed.set()
        self._changed = trio.Event()

    def connect(self) -> socket.socket:
        """Connect a non-blocking socket to the web port, for clients that misbehave."""
        if self.port is not None:
            return self.port.connect()
        held = self.server.held[0]
        client = socket.create_connection((held.host, held.port), timeout=5.0)
        client.setblocking(False)
        return client

    def crash(self, child: str, error: BaseException | None = None) -> None:
        """Raise an exception inside a child; return at once.

        Args:
            child: ``bus``, ``web``, ``channels``, ``broker`` or ``plugin:NAME``.
            error: an `InjectedFault` unless given.

        Raises:
            NothingToStrike: there is no such child.
            StruckAlready: it does not run just now, or is being crashed already.
        """
        self.ports.strike(child, error or InjectedFault(f"a test crashed {child!r}"))

    async def wait_event(
        self, kind: str, child: str | None = None, *, after: int = 0, seconds: float = EVENT_SECONDS
    ) -> SupervisionEvent:
        """Return the first event of ``kind`` (and ``child``) among ``events[after:]``.

        The event is waited for if need be.

        Raises:
            AssertionError: it did not come within ``seconds``; the message lists the events that did.
        """
        with trio.move_on_after(seconds):
            while True:
                for event in self.events[after:]:
                    if event.kind == kind and child in {None, event.child}:
                        return event
                if self._ended.is_set():
                    break  # no further event will come
                await self.wait_change()
        came = [f"{event.kind} {event.child}" for event in self.events[after:]]
        raise AssertionError(f"no {kind!r} of {child!r} within {seconds} s; the events were {came}")

    async def wait_change(self) -> None:
        """Wait for the next event of the tree, or for the end of the server.

        After the end this returns at once.
        """
        await self._changed.wait()

    async def wait_ready(self, count: int, *, seconds: float = EVENT_SECONDS) -> None:
        """Wait until the server has become ready for the ``count``-th time."""
        with trio.move_on_after(seconds):
            while self.server.ready_count < count and not self._ended.is_set():
                await self.wait_change()
        if self.server.ready_count >= count:
            return
        raise AssertionError(f"ready {self.server.ready_count} times within {seconds} s, expected {count}")

    async def wait_steady(self, *, seconds: float = EVENT_SECONDS) -> str:
        """Wait until the server is at rest, and return how.

        Returns:
            ``"up"``, ``"quarantined"`` where all but plugins in quarantine are up, or ``"ended"`` where
                the server has ended by itself.

        Raises:
            AssertionError: it did not come to rest within ``seconds``; the message lists the missing
                children.
        """
        missing = ["the supervisor"]
        with trio.move_on_after(seconds):
            looks, pause = 0, LOOK_EVERY
            while looks < STEADY_LOOKS:
                if self._ended.is_set():
                    return "ended"
                missing = self.missing()
                looks = 0 if missing else looks + 1
                with trio.move_on_after(pause) as scope:
                    await self.wait_change()
                quiet = scope.cancelled_caught
                looks = looks if quiet else 0
                pause = min(2 * pause, SLOWEST_LOOK) if quiet and missing else LOOK_EVERY
            return "quarantined" if self._quarantined() else "up"
        raise AssertionError(f"it did not come to rest within {seconds:g} s; missing: {', '.join(missing)}")

    def missing(self) -> list[str]:
        """Return the children that should run and do not, with their states."""
        server = self.server
        if server.root is None or server.tree is None:
            return ["the supervisor"]
        found = [
            f"{child.name} ({child.state})"
            for supervisor in _supervisors(server.root.statistics())
            for child in supervisor.children
            if child.state not in {"running", "finished", "quarantined"}
        ]
        if server.tree.incarnation.supervisor is None:
            found.append("the incarnation")
        if server.tree.incarnation.bus is None or not server.tree.incarnation.bus.up:
            found.append("the bus")
        return found

    def _quarantined(self) -> bool:
        root = self.server.root
        return root is not None and any(
            child.state == "quarantined"
            for supervisor in _supervisors(root.statistics())
            for child in supervisor.children
        )

    def stop(self) -> None:
        """Begin the end; return at once."""
        self._begin_stop()
        self.server.stop()

    def _begin_stop(self) -> None:
        if self.stopped_at is None:
            self.stopped_at = len(self.events)
            self._stop_began = trio.current_time()

    @property
    def ended(self) -> bool:
        """Return whether the server has ended."""
        return self._ended.is_set()

    async def wait_ended(self) -> int:
        """Wait until the server has ended by itself; return its exit status."""
        await self._ended.wait()
        return self.status

    async def serve(self, *, task_status: trio.TaskStatus[Server]) -> None:
        """Run the server; `open_tangram` calls this."""
        UNDER_TEST.set(self)
        if self.memory is not None:
            self.redis_route.inner = self.memory.dial
        current_dial.set(self.faulty_dial.dial)
        try:
            self.status = await self.server.run(task_status=task_status)
        finally:
            if self.stopped_at is not None:
                self.stop_seconds = trio.current_time() - self._stop_began
            self._ended.set()
            self._changed.set()

    @asynccontextmanager
    async def open_socket(self, **settings: Any) -> AsyncIterator[ClientSocket]:
        """Open a channel client that is connected to ``/websocket``.

        Args:
            settings: as for ``tangram.client.open_socket``.
        """
        from tangram.client import open_socket

        async with open_socket(self.url, **settings) as client:
            self.clients.append(client)
            yield client

    @asynccontextmanager
    async def join(
        self,
        topic: str,
        *,
        id: str | None = None,  # noqa: A002 - the protocol's word
        metadata: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[Channel]:
        """Join a topic as a browser does, with a connection and a token of its own.

        Example::

            async with tangram.join("flights:eu", id="ann") as channel:
                reply = await channel.push("select", {"icao": "3944ef"})

        Args:
            topic: the topic.
            id: the id of the token; a new one by default.
            metadata: further claims of the token: ``Sender.metadata`` of handlers.

        Raises:
            Refused: with the reason of the server.
        """
        from tangram.channels import tokens
        from tangram.client import fetch_token

        minted = await fetch_token(self.url, topic, id)
        token = minted.token
        if metadata is not None:
            assert self.server.tree is not None
            claims = tokens.Claims(minted.id, topic, int(time.time()) + TOKEN_SECONDS)
            token = tokens.mint(claims, self.server.tree.secrets.jwt, metadata)
        async with self.open_socket() as client:
            yield await client.join(topic, token=token)

    @property
    def state(self) -> BackendState:
        """The state that the plugins share, for example to publish and to subscribe in a test."""
        assert self.server.tree is not None
        return self.server.tree.incarnation.require_state()

    def push_results(self, plugin: str) -> dict[str, int]:
        """Return how often the declared pushes of a plugin were answered, by result.

        Results are ``ok``, ``invalid``, ``refused``, ``failed``, ``timeout`` and ``interrupted``.
        """
        assert self.server.tree is not None
        return {name: count for name, count in self.server.tree.push_counts[plugin].results.items() if count}

    def pushes_waiting(self, plugin: str) -> int:
        """Return the number of declared pushes of a plugin that wait for their handler."""
        assert self.server.tree is not None
        pool = self.server.tree.incarnation.push_pool(plugin)
        return 0 if pool is None else pool.statistics().waiting

    def evidence(self, **more: Any) -> Evidence:
        """Return the evidence about this server so far, for `check`.

        Args:
            more: further fields of `Evidence`.
        """
        self._secrets |= secrets_of(self.server.tree)
        return Evidence(
            events=self.events,
            order=self.ports.order,
            stopped_at=self.stopped_at,
            strategy=self.server.config.supervisor.strategy,
            logs=self.logs,
            secrets=sorted(self._secrets),
            stop_seconds=self.stop_seconds,
            stop_bound=self.server.config.supervisor.shutdown_timeout,
            stubborn_allowed=self.stubborn_allowed,
            stubborn=self.stubborn,
            out_of_turn=self.out_of_turn,
            status=self.status if self.ended else None,
            overlaps=self.ports.overlaps,
            planned=self.planned,
            close_codes=[code for client in self.clients for code in client.server_codes],
            **more,
        )


def _supervisors(top: SupervisorStatistics) -> list[SupervisorStatistics]:
    below = [one for child in top.children for nested in child.nested for one in _supervisors(nested)]
    return [top, *below]


@asynccontextmanager
async def open_tangram(
    plugins: Iterable[Plugin | str] | LoadedPlugins = (),
    config: Mapping[str, Any] | LoadedConfig | None = None,
    *,
    wrap: Callable[[Child], Child] | None = None,
    fakes: bool = False,
    memory_port: bool = False,
    seed: int | None = None,
    checks: Iterable[str] = CHEAP,
    on_server: Callable[[RunningTangram], None] | None = None,
) -> AsyncIterator[RunningTangram]:
    """Run a server until the end of the block, and check invariants.

    Args:
        plugins: ``Plugin`` objects (called ``plugin``, ``plugin_2``, ... unless their ``name`` is set),
            or names of installed ones. Or plugins that were loaded already, taken as they are.
        config: tables and keys as in ``tangram.toml``; ports and folders are chosen unless given. Or a
            configuration that was read already, taken as it is.
        wrap: applied to each child of the tree, inside the fault port.
        fakes: use a broker in memory, so that the server needs neither a process nor real time. This
            works with pytest-trio's ``autojump_clock``.
        memory_port: with ``fakes``, open the web port in memory as well: only ``tangram.http``,
            ``open_socket`` and ``connect`` reach it. For the native engine.
        seed: of all jitter; None for random jitter.
        checks: names of `INVARIANTS` that are checked when it has ended; ``()`` for none.
        on_server: called with the server before it boots.

    Raises:
        InvariantBroken: the block ended well, or was cancelled, but the server broke a promise.
        TangramEnded: it ended before it had started.
        NeverStarted: it neither started nor ended in its time.
        PluginError: a plugin that was given by its name cannot be loaded.
        ValueError: ``memory_port`` with another engine, a table ``[plugins.NAME]`` without a plugin, or
            two plugins of one name.
    """
    checks = tuple(checks)
    before = take_census()
    error: BaseException | None = None
    with track_started(), record_logs() as logs, ExitStack() as outer:
        if not isinstance(config, LoadedConfig):
            folder = Path(outer.enter_context(tempfile.TemporaryDirectory(prefix="tangram-test-")))
            config = configure(config or {}, folder)
        port = _memory_port(config) if memory_port else None
        running = _prepare(plugins, config, wrap, fakes=fakes, port=port, seed=seed, logs=logs)
        if port is not None:
            outer.enter_context(port.dialled())
        if on_server is not None:
            on_server(running)
        try:
            async with Lifetime(running).held():
                running.http.base_url = running.url
                yield running
        except BaseException as raised:  # noqa: BLE001 - raised again below, if invariants say nothing better
            error = raised
    _judge(running, before, checks, error)


def _memory_port(loaded: LoadedConfig) -> MemoryPort:
    if (engine := loaded.config.server.effective_engine) != "native":
        # It makes Trio sockets of accepted ones, and Trio refuses a subclass of socket.socket.
        raise ValueError(
            f"memory_port needs [server] engine 'native', it is {engine!r}: leave one of them out"
        )
    return MemoryPort()


def _judge(
    running: RunningTangram, before: Census, checks: tuple[str, ...], error: BaseException | None
) -> None:
    """Raise the exception of the block, or `InvariantBroken`.

    A broken invariant counts more than a cancellation; beside another exception it is a note.
    """
    left = None
    if "nothing_left_alive" in checks:
        left = wait_nothing_left(before, running, redis_port=_port_of(running))
    clients = running.memory.unclosed if running.memory is not None else None
    found = broken(running.evidence(left=left, broker_clients=clients), checks)
    # These errors say less than a broken invariant: it never started, or the test was cancelled.
    if found and (error is None or isinstance(error, TangramEnded | NeverStarted) or was_cancelled(error)):
        raise InvariantBroken(found) from error
    if error is not None:
        for one in found:
            error.add_note(f"beside it, an invariant does not hold: {one}")
        for line in describe_quarantines(running.events):
            error.add_note(f"beside it, {line}")
        raise error


def _port_of(running: RunningTangram) -> int | None:
    tree = running.server.tree
    if tree is None or not tree.url:
        return None
    address = parse_redis_url(tree.url)
    return None if address.path else address.port


def _prepare(
    plugins: Iterable[Plugin | str] | LoadedPlugins,
    loaded: LoadedConfig,
    wrap: Callable[[Child], Child] | None,
    *,
    fakes: bool,
    port: MemoryPort | None,
    seed: int | None,
    logs: LogRecords,
) -> RunningTangram:
    import httpx

    ports = FaultPorts()
    rng = random.Random(seed)  # noqa: S311 - jitter
    boot = Boot(
        loaded=loaded,
        environ={"HOME": str(loaded.config.server.state_dir)},
        plugins=plugins if isinstance(plugins, LoadedPlugins) else load_given(plugins, loaded.config.plugins),
        signals=False,
        wrap=ports.wrap if wrap is None else lambda child: ports.wrap(wrap(child)),
        rng=rng,
    )
    memory = None
    if fakes:
        memory = MemoryBroker(BrokerConfig(port=0))
        boot = attrs.evolve(boot, embedded=lambda _config: memory)
    if seed is not None:
        boot = attrs.evolve(boot, timer=_drawn_timer(random.Random(seed)))  # noqa: S311 - reproducible
    if port is not None:
        boot = attrs.evolve(boot, listen=port.listen)
    # On loopback nothing is verified: a store of certificates takes 0.2 s.
    transport = httpx.AsyncHTTPTransport(verify=False) if port is None else port.transport()
    server = Server(boot)
    running = RunningTangram(server, ports, httpx.AsyncClient(timeout=10.0, transport=transport), logs)
    running.memory, running.port = memory, port
    server.event_log.listen(running.note)
    return running


def _drawn_timer(rng: random.Random) -> Callable[[], float]:
    """Return a timer of the CPU that depends on no machine, but on the seed.

    A delivery costs up to `DELIVERY_COST` by it.
    """
    now = 0.0

    def timer() -> float:
        nonlocal now
        now += rng.uniform(0.0, DELIVERY_COST)
        return now

    return timer
