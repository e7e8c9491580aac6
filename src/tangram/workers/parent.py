"""The parent process: sockets, broker, workers, signals, and a stop in order.

1. It opens the sockets and creates the secrets before the first worker, and imports no plugin.
2. A worker that ends is restarted alone. A place whose budget is spent stays empty until the next SIGHUP;
   when every place is empty, the parent ends.
3. SIGHUP reads the file and replaces one worker after the other. A faulty file is reported, and everything
   stays as it is.
4. INT and TERM are passed to all workers at once, so that no client moves to a worker that is about to stop.
   The broker stops last.
"""

from __future__ import annotations

import os
import random
import re
import signal
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final, Literal

import attrs
import structlog
import trio

from tangram.broker import EmbeddedBroker
from tangram.config import (
    OPERATOR_TOKEN,
    BrokerConfig,
    Config,
    LoadedConfig,
    broker_folder,
    ensure_secret,
    open_state_dir,
)
from tangram.config.bound import IN_WORKERS, bound_changes, with_bound
from tangram.early_signals import replay
from tangram.errors import OperatorError, RestartsExhausted, StartFailed, SupervisionError, TangramError
from tangram.groups import unwrap_single
from tangram.http.listeners import HeldSocket, close_listeners, open_configured
from tangram.supervision import (
    Backoff,
    Child,
    Notifier,
    SupervisionEvent,
    Supervisor,
    Window,
    open_supervisor,
)
from tangram.task_status import RelayedStatus
from tangram.workers.handover import Handover, Snapshot
from tangram.workers.place import WorkerPlace
from tangram.workers.process import Worker, WorkerProcess
from tangram.workers.rules import Names, Rolling, RollingStep, worker_count
from tangram.workers.share import ShareTable

__all__ = ["EX_INTERRUPTED", "EX_SOFTWARE", "Parent", "ParentBoot", "run_parent"]

log = structlog.get_logger("tangram.workers")

EX_SOFTWARE: Final = 70
"""The exit status after too many crashes, as of a single process."""

EX_INTERRUPTED: Final = 130
"""The exit status after a second SIGINT, as of a single process."""

REPEAT_TIME: Final = 0.5
"""Seconds in which a second SIGINT counts as the first, as in a single process."""

STOP_MARGIN: Final = 2.0
"""Seconds after ``shutdown_timeout`` until SIGKILL: a worker that hangs ends itself before, with a report."""

LATE_BEATS: Final = 2.0
"""Intervals of systemd's watchdog after which a silent worker is ended. systemd allows as much."""


@attrs.frozen(kw_only=True)
class ParentBoot:
    """The parameters of a parent."""

    loaded: LoadedConfig
    snapshot: Snapshot
    """The file and the environment of ``loaded``."""
    reload: Callable[[], tuple[LoadedConfig, Snapshot]]
    """Reads the configuration again; raises ``ConfigError`` if it has faults."""
    log_format: Literal["console", "json"] = "console"
    environ: MutableMapping[str, str] = attrs.field(factory=lambda: os.environ)
    on_first_ready: Callable[[str], None] = lambda _url: None
    """Called with the server's URL when every worker is ready for the first time."""
    on_stopping: Callable[..., None] = lambda _seconds, *, asked_for: None  # noqa: ARG005 - the signature of a callback
    """Called when the stop begins: ``on_stopping(seconds, asked_for=...)``."""
    on_broker: Callable[[int | None], None] = lambda _pid: None
    """Called with the broker's process id whenever it changes."""
    on_worker_ended: Callable[[], None] = lambda: None
    """Called when a worker has ended by itself."""
    signals: bool = True
    """Whether to handle INT, TERM and HUP; tests call the methods instead."""
    listen: Callable[[Config, MutableMapping[str, str]], list[HeldSocket]] = open_configured
    embedded: Callable[[BrokerConfig], EmbeddedBroker] = EmbeddedBroker
    process: Callable[..., Worker] = WorkerProcess
    """Makes a process; tests use one in memory."""
    rng: random.Random = attrs.field(factory=random.Random)


@attrs.frozen
class Version:
    """One version of the configuration."""

    config: Config
    snapshot: Snapshot


async def run_parent(boot: ParentBoot) -> int:
    """Serve with several workers until a stop is requested.

    Returns:
        The exit status: 0, 1 if a worker cannot start, 70 after too many crashes, 130 after a second SIGINT.

    Raises:
        OperatorError: the configuration, an address or the broker does not allow a start.
    """
    return await Parent(boot).run()


