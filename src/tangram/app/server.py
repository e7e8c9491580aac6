"""The server process: sockets, plugins, the tree, signals, and a stop in order.

1. Sockets are opened before any part starts, so that a port in use is reported at once, and they are closed
   last.
2. A request to stop is obeyed in every state: during boot, a back-off or a restart. The tree is cancelled,
   stops child by child in reverse order, and has ``[supervisor] shutdown_timeout`` seconds for it.
3. SIGHUP reads the file again and restarts the incarnation cleanly. A faulty file is reported and the old
   configuration stays in force. A SIGHUP during the boot is handled when the boot is over.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import attrs
import structlog
import trio

from tangram.app.console_view import ConsoleView
from tangram.app.engines import serve_site
from tangram.app.event_log import EventLog, admin_message
from tangram.app.full_collections import FullCollections
from tangram.app.gc_pause import ANSWER_TIME, CollectorPause
from tangram.app.measuring import Measuring
from tangram.app.node_parts import log_long_stops
from tangram.app.reload import bound_changes, changed_secrets, check_tls, read_secrets, with_bound
from tangram.app.signals import SignalGuard, open_signals
from tangram.app.status import ServerOperator
from tangram.app.tree import Secrets, StopReason, Tree
from tangram.app.watching import watch
from tangram.broker import EmbeddedBroker, SharedBroker
from tangram.config import BrokerConfig, Config, LoadedConfig
from tangram.declared.problems import declared_twice
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
from tangram.http.listeners import HeldSocket, close_listeners, open_configured
from tangram.plugins.registry import LoadedPlugins, load_plugins
from tangram.readiness import share_readiness
from tangram.supervision import Child, Notifier, SupervisionEvent, Supervisor, Watchdog, open_supervisor

__all__ = ["EX_SOFTWARE", "Boot", "Server", "answer_old_names", "run_server"]

log = structlog.get_logger("tangram.app")

EX_SOFTWARE: Final = 70
"""The exit status after too many crashes: BSD's sysexits(3), an internal software error."""


def _keep(child: Child) -> Child:
    return child


@attrs.frozen(kw_only=True)
class Boot:
    """The parameters of a server."""

    loaded: LoadedConfig
    """The configuration."""
    reload: Callable[[], LoadedConfig] | None = None
    """Reads the configuration again, for SIGHUP; raises ``ConfigError`` if it has faults."""
    environ: Mapping[str, str] = attrs.field(factory=lambda: os.environ)
    """The environment, for the state and cache folders."""
    plugins: LoadedPlugins | None = None
    """Plugins that are loaded already; ``None`` loads the plugins that the configuration names."""
    watch: bool = False
    """Whether to reload plugins and the configuration when their files change."""
    signals: bool = True
    """Whether to handle INT, TERM and HUP; only in the main thread of a process that runs only the server."""
    on_first_ready: Callable[[str], None] = lambda _url: None
    """Called with the server's URL when every part is up for the first time."""
    on_stopping: Callable[..., None] = lambda _seconds, *, asked_for: None  # noqa: ARG005 - the signature of a callback
    """Called when the stop begins: ``on_stopping(shutdown_timeout, asked_for=...)``. A signal handler calls
    it too, in the middle of running code; the first call counts."""
    on_repeat: Callable[[], None] = lambda: None
    """Called in the signal handler of a second SIGINT: the operator does not want to wait for the stop."""
    on_import: Callable[[str], None] = lambda _name: None
    """Called with the name of each plugin before it is imported."""
    on_plugins: Callable[[LoadedPlugins], None] = lambda _plugins: None
    """Called with the plugins whenever they were loaded."""
    on_broker: Callable[[int | None], None] = lambda _pid: None
    """Called with the embedded broker's process id whenever it changes."""
    wrap: Callable[[Child], Child] = _keep
    """Applied to each child of the tree; tests inject faults there."""
    embedded: Callable[[BrokerConfig], EmbeddedBroker] = EmbeddedBroker
    """Makes the embedded broker; tests use one in memory."""
    shared_broker: SharedBroker | None = None
    """The broker of the parent process, in place of an embedded one."""
    on_renewal: Callable[[list[HeldSocket]], None] | None = None
    """Called at the end with the open sockets, if a new process is to serve them."""
    listen: Callable[[Config], list[HeldSocket]] = attrs.field(factory=lambda: _open_sockets)
    """Opens the sockets; tests use sockets in memory."""
    rng: random.Random = attrs.field(factory=random.Random)
    """The source of all jitter; tests seed it."""
    timer: Callable[[], float] = time.thread_time
    """Returns the CPU seconds by which the bus gathers messages; tests replace it by a virtual clock."""


