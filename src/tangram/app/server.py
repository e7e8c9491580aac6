"""The life of the process: sockets, plugins, the tree, signals, and an end in order.

1. Sockets are opened before anything else starts: a port that is taken is told at once, and none is closed
   before the end.
2. Whoever asks for the end is obeyed in every state: during boot, a back-off, a restart. The tree is
   cancelled, stops child by child in reverse order, and is bounded by ``[supervisor] shutdown_timeout``.
3. SIGHUP reads the file again and restarts cleanly; a bad file is told and the old configuration stays. One
   that comes while the server boots is carried out once everything is up.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

import attrs
import structlog
import trio

from tangram.app.engines import serve_site
from tangram.app.event_log import EventLog, admin_message
from tangram.app.gc_pause import ANSWERS, CollectorPause
from tangram.app.reload import bound_changes, changed_secrets, check_tls, read_secrets, with_bound
from tangram.app.status import Operations
from tangram.app.tree import Secrets, Tree
from tangram.broker import EmbeddedBroker
from tangram.config import BrokerConfig, Config, LoadedConfig
from tangram.errors import (
    ConfigError,
    Fault,
    OperatorError,
    PluginConfigError,
    RestartsExhausted,
    StartFailed,
    SupervisionError,
)
from tangram.groups import unwrap_single
from tangram.http.listeners import HeldSocket, close_listeners, open_listeners
from tangram.plugins.registry import LoadedPlugins, load_plugins
from tangram.supervision import Child, Notifier, SupervisionEvent, Supervisor, Watchdog, open_supervisor

__all__ = ["EX_SOFTWARE", "Boot", "Server", "answer_old_names", "run_server"]

log = structlog.get_logger("tangram.app")

EX_SOFTWARE = 70
"""The exit status after too many crashes: BSD's sysexits(3), an internal software error."""


def _keep(child: Child) -> Child:
    return child


@attrs.frozen(kw_only=True)
class Boot:
    """What a server is started with."""

    loaded: LoadedConfig
    """The configuration."""
    reload: Callable[[], LoadedConfig] | None = None
    """Reads it again, for SIGHUP; raises ``ConfigError`` where it is wrong."""
    environ: Mapping[str, str] = attrs.field(factory=lambda: os.environ)
    """For the state and cache folders."""
    plugins: LoadedPlugins | None = None
    """Plugins that are loaded already; ``None``: those that the configuration names."""
    signals: bool = True
    """Listen for INT, TERM and HUP; only in the main thread of a process of our own."""
    on_first_ready: Callable[[], None] = lambda: None
    """Told once everything is up for the first time."""
    on_stopping: Callable[..., None] = lambda _seconds, *, asked_for: None  # noqa: ARG005
    """Told when the end begins: ``on_stopping(shutdown_timeout, asked_for=...)``. A signal tells it too, at
    once and in the middle of whatever runs; the first call counts."""
    on_broker: Callable[[int | None], None] = lambda _pid: None
    """Told the embedded broker's process id whenever it changes."""
    wrap: Callable[[Child], Child] = _keep
    """Applied to each child of the tree: the place where tests put faults in."""
    embedded: Callable[[BrokerConfig], EmbeddedBroker] = EmbeddedBroker
    """Makes the embedded broker; tests put one in memory here."""
    listen: Callable[[Config], list[HeldSocket]] = attrs.field(factory=lambda: _open_sockets)
    """Opens the sockets; tests put some in memory here."""
    rng: random.Random = attrs.field(factory=random.Random)
    """Where all jitter comes from; a test seeds it."""
    timer: Callable[[], float] = time.thread_time
    """Seconds of CPU, by which the bus gathers messages; a test must not depend on the machine's load."""


class _CoalescedRequest:
    """Rung any number of times, answered once: two SIGHUPs during a restart ask for one more."""

    def __init__(self) -> None:
        self._rung = trio.Event()

    def set(self) -> None:
        self._rung.set()

    async def wait(self) -> None:
        await self._rung.wait()
        self._rung = trio.Event()


async def run_server(boot: Boot, *, task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED) -> int:
    """Serve until asked to stop; the exit status: 0, or 70 after too many crashes.

    Raises:
        OperatorError: the configuration, an address or the broker does not allow a start.
    """
    return await Server(boot).run(task_status=task_status)