class Parent:
    """The parent, from the opening of its sockets to its end.

    Args:
        boot: its parameters.
    """

    def __init__(self, boot: ParentBoot) -> None:
        self.boot = boot
        self.version = Version(boot.loaded.config, boot.snapshot)
        """The configuration in force."""
        self.first = self.version
        self.places: dict[int, WorkerPlace[Version]] = {}
        self.supervisor: Supervisor | None = None
        self.stopping = False
        self._exit_status = 0
        self._scope = trio.CancelScope()
        self._up = trio.Event()
        self._reload = trio.Event()
        self._names = Names()
        self._notifier = Notifier(boot.environ)
        self._held: list[HeldSocket] = []
        self._share = ShareTable()
        self._broker: EmbeddedBroker | None = None
        self._broker_news: Mapping[str, Any] | None = None
        self._node = node_name(self.config, boot.rng)

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.version.config

    async def run(self) -> int:
        """Serve until a stop is requested, and return the exit status."""
        try:
            self._held = self.boot.listen(self.config, self.boot.environ)
            create_secrets(self.config, self.boot.environ)
            async with trio.open_nursery() as nursery:
                if self.boot.signals:
                    await nursery.start(self._handle_signals)
                nursery.start_soon(self._reload_when_asked)
                await nursery.start(self._notifier.run)
                if self._notifier.watchdog_interval is not None:
                    nursery.start_soon(self._check_beats, self._notifier.watchdog_interval)
                with self._scope:
                    await self._serve()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise unwrap_single(group) from None
        finally:
            close_listeners(self._held)
            self._share.close()
        log.info("tangram stopped", status=self._exit_status)
        return self._exit_status

    async def _serve(self) -> None:
        limits = self.config.supervisor
        try:
            async with open_supervisor(
                [*self._broker_children(), *(self._child(number) for number in wanted_places(self.config))],
                name="workers",
                strategy="one_for_one",
                restarts=limits.root_restarts,
                window=limits.root_window,
                backoff=Backoff(
                    initial=limits.backoff_initial, maximum=limits.backoff_max, reset=limits.backoff_reset
                ),
                shutdown_timeout=self._stop_seconds(),
                rng=self.boot.rng,
                on_event=self._on_event,
            ) as supervisor:
                self.supervisor = supervisor
                self._up.set()
                url = str(supervisor.value(self.places[1].child))
                self.boot.on_first_ready(url)
                log.info("all workers ready", url=url, workers=len(self.places))
                self._notify_ready()
                await trio.sleep_forever()
        except SupervisionError as error:
            self._handle_failure(error)
        finally:
            self.supervisor = None
            self._up.set()

    def _handle_failure(self, error: SupervisionError) -> None:
        if isinstance(error, StartFailed) and not self._up.is_set():
            mistake: BaseException | None = error
            while mistake is not None:
                if isinstance(mistake, OperatorError):
                    raise mistake from None
                mistake = mistake.__cause__
            log.critical("server cannot start", cause=str(error))
            self._exit_status = 1
            return
        causes = error.crashes if isinstance(error, RestartsExhausted) else ()
        log.critical("server ends after too many crashes", cause=str(error), crashes=list(causes))
        self._begin_stop(asked_for=False)
        self._exit_status = EX_SOFTWARE

    # -- children --------------------------------------------------------------------------------------------

    def _stop_seconds(self) -> float:
        return self.config.supervisor.shutdown_timeout + STOP_MARGIN

    def _limits(self) -> tuple[float, float]:
        """Return the seconds for the start of a successor, and for the stop of a replaced process."""
        # Each part and each plugin has ``start_timeout``; the parts are at most six.
        parts = 6 + len(self.config.core.plugins)
        return self.config.supervisor.start_timeout * parts, self._stop_seconds()

    def _child(self, number: int) -> Child:
        place = self.places[number] = WorkerPlace(
            number, self.version, self._make_process, limits=self._limits, on_ready=self._on_worker_ready
        )
        limits = self.config.supervisor
        return Child(
            place.child,
            place.run,
            start_timeout=float("inf"),  # each part of the worker has a limit
            stop_timeout=self._stop_seconds() + STOP_MARGIN,
            window=Window(limits.root_restarts, limits.root_window),
            exhausted="quarantine",
            restart="transient",  # a place that is given up has finished
        )

    def _make_process(self, number: int, version: Version) -> Worker:
        name = self._names.next_name(number)
        index = self._share.take()
        sockets = [(held.listener.fileno(), held.host, held.port) for held in self._held]
        beat = self._notifier.watchdog_interval
        handover = Handover(
            name=name,
            node=f"{self._node}.{name}",
            first=self.first.snapshot,
            snapshot=version.snapshot,
            log_format=self.boot.log_format,
            terminal=_is_terminal(),
            sockets=sockets,
            share=(self._share.descriptor, index),
            broker=self._broker_news,
            sys_path=sys.path,
            beat=None if beat is None else beat / 2,
        )
        return self.boot.process(
            handover,
            [*(descriptor for descriptor, _, _ in sockets), self._share.descriptor],
            stop_seconds=self._stop_seconds(),
            on_end=lambda: self._share.give_back(index),
        )

    def _on_worker_ready(self, process: Worker) -> None:
        if self._broker is None:
            return
        if process.histories:
            self._broker.keeps = True
        elif self._broker.keeps:
            self._broker.stop_keeping()

    def _broker_children(self) -> list[Child]:
        if self.config.core.redis_url is not None:
            return []
        broker = self._broker = self.boot.embedded(self.config.broker)
        broker.folder = broker_folder(self.config, self.boot.environ)
        # Only the workers know the histories that plugins declare. The data of the last run must not be lost
        # until they have reported that there are none.
        broker.keeps = True
        limits = self.config.supervisor
        return [
            Child(
                "broker",
                self._run_broker,
                start_timeout=limits.start_timeout,
                stop_timeout=limits.stop_timeout,
            )
        ]

    async def _run_broker(self, *, task_status: trio.TaskStatus[str]) -> None:
        assert self._broker is not None
        try:
            await self._broker.run(task_status=RelayedStatus(task_status, on_started=self._on_broker_started))
        finally:
            self._announce(None)
            self.boot.on_broker(None)

    def _on_broker_started(self, url: str) -> None:
        broker = self._broker
        assert broker is not None
        now = broker.statistics()
        self.boot.on_broker(now.pid)
        self._announce(
            {
                "url": url,
                "server_url": broker.server_url,
                "identity": broker.identity,
                "shown": now.url,
                "pid": now.pid,
                "version": now.version,
                "starts": now.starts,
            }
        )

    def _announce(self, news: Mapping[str, Any] | None) -> None:
        self._broker_news = news
        for place in self.places.values():
            place.announce(news)

    # -- events ----------------------------------------------------------------------------------------------

    def _on_event(self, event: SupervisionEvent) -> None:
        if event.kind == "crashed" and event.child != "broker":
            self.boot.on_worker_ended()
        if event.kind == "gave_up" and event.child is None:
            self._begin_stop(asked_for=False)
        if event.kind == "quarantined" and not self.stopping and self._is_deserted():
            log.critical("server ends: every worker has crashed too often")
            self._begin_stop(asked_for=False)
            self._exit_status = EX_SOFTWARE
            self._scope.cancel()

    def _is_deserted(self) -> bool:
        if self.supervisor is None:
            return False
        workers = [
            child for child in self.supervisor.statistics().children if child.name.startswith("worker:")
        ]
        return all(child.state == "quarantined" for child in workers)

    async def _check_beats(self, interval: float) -> None:
        """End each worker whose event loop has been blocked for as long as systemd allows.

        systemd watches the parent only. SIGABRT leaves a record of the line that blocks the loop.
        """
        while True:
            await trio.sleep(interval / 2)
            late = trio.current_time() - interval * LATE_BEATS
            for place in self.places.values():
                process = place.current
                if process is not None and process.beat_at < late:
                    log.error("worker does not answer and is ended", worker=process.name, pid=process.pid)
                    process.signal(signal.SIGABRT)

    def _notify_ready(self) -> None:
        self._notifier.ready(f"serving with {len(self.places)} workers")

    # -- reload ----------------------------------------------------------------------------------------------

    async def _reload_when_asked(self) -> None:
        while True:
            await self._reload.wait()
            self._reload = trio.Event()
            await self._up.wait()
            if self.supervisor is not None and not self.stopping:
                self._notifier.reloading()
                await self.reload(self.supervisor)
                self._notify_ready()

    def request_reload(self) -> None:
        """Begin a rolling restart with the file read again, when the one before is over."""
        self._reload.set()

    async def reload(self, supervisor: Supervisor) -> None:
        """Read the configuration again, and replace one worker after the other."""
        try:
            loaded, snapshot = self.boot.reload()
        except OperatorError as error:
            log.error("configuration rejected: the old one stays in force", cause=str(error))  # noqa: TRY400 - the operator's mistake needs no traceback
            return
        for what, old, new in bound_changes(self.first.config, loaded.config, IN_WORKERS):
            log.warning("setting needs a restart of the process", setting=what, now=old, wanted=new)
        wanted = Version(with_bound(self.first.config, loaded.config, IN_WORKERS), snapshot)
        kept = [number for number in wanted_places(wanted.config) if number in self.places]
        rolling = Rolling(kept)
        log.info("rolling restart begins", workers=len(kept))
        while (step := rolling.step) is not None:
            cause = await self._carry_out(step, self.version if step.back else wanted, supervisor)
            if cause is None:
                rolling.done()
            else:
                rolling.failed(cause)
        if rolling.cause is not None:
            log.error(
                "configuration rejected: the old one stays in force",
                cause=rolling.cause,
                kept_new=rolling.kept_new,
            )
            return
        self.version = wanted
        await self._resize(supervisor)
        log.info("rolling restart over", workers=len(self.places))

    async def _carry_out(self, step: RollingStep, version: Version, supervisor: Supervisor) -> str | None:
        """Replace the worker of one place; return the cause if the new process did not start."""
        place = self.places[step.place]
        before = place.config
        try:
            if place.current is not None:
                await place.replace(version)
            else:
                place.config = version
                await supervisor.restart_child(place.child)
        except (OperatorError, SupervisionError) as error:
            place.config = before
            return _cause_of(error)
        return None

    async def _resize(self, supervisor: Supervisor) -> None:
        """Start or stop workers for another ``[server] workers``."""
        wanted = wanted_places(self.config)
        for number in wanted:
            if number not in self.places:
                try:
                    await supervisor.start_child(self._child(number))
                except StartFailed as error:
                    del self.places[number]
                    log.error("worker not started", worker=number, cause=_cause_of(error))  # noqa: TRY400 - the worker has logged it
                    return
        for number in sorted(self.places, reverse=True):
            if number not in wanted:
                await self._retire(self.places.pop(number), supervisor)

    async def _retire(self, place: WorkerPlace[Version], supervisor: Supervisor) -> None:
        place.retire()
        while place.current is not None:
            await place.wait_changed()
        await supervisor.stop_child(place.child)
        supervisor.delete_child(place.child)

    # -- stop ------------------------------------------------------------------------------------------------

    async def _handle_signals(self, *, task_status: trio.TaskStatus[None]) -> None:
        ignored = {
            number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_IGN
        }
        stop_at: float | None = None
        wanted = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} - ignored
        with trio.open_signal_receiver(*wanted) as signals:
            replay()
            task_status.started()
            async for number in signals:
                now = trio.current_time()
                if number == signal.SIGHUP:
                    self.request_reload()
                elif stop_at is None:
                    stop_at = now
                    self.stop()
                    log.info("stop requested", signal=signal.Signals(number).name)
                elif number == signal.SIGINT and now - stop_at > REPEAT_TIME:
                    self._exit_status = EX_INTERRUPTED
                    for place in self.places.values():
                        place.signal(signal.SIGINT)

    def stop(self) -> None:
        """Begin the stop of all workers, and return at once."""
        if self.stopping:
            return
        self._begin_stop(asked_for=True)
        self._scope.cancel()

    def _begin_stop(self, *, asked_for: bool) -> None:
        if self.stopping:
            return
        self.stopping = True
        close_listeners(self._held)  # the workers hold them until each has taken its last connection
        self._notifier.stopping()
        self.boot.on_stopping(self._stop_seconds() + STOP_MARGIN, asked_for=asked_for)
        for place in self.places.values():
            place.stop()


def create_secrets(config: Config, environ: Mapping[str, str]) -> None:
    """Create the secrets that are not configured, so that all workers read the same ones.

    Raises:
        ConfigError: the state folder, or a file in it, cannot be used.
    """
    if config.channel.jwt_secret is None or config.server.operator_token is None:
        folder = open_state_dir(config, environ)
        for name in (OPERATOR_TOKEN, "jwt-secret"):
            ensure_secret(folder, name)


def wanted_places(config: Config) -> range:
    """Return the places of the workers that a configuration asks for."""
    return range(1, worker_count(config.server.workers, len(os.sched_getaffinity(0))) + 1)


def node_name(config: Config, rng: random.Random) -> str:
    """Return the first part of the workers' node ids."""
    if config.cluster.node is not None:
        return config.cluster.node
    host = re.sub(r"[^A-Za-z0-9_-]", "-", os.uname().nodename.partition(".")[0])
    return f"{host[:32] or 'node'}-{rng.getrandbits(24):06x}"


def _cause_of(error: TangramError) -> str:
    """Return the operator's mistake behind a failed start, or the failure itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OperatorError):
            return str(cause)
        cause = cause.__cause__
    return str(error)


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