class _CoalescedRequest:
    """An event that resets itself: two SIGHUPs during a restart cause only one more."""

    def __init__(self) -> None:
        self._requested = trio.Event()

    def set(self) -> None:
        self._requested.set()

    async def wait(self) -> None:
        await self._requested.wait()
        self._requested = trio.Event()


async def run_server(boot: Boot, *, task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED) -> int:
    """Serve until a stop is requested.

    Returns:
        The exit status: 0, 1 if the tree could not start, 70 after too many crashes.

    Raises:
        OperatorError: the configuration, an address or the broker does not allow a start.
    """
    return await Server(boot).run(task_status=task_status)


class Server:
    """One server, from the opening of its sockets to its end.

    Args:
        boot: the server's parameters.
    """

    def __init__(self, boot: Boot) -> None:
        self.boot = boot
        self.event_log = EventLog()
        self.measuring = Measuring()
        self.config: Config = boot.loaded.config
        self.held: list[HeldSocket] = []
        self.tree: Tree | None = None
        self.root: Supervisor | None = None
        self.watchdog: Watchdog | None = None
        self.stopping = False
        self._stop_requested = False
        self.ready_count = 0
        self._renewal: Callable[[list[HeldSocket]], None] | None = None
        self._scope = trio.CancelScope()
        self._signals: SignalGuard | None = None
        self._up = trio.Event()
        self._notifier = Notifier(boot.environ)
        self._exit_status = 0
        self._lacks_redis = False
        self._collector = CollectorPause(self._later)

    @property
    def base_url(self) -> str:
        """The URL of this server for programs on the same machine."""
        assert self.tree is not None
        return self.tree.base_url

    @property
    def has_histories(self) -> bool:
        """Whether a topic has a history."""
        return self.tree is not None and bool(self.tree.rules)

    def stop(self, *, replaced: bool = False) -> None:
        """Begin the stop, in any state of the tree, and return at once.

        Args:
            replaced: whether another process serves the same sockets, to which the clients come back.
        """
        self._stop_requested = True
        if self.stopping:
            return
        self._begin_stop(asked_for=True, reason="replaced" if replaced else "stop")
        self._scope.cancel()

    def renew(self) -> None:
        """Begin the stop, and hand the sockets to a new process at its end."""
        if not self.stopping and self.boot.on_renewal is not None:
            self._renewal = self.boot.on_renewal
            self.stop(replaced=True)

    def _begin_stop(self, *, asked_for: bool, reason: StopReason = "stop") -> None:
        self.stopping = True
        if self.tree is not None:
            self.tree.stop_reason = reason
            self.tree.incarnation.close_streams()
        if self._renewal is None:
            # The engine still accepts on duplicates. Its last one closes the socket: a queue without a reader
            # would keep clients waiting until the end of the process, and then reset them.
            close_listeners(self.held)
        self._notifier.stopping()
        self.boot.on_stopping(self.config.supervisor.shutdown_timeout, asked_for=asked_for)

    async def run(self, *, task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED) -> int:
        """Serve until a stop is requested; ``task_status`` gets the server when every part is up."""
        try:
            self.held = self.boot.listen(self.config)
            async with trio.open_nursery() as nursery:
                share_readiness(nursery.start_soon)
                if self.boot.signals:
                    await nursery.start(self._handle_signals)
                with self._scope:
                    await self._serve(nursery, task_status)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise unwrap_single(group) from None
        finally:
            self._collector.end()
            if self._renewal is not None and not self._exit_status:
                self._renewal(self.held)
            else:
                close_listeners(self.held)
        log.info("tangram stopped", status=self._exit_status)
        return self._exit_status

    async def _serve(self, nursery: trio.Nursery, task_status: trio.TaskStatus[Server]) -> None:
        tree = self.tree = self._make_tree(nursery)
        tree.shared_broker = self.boot.shared_broker
        tree.operator = operator = ServerOperator(self)
        tree.console = ConsoleView(self, operator)
        self.event_log.listen(self._collector)
        self.event_log.listen(self._on_event)
        self.event_log.listen(self.measuring.take_event)
        self.watchdog = Watchdog(self.config.supervisor.stall_after, self._owner_of)
        await nursery.start(self.watchdog.run)
        await nursery.start(self.measuring.run, tree)
        await nursery.start(self._notifier.run)
        if self.boot.signals:  # this process runs only the server
            nursery.start_soon(self._collect_when_calm)
        try:
            async with open_supervisor(
                tree.root_children(),
                name="root",
                strategy="rest_for_one",
                window=tree.window,
                backoff=tree.backoff(),
                shutdown_timeout=self.config.supervisor.shutdown_timeout,
                rng=self.boot.rng,
                on_event=self.event_log,
            ) as root:
                self.root = root
                tree.booted = True
                self._up.set()
                self._report_ready()
                task_status.started(self)
                if self.boot.watch:
                    await watch(self)
                await trio.sleep_forever()
        except SupervisionError as error:
            self._handle_failure(error)
        finally:
            self.root = None
            self._up.set()  # a reload that waits for the end of the boot must not wait any longer

    def _owner_of(self, filename: str) -> str | None:
        # Read at each call, because a reload may load other plugins.
        return None if self.tree is None else self.tree.plugins.owner_of(filename)

    def _make_tree(self, outer_nursery: trio.Nursery) -> Tree:
        config = self.config
        plugins = self._load(config)
        if plugins.failures and config.core.strict:
            causes = "; ".join(str(failure.error) for failure in plugins.failures)
            raise OperatorError(f"[core] strict = true, and not every plugin can be loaded: {causes}")
        return Tree(
            config,
            plugins,
            held=self.held,
            secrets=read_secrets(config, self.boot.environ),
            environ=self.boot.environ,
            on_event=self.event_log,
            on_broker=self.boot.on_broker,
            wrap=self.boot.wrap,
            embedded=self.boot.embedded,
            rng=self.boot.rng,
            timer=self.boot.timer,
            outer_nursery=outer_nursery,
            serve_web=serve_site,
            on_bus_change=self._on_bus_change,
            measuring=self.measuring,
        )

    def _load(self, config: Config) -> LoadedPlugins:
        """Load the plugins, and log each that cannot be loaded.

        Raises:
            ConfigError: with every fault in the configuration of the plugins.
        """
        plugins = (
            load_plugins(
                config.core.plugins,
                on_foreign=answer_old_names,
                on_import=self.boot.on_import,
                folder=config.source and config.source.parent,
            )
            if self.boot.plugins is None
            else self.boot.plugins
        )
        self.boot.on_plugins(plugins)
        if self._signals is not None:
            self._signals.check()
        for failure in plugins.failures:
            log.error("plugin not loaded", plugin=failure.name, cause=str(failure.error))
        faults: list[Fault] = []
        for one in plugins.plugins:
            try:
                one.plugin.structure_config(config.plugins.get(one.key, {}), key=one.key)
            except PluginConfigError as error:
                faults += error.faults
        if faults:
            raise ConfigError(faults, about=f"configuration {config.source or 'of plugins'}")
        for warning in plugins.config_warnings(config.plugins):
            log.warning("unknown setting is ignored", cause=warning)
        for twice in declared_twice((one.name, one.plugin.channels) for one in plugins.plugins):
            log.warning("push has two handlers", cause=twice)
        log_long_stops(plugins.plugins, config)
        return plugins

    def _handle_failure(self, error: SupervisionError) -> None:
        """Set the exit status of a tree that ended by itself, or raise the operator's mistake.

        At first boot the cause may be a mistake of the operator; later it is too many crashes.
        """
        if isinstance(error, StartFailed) and not self.ready_count:
            if self._stop_requested:
                # The end of the machine, or of a group of processes, may reach the broker first.
                log.info("stopped before it had started", cause=str(error))
                return
            mistake = _operator_error(error)
            if mistake is not None:
                raise mistake from None
            log.critical("server cannot start", cause=str(error), exc_info=error)
            self._exit_status = 1
            return
        log.critical("server ends after too many crashes", cause=str(error))
        for line in _crashes_behind(error):
            log.critical("crash before the end", cause=line)
        if not self.stopping:
            self._begin_stop(asked_for=False)
        self._exit_status = EX_SOFTWARE

    # -- events ----------------------------------------------------------------------------------------------

    def _on_event(self, event: SupervisionEvent) -> None:
        tree = self.tree
        assert tree is not None
        # Compared by the path in the tree, because a plugin may have a supervisor of the name "root".
        ours = event.child is None and event.path in {(), ("incarnation",)}
        # An incarnation that did not start is retried by the root. One that was up and gives up ends the
        # server: it has used up the root's own budget, and the root would wait for ever for a child that does
        # not end. At first boot nothing is retried.
        final = not event.path or tree.incarnation.supervisor is not None or not tree.booted
        if event.kind == "gave_up" and ours and final and not self.stopping:
            self._begin_stop(asked_for=False)
        if event.kind == "gave_up" and event.child is not None and not self.stopping:
            self._end_despite(event)
        if event.kind == "quarantined":
            tree.keep_quarantine(event)
        if event.kind == "ready" and ours and event.path:
            if not self.stopping:
                tree.stop_reason = "crash"
            if self.ready_count:
                self._report_ready()
        tree.incarnation.publish_event(*admin_message(event))

    def _end_despite(self, event: SupervisionEvent) -> None:
        """End the process, because a plugin gave up and one of its tasks ignores the cancellation.

        The supervisors above the plugin would wait for it without a limit.
        """
        log.critical(
            "server ends: a cancelled child does not stop",
            child=" > ".join(event.path),
            cause=event.cause,
            where=event.where,
        )
        self._begin_stop(asked_for=False)
        self._exit_status = EX_SOFTWARE
        self._scope.cancel()

    async def _collect_when_calm(self) -> None:
        await self._up.wait()
        await FullCollections().run()

    def _later(self, call: Callable[[], None]) -> None:
        assert self.tree is not None
        self.tree.outer_nursery.start_soon(_call_later, call)

    def _report_ready(self) -> None:
        assert self.tree is not None
        self.ready_count += 1
        if self.ready_count == 1:
            self.boot.on_first_ready(f"{self.tree.base_url}/")
        self._log_ready()
        self._notifier.ready(f"serving {self.tree.base_url}/")

    def _log_ready(self) -> None:
        assert self.tree is not None
        url, running = f"{self.tree.base_url}/", [one.name for one in self.tree.plugins.plugins]
        # The server starts also while a configured Redis is away; the operator must see that in the log.
        self._lacks_redis = not self.tree.incarnation.has_redis
        if self._lacks_redis:
            log.warning("tangram ready, but redis is away", url=url, plugins=running, ready=self.ready_count)
        else:
            log.info("tangram ready", url=url, plugins=running, ready=self.ready_count)

    def _on_bus_change(self, up: bool) -> None:
        if up and self._lacks_redis:
            self._log_ready()

    # -- signals ---------------------------------------------------------------------------------------------

    async def _handle_signals(self, *, task_status: trio.TaskStatus[None]) -> None:
        guard = SignalGuard(self._owner_of, on_stop=self.note_stop, on_repeat=self.boot.on_repeat)
        with open_signals(guard):
            self._signals = guard
            async with trio.open_nursery() as nursery:
                # A clean restart takes as long as its clients need; a stop must be possible meanwhile.
                reloads = await nursery.start(self._reload_when_asked)
                nursery.start_soon(guard.watch)
                task_status.started()
                while True:
                    number = await guard.next_request()
                    if number == signal.SIGHUP:
                        reloads.set()
                    else:
                        self.stop()  # before the log, which may raise or block
                        log.info("stop requested", signal=number.name)

    def note_stop(self) -> None:
        """Note a requested stop, and count its time from now on.

        Called in the signal handler, also while a plugin blocks the event loop; the stop begins in a task.
        """
        self._stop_requested = True
        self.boot.on_stopping(self.config.supervisor.shutdown_timeout, asked_for=True)

    async def _reload_when_asked(self, *, task_status: trio.TaskStatus[_CoalescedRequest]) -> None:
        request = _CoalescedRequest()
        task_status.started(request)
        while True:
            await request.wait()
            await self.reload()

    async def reload(self) -> None:
        """Read the configuration again and restart the incarnation cleanly with it.

        A faulty configuration is reported, and the old one stays in force. During the first boot this waits
        for the end of the boot, which the start times of the parts limit.
        """
        if not self._up.is_set() and not self.stopping:
            log.info("reload postponed until the boot is over")
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
            log.error("configuration rejected: the old one stays in force", cause=str(error))  # noqa: TRY400 - the operator's mistake needs no traceback
            return
        for what, old, new in bound_changes(self.config, wanted):
            log.warning("setting needs a restart of the process", setting=what, now=old, wanted=new)
        self._take_over(config, plugins, secrets)
        await self.tree.start_recorder(self.root)
        await self.restart()

    async def reload_plugin(self, name: str) -> None:
        """Import one plugin again and restart it.

        Raises:
            PluginError: its code cannot be imported; the plugin runs on as it is.
            StartFailed: it does not start.
        """
        if self.tree is not None and self.tree.operator is not None and not self.stopping:
            await self.tree.operator.restart_plugin(name, reload=True)

    def _take_over(self, config: Config, plugins: LoadedPlugins, secrets: Secrets) -> None:
        assert self.root is not None
        assert self.tree is not None
        assert self.watchdog is not None
        for setting in changed_secrets(self.tree.secrets, secrets):
            log.info("secret replaced", setting=setting)
        self.config = config
        self.tree.take_over(config, plugins, secrets, self.root)
        self.tree.clear_quarantine()
        self.watchdog.stall_after = config.supervisor.stall_after

    async def restart(self) -> None:
        """Restart the incarnation cleanly.

        Requests in flight are answered, and WebSockets are closed with the code for a restart.
        """
        if self.root is None or self.tree is None:
            return
        self.tree.stop_reason = "restart"
        self.tree.incarnation.close_streams()
        try:
            await self.root.restart_child("incarnation")
        except StartFailed as error:
            # The start is retried as after a crash; the tree ends if it goes on failing.
            log.error("incarnation did not start", cause=str(error))  # noqa: TRY400 - the supervisor has logged the traceback
        finally:
            if not self.stopping:
                self.tree.stop_reason = "crash"


def answer_old_names() -> None:
    """Make ``import tangram_core`` find this server; called only where a plugin needs it."""
    from tangram.compat.names import answer_imports

    answer_imports()


async def _call_later(call: Callable[[], None]) -> None:
    await trio.sleep(ANSWER_TIME)
    call()


def _open_sockets(config: Config) -> list[HeldSocket]:
    return open_configured(config, os.environ)


def _crashes_behind(error: BaseException | None) -> Sequence[str]:
    """Return the crashes that led to the end, from the innermost supervisor that gave up.

    The supervisors above it know only of one crash, the end of the supervisor below.
    """
    crashes: Sequence[str] = ()
    while error is not None:
        if isinstance(error, RestartsExhausted) and error.crashes:
            crashes = error.crashes
        error = error.__cause__
    return crashes


def _operator_error(error: BaseException) -> OperatorError | None:
    """Return the operator's mistake that caused a failed start, or None."""
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