class Server:
    """One server, from its sockets to its end."""

    def __init__(self, boot: Boot) -> None:
        self.boot = boot
        self.ledger = EventLog()
        self.config: Config = boot.loaded.config
        self.held: list[HeldSocket] = []
        self.tree: Tree | None = None
        self.root: Supervisor | None = None
        self.watchdog: Watchdog | None = None
        self.stopping = False
        self.ready_count = 0
        self._scope = trio.CancelScope()
        self._up = trio.Event()
        self._notifier = Notifier(boot.environ)
        self._exit_status = 0
        self._lacks_redis = False
        self._collector = CollectorPause(self._later)

    @property
    def base_url(self) -> str:
        """Where it answers, for programs on this machine."""
        assert self.tree is not None
        return self.tree.base_url

    def stop(self) -> None:
        """Begin the end, in whatever state the tree is; returns at once."""
        if self.stopping:
            return
        self._end(asked_for=True)
        self._scope.cancel()

    def _end(self, *, asked_for: bool) -> None:
        self.stopping = True
        if self.tree is not None:
            self.tree.why = "stop"
        self._notifier.stopping()
        self.boot.on_stopping(self.config.supervisor.shutdown_timeout, asked_for=asked_for)

    async def run(self, *, task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED) -> int:
        """Serve until asked to stop. Started once everything is up."""
        try:
            self.held = self.boot.listen(self.config)
            async with trio.open_nursery() as nursery:
                if self.boot.signals:
                    await nursery.start(self._hear_signals)
                with self._scope:
                    await self._serve(nursery, task_status)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise unwrap_single(group) from None
        finally:
            self._collector.end()
            close_listeners(self.held)
        log.info("tangram has stopped", status=self._exit_status)
        return self._exit_status

    async def _serve(self, nursery: trio.Nursery, task_status: trio.TaskStatus[Server]) -> None:
        tree = self.tree = self._make_tree(nursery)
        tree.operator = Operations(self)
        self.ledger.listen(self._collector)
        self.ledger.listen(self._on_event)
        self.watchdog = Watchdog(self.config.supervisor.stall_after, self._owner_of)
        await nursery.start(self.watchdog.run)
        await nursery.start(self._notifier.run)
        try:
            async with open_supervisor(
                tree.root_children(),
                name="root",
                strategy="rest_for_one",
                window=tree.window,
                backoff=tree.backoff(),
                shutdown_timeout=self.config.supervisor.shutdown_timeout,
                rng=self.boot.rng,
                on_event=self.ledger,
            ) as root:
                self.root = root
                tree.booted = True
                self._up.set()
                self._tell_ready()
                task_status.started(self)
                await trio.sleep_forever()
        except SupervisionError as error:
            self._failed(error)
        finally:
            self.root = None
            self._up.set()  # who waits for the boot's end waits no longer

    def _owner_of(self, filename: str) -> str | None:
        # Looked up late: a reload brings other plugins.
        return None if self.tree is None else self.tree.plugins.owner_of(filename)

    def _make_tree(self, outer_nursery: trio.Nursery) -> Tree:
        config = self.config
        plugins = self._load(config)
        if plugins.failures and config.core.strict:
            told = "; ".join(str(failure.error) for failure in plugins.failures)
            raise OperatorError(f"[core] strict = true, and not every plugin can be loaded: {told}")
        return Tree(
            config,
            plugins,
            held=self.held,
            secrets=read_secrets(config, self.boot.environ),
            environ=self.boot.environ,
            on_event=self.ledger,
            on_broker=self.boot.on_broker,
            wrap=self.boot.wrap,
            embedded=self.boot.embedded,
            rng=self.boot.rng,
            timer=self.boot.timer,
            outer_nursery=outer_nursery,
            serve_web=serve_site,
            on_feed=self._on_feed,
        )

    def _load(self, config: Config) -> LoadedPlugins:
        """The plugins. What cannot be loaded is told; bad configuration raises ``ConfigError``."""
        plugins = (
            load_plugins(config.core.plugins, on_foreign=answer_old_names)
            if self.boot.plugins is None
            else self.boot.plugins
        )
        for failure in plugins.failures:
            log.error("a plugin is left out", plugin=failure.name, cause=str(failure.error))
        faults: list[Fault] = []
        for one in plugins.plugins:
            try:
                one.plugin.structure_config(config.plugins.get(one.key, {}), key=one.key)
            except PluginConfigError as error:
                faults += error.faults
        if faults:
            raise ConfigError(faults, about=f"configuration {config.source or 'of plugins'}")
        return plugins

    def _failed(self, error: SupervisionError) -> None:
        """The tree ended by itself: at first boot that is the operator's to mend, later it is too
        many crashes.
        """
        if isinstance(error, StartFailed) and not self.ready_count:
            mistake = _operator_error(error)
            if mistake is not None:
                raise mistake from None
            log.critical("the server cannot start", cause=str(error), exc_info=error)
            self._exit_status = 1
            return
        log.critical("the server ends: it cannot be kept running", cause=str(error))
        for line in _story(error):
            log.critical("it crashed", cause=line)
        if not self.stopping:
            self._end(asked_for=False)
        self._exit_status = EX_SOFTWARE

    # -- what happens ----------------------------------------------------------------------------------------

    def _on_event(self, event: SupervisionEvent) -> None:
        tree = self.tree
        assert tree is not None
        # By the place in the tree, not by the name: a plugin may be called "root".
        ours = event.child is None and event.path in {(), ("incarnation",)}
        # An incarnation that did not come up is begun anew by the root, and is no end. One that was up and
        # gives up is: the budget is the root's own, and behind a child that does not end the root would wait
        # for ever. At first boot nothing is begun anew.
        final = not event.path or tree.incarnation is not None or not tree.booted
        if event.kind == "gave_up" and ours and final and not self.stopping:
            self._end(asked_for=False)
        if event.kind == "gave_up" and event.child is not None and not self.stopping:
            self._held_up(event)
        if event.kind == "quarantined":
            tree.keep_out(event)
        if event.kind == "ready" and ours and event.path:
            tree.why = "stop" if self.stopping else "crash"
            if self.ready_count:
                self._tell_ready()
        tree.announce(*admin_message(event))

    def _held_up(self, event: SupervisionEvent) -> None:
        """A plugin that gave up cannot end, and nothing above it would ever hear of that: end the process."""
        log.critical(
            "the server ends: what was cancelled does not end",
            child=" > ".join(event.path),
            cause=event.cause,
            where=event.where,
        )
        self._end(asked_for=False)
        self._exit_status = EX_SOFTWARE
        self._scope.cancel()

    def _later(self, call: Callable[[], None]) -> None:
        assert self.tree is not None
        self.tree.outer_nursery.start_soon(_call_later, call)

    def _tell_ready(self) -> None:
        assert self.tree is not None
        self.ready_count += 1
        if self.ready_count == 1:
            self.boot.on_first_ready()
        self._say_ready()
        self._notifier.ready(f"serving {self.tree.base_url}/")

    def _say_ready(self) -> None:
        assert self.tree is not None
        url, running = f"{self.tree.base_url}/", [one.name for one in self.tree.plugins.plugins]
        # A configured Redis that is away crashes nobody, but somebody has to be told what does not work.
        self._lacks_redis = self.tree.bus is None or not self.tree.bus.up
        if self._lacks_redis:
            log.warning("tangram ready, but redis is away", url=url, plugins=running, ready=self.ready_count)
        else:
            log.info("tangram ready", url=url, plugins=running, ready=self.ready_count)

    def _on_feed(self, up: bool) -> None:
        if up and self._lacks_redis:
            self._say_ready()

    # -- signals ---------------------------------------------------------------------------------------------

    async def _hear_signals(self, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            self._bound_from(signal.SIGINT, signal.SIGTERM)
            async with trio.open_nursery() as nursery:
                # A clean restart takes as long as its clients need: who asks for the end meanwhile is heard.
                reloads = await nursery.start(self._reload_when_asked)
                task_status.started()
                async for number in signals:
                    if number == signal.SIGHUP:
                        reloads.set()
                    else:
                        self.stop()  # first, lest a log that raises or does not return be in its way
                        log.info("asked to stop", signal=signal.Signals(number).name)

    def _bound_from(self, *numbers: signal.Signals) -> None:
        """Bound a stop from its signal on, not from when the loop comes to hear of it: a plugin that blocks
        the loop may never let it.
        """
        queue = {number: signal.getsignal(number) for number in numbers}

        def hear(number: int, frame: FrameType | None) -> None:
            receiver = queue[signal.Signals(number)]
            assert callable(receiver)
            receiver(number, frame)
            self.boot.on_stopping(self.config.supervisor.shutdown_timeout, asked_for=True)

        for number in numbers:
            signal.signal(number, hear)  # Trio's receiver, when it closes, puts back what was before it

    async def _reload_when_asked(self, *, task_status: trio.TaskStatus[_CoalescedRequest]) -> None:
        bell = _CoalescedRequest()
        task_status.started(bell)
        while True:
            await bell.wait()
            await self.reload()

    async def reload(self) -> None:
        """Read the configuration again and restart cleanly with it; a bad one is told, and the old
        one kept. During the first boot it waits for its end, which the start times of its parts bound.
        """
        if not self._up.is_set() and not self.stopping:
            log.info("asked to reload during the boot: the configuration is read once everything is up")
            await self._up.wait()
        if self.root is None or self.tree is None or self.stopping:
            return
        try:
            wanted = self.boot.reload().config if self.boot.reload is not None else self.config
            config = with_bound(self.config, wanted)
            check_tls(config)
            plugins = self._load(config)
            secrets = read_secrets(config, self.boot.environ)
        except OperatorError as error:
            log.error("the configuration is not taken over: the old one stays", cause=str(error))  # noqa: TRY400
            return
        for what, old, new in bound_changes(self.config, wanted):
            log.warning("this change needs a new start of the process", setting=what, now=old, wanted=new)
        self._take_over(config, plugins, secrets)
        await self.restart()

    def _take_over(self, config: Config, plugins: LoadedPlugins, secrets: Secrets) -> None:
        assert self.root is not None
        assert self.tree is not None
        assert self.watchdog is not None
        for setting in changed_secrets(self.tree.secrets, secrets):
            log.info("a new secret is in force", setting=setting)
        self.config = config
        self.tree.take_over(config, plugins, secrets, self.root)
        self.tree.forgive()
        self.watchdog.stall_after = config.supervisor.stall_after

    async def restart(self) -> None:
        """Restart the incarnation cleanly: what is in flight is answered, browsers are told to come back."""
        if self.root is None or self.tree is None:
            return
        self.tree.why = "restart"
        try:
            await self.root.restart_child("incarnation")
        except StartFailed as error:
            # It is tried again as after a crash; the tree ends if it goes on failing.
            log.error("the new incarnation did not start", cause=str(error))  # noqa: TRY400
        finally:
            if not self.stopping:
                self.tree.why = "crash"


def answer_old_names() -> None:
    """Let ``import tangram_core`` mean us. A server without such plugins does not pay for it."""
    from tangram.compat.names import answer_imports

    answer_imports()


async def _call_later(call: Callable[[], None]) -> None:
    await trio.sleep(ANSWERS)
    call()


def _open_sockets(config: Config) -> list[HeldSocket]:
    held = open_listeners(config.server.host, config.server.port)
    if config.channel.port is not None:
        try:
            host = config.channel.host or config.server.host
            held += open_listeners(host, config.channel.port, setting="[channel] port")
        except OperatorError:
            close_listeners(held)
            raise
    return held


def _story(error: BaseException | None) -> Sequence[str]:
    """The crashes that led to the end, as the innermost supervisor which gave up tells them: those above it
    know of one only, its own end.
    """
    told: Sequence[str] = ()
    while error is not None:
        if isinstance(error, RestartsExhausted) and error.crashes:
            told = error.crashes
        error = error.__cause__
    return told


def _operator_error(error: BaseException) -> OperatorError | None:
    """The operator's mistake below a failed start, if it is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OperatorError):
            return seen
        if isinstance(seen, BaseExceptionGroup):
            found = seen.subgroup(OperatorError)
            seen = unwrap_single(found) if found is not None else seen.__cause__
            continue
        seen = seen.__cause__
    return None
