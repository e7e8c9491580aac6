"""Run one plugin: check its configuration, enter its lifespan, supervise its services.

The supervisor of the services allows no restart: the first service that crashes ends the plugin, and the
supervisor above decides whether the plugin restarts. The exception that leaves ``run`` is the inner
supervisor's; the outer one reads the path ``("plugin:NAME", "SERVICE")`` and the cause from it.

Start order: configuration, lifespan, services by (priority, name). Stop order: services in reverse, then the
lifespan. The lifespan's clean-up is shielded from the cancellation, with a deadline of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import attrs
import structlog
import trio

from tangram.asyncio_hint import asyncio_hint
from tangram.bus.subscriber import service_nursery
from tangram.declared.counts import PushCounts
from tangram.declared.pool import PushPool
from tangram.errors import BadMessage, PluginError, RestartsExhausted
from tangram.groups import all_leaves_are, first_leaf, unwrap_single
from tangram.plugin_exit import exits_are_crashes
from tangram.plugins.first_steps import FirstSteps
from tangram.plugins.registry import LoadedPlugin
from tangram.plugins.service import Service
from tangram.plugins.state import BackendState
from tangram.supervision import (
    CURRENT_CHILD_TASK,
    AbandonedThread,
    Child,
    Supervisor,
    open_supervisor,
    run_sync_in_thread,
    thread_statistics,
)
from tangram.task_status import RelayedStatus

__all__ = ["LIFESPAN_EXIT_SECONDS", "HostStatistics", "PluginHost"]

log = structlog.get_logger("tangram.plugins")

HANDLERS: Final = "push handlers"
"""The name of the child that handles declared pushes: no function has such a name."""

LIFESPAN_EXIT_SECONDS: Final = 5.0
"""Seconds for a lifespan to clean up, the default ``stop_timeout`` of a service.

It gets less if the services have left less of the plugin's stop time.
"""
LIFESPAN_ENTER_SECONDS: Final = 30.0
"""Seconds for a lifespan to set up, the default ``start_timeout`` of a service."""
LIFESPAN_LEAST_SECONDS: Final = 0.2
"""Seconds for a lifespan to clean up when the services have used up the stop time: enough to close a file."""


@attrs.frozen
class HostStatistics:
    """The state of one plugin."""

    running: bool
    """Its services have started, and no stop has begun since."""
    ghosts: tuple[AbandonedThread, ...]
    """Threads of its services that did not end within their stop time and still run."""


class PluginHost:
    """A plugin as a child of the supervision tree.

    It is created with the incarnation; ``run`` is called again for each restart of the plugin.
    """

    def __init__(
        self,
        loaded: LoadedPlugin,
        *,
        state: Callable[[], BackendState],
        config: Mapping[str, Any] | None = None,
        supervisor: Mapping[str, Any] | None = None,
        lifespan_timeout: float = LIFESPAN_EXIT_SECONDS,
        started: set[str] | None = None,
        push_counts: PushCounts | None = None,
        place: Callable[..., Awaitable[None]] | None = None,
    ) -> None:
        """Create the host of a loaded plugin.

        Args:
            loaded: the plugin.
            state: returns the state of the current incarnation.
            config: the raw table ``[plugins.NAME]``.
            supervisor: further arguments for ``open_supervisor``, for example ``on_event``.
            lifespan_timeout: seconds for the lifespan's clean-up.
            started: the names of temporary services that have run already. A caller that creates several
                hosts of one plugin passes the same set.
            push_counts: the numbers of declared pushes, counted on for the same reason.
            place: runs a service on one of several nodes; see ``Placement.run``.
        """
        self.loaded = loaded
        self._state = state
        self._raw = dict(config or {})
        self._settings = dict(supervisor or {})
        self._lifespan_timeout = lifespan_timeout
        self._temporary_started: set[str] = set() if started is None else started
        self._place = place
        self._running = False
        self._first_steps = FirstSteps()
        self.push_counts = PushCounts() if push_counts is None else push_counts
        self.pushes: PushPool | None = None
        """The handlers of declared pushes, while the plugin runs and has any."""
        self.websockets: set[trio.CancelScope] = set()
        """The scopes of the plugin's open WebSockets, which are cancelled when its services are stopped."""
        self.on_running: Callable[[], None] = lambda: None
        """Called when it has begun to run."""

    def replace(self, loaded: LoadedPlugin) -> None:
        """Take another version of the plugin, which the next ``run`` uses."""
        self.loaded = loaded

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self.loaded.name

    @property
    def handles_pushes(self) -> bool:
        """Whether the plugin declares handlers of pushes."""
        return any(channel.incoming for channel in self.loaded.plugin.channels)

    @property
    def start_timeout(self) -> float:
        """Seconds that a start may take: the lifespan's, then those of each service."""
        return LIFESPAN_ENTER_SECONDS + sum(
            service.start_timeout for service in self._to_start() if service.reports_start
        )

    @property
    def stop_timeout(self) -> float:
        """Seconds that a stop may take: those of each service, then the lifespan's."""
        return self._lifespan_timeout + sum(service.stop_timeout for service in self.loaded.plugin.services)

    def check_config(self) -> Any:
        """Return the configuration structured into the plugin's ``config_class``.

        Raises:
            PluginConfigError: the table does not fit the class; it lists every fault.
        """
        return self.loaded.plugin.structure_config(self._raw, key=self.loaded.key)

    @property
    def running(self) -> bool:
        """Its services have started, and no stop has begun since.

        The site reads it at every request.
        """
        return self._running

    def app(self, max_body: int) -> Any:  # noqa: ARG002 - hosts of other kinds use it
        """Return an ASGI application of the plugin's routes, or None if the site's table has them.

        Args:
            max_body: the largest request body in bytes; 0 is no limit.
        """
        return None

    def statistics(self) -> HostStatistics:
        """Return the state of the plugin and its abandoned threads."""
        own = f"{self.name}/"
        ghosts = tuple(ghost for ghost in thread_statistics().ghosts if ghost.name.startswith(own))
        return HostStatistics(running=self._running, ghosts=ghosts)

    async def run(self, *, task_status: trio.TaskStatus[Supervisor] = trio.TASK_STATUS_IGNORED) -> None:
        """Run one incarnation of the plugin until it is cancelled or a service crashes.

        The start is reported once all services have reported theirs.
        """
        state = self._state()
        state.set_plugin_config(self.loaded.dist_name, self.loaded.plugin.config_class, self.check_config())
        self.loaded.plugin.link.state = state
        crash: Exception | None = None
        with trio.CancelScope() as guard:
            async with self.lifespan(state):
                try:
                    await self._serve(state, task_status)
                except Exception as error:
                    crash = error
                    raise
                finally:
                    # Only the lifespan's clean-up runs from here on: shield it until its deadline.
                    guard.shield = True
                    guard.deadline = self._lifespan_deadline()
        if guard.cancelled_caught:
            log.warning("lifespan clean-up timed out", plugin=self.name, seconds=self._lifespan_timeout)
        # A lifespan may swallow the exception that ended the plugin: raise it again.
        await trio.lowlevel.checkpoint_if_cancelled()
        if crash is not None:
            raise crash

    def lifespan(self, state: BackendState) -> AbstractAsyncContextManager[None]:
        """Return the plugin's lifespan, or an empty one, to enter around its services."""
        return _lifespan(self.loaded, state)

    async def call_service(
        self, service: Service, state: BackendState, task_status: trio.TaskStatus[None]
    ) -> None:
        """Run an async service to its end and report its start."""
        await _run_async(service, state, task_status, self._first_steps)

    def _lifespan_deadline(self) -> float:
        now = trio.current_time()
        life = CURRENT_CHILD_TASK.get()
        left = self._lifespan_timeout if life is None else life.stop_due - now
        return now + min(self._lifespan_timeout, max(left, LIFESPAN_LEAST_SECONDS))

    def _push_children(self, state: BackendState) -> list[Child]:
        """Return the child that handles declared pushes: the last one to start."""
        if not self.handles_pushes:
            return []
        pool = PushPool(self.name, self.loaded.plugin.channels, state, counts=self.push_counts)

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            self.pushes = pool
            try:
                await pool.run(task_status=task_status)
            finally:
                self.pushes = None

        return [Child(HANDLERS, run)]

    async def _serve(self, state: BackendState, task_status: trio.TaskStatus[Supervisor]) -> None:
        services = self._to_start()
        steps = self._first_steps = FirstSteps(
            one.name for one in services if one.reports_start or self._is_placed(one)
        )
        status = RelayedStatus(task_status, repeatable=True)
        try:
            await self._supervise([self._child(one, state) for one in services], state, status)
        except RestartsExhausted:
            # The services after the crashed one may not have had their turn, which is left to chance. They
            # start at once, so that the plugin's start counts as over.
            if steps.complete:
                status.started()
            raise

    async def _supervise(
        self, services: list[Child], state: BackendState, task_status: trio.TaskStatus[Supervisor]
    ) -> None:
        async with open_supervisor(
            services + self._push_children(state),
            name=self.name,
            strategy="one_for_all",
            restarts=0,
            # Each service has a stop time of its own; this is their sum and never ends first.
            shutdown_timeout=self.stop_timeout,
            **self._settings,
        ) as supervisor:
            await self._first_steps.end()
            self._running = True
            self.on_running()
            try:
                task_status.started(supervisor)
                await trio.sleep_forever()
            finally:
                # Set before the services end: routes must not rely on services that are stopping.
                self._running = False
                for scope in list(self.websockets):
                    scope.cancel()

    def _to_start(self) -> list[Service]:
        services = sorted(self.loaded.plugin.services, key=lambda service: (service.priority, service.name))
        return [
            one for one in services if one.restart != "temporary" or one.name not in self._temporary_started
        ]

    def _is_placed(self, service: Service) -> bool:
        """Return whether the service runs on one of several nodes, and first waits for its lease."""
        return service.instances != "each" and self._place is not None

    def _child(self, service: Service, state: BackendState) -> Child:
        steps = self._first_steps

        async def run(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            if service.restart == "temporary":
                self._temporary_started.add(service.name)
            status = RelayedStatus(
                task_status, repeatable=True, on_started=lambda _: steps.note_start(service.name)
            )
            with exits_are_crashes():
                while await self._is_ended_by_message(service, state, status):
                    await trio.lowlevel.checkpoint()

        async def start(*, task_status: trio.TaskStatus[None]) -> None:
            await steps.check()
            if self._place is None or not self._is_placed(service):
                await run(task_status=task_status)
                return
            lease = f"{self.name}/{service.name}"
            await self._place(lease, run, task_status=task_status, start_timeout=service.start_timeout)

        return Child(
            service.name,
            start,
            restart=service.restart,
            start_timeout=service.start_timeout,
            stop_timeout=service.stop_timeout,
        )

    async def _is_ended_by_message(
        self, service: Service, state: BackendState, status: RelayedStatus[None]
    ) -> bool:
        """Run a service; return whether a message that it could not read has ended it."""
        try:
            if service.threaded:
                status.started()
                await run_sync_in_thread(
                    service.function,
                    state,
                    name=f"{self.name}/{service.name}",
                    stop_timeout=service.stop_timeout,
                )
            else:
                await self.call_service(service, state, status)
        except Exception as error:
            bad = first_leaf(error)
            if not isinstance(bad, BadMessage) or not all_leaves_are(error, BadMessage):
                raise
            log.warning(
                "message dropped",
                plugin=self.name,
                service=service.name,
                sender=bad.sender,
                topic=bad.topic,
                cause=str(bad)[:200],
            )
            return True
        return False


async def _run_async(
    service: Service, state: BackendState, task_status: trio.TaskStatus[None], steps: FirstSteps
) -> None:
    # Tasks that a service starts (such as a Subscriber's) run in this nursery; their crash ends the service.
    try:
        async with trio.open_nursery() as nursery:
            service_nursery.set(nursery)
            try:
                if service.reports_start:
                    await service.function(state, task_status=task_status)
                else:
                    task_status.started()
                    await service.function(state)
            except BaseException as error:
                # The end of the nursery lets other tasks run before the exception leaves it.
                steps.note_error(service, error)
                raise
        return
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        (only,) = group.exceptions
    # The author does not know this nursery: raise a single exception without the group around it.
    _explain(only)
    raise only


def _explain(error: BaseException) -> None:
    """Raise an explanation in place of an error of asyncio's functions."""
    hint = asyncio_hint(unwrap_single(error))
    if hint is not None:
        raise PluginError(hint).with_traceback(error.__traceback__) from error


@asynccontextmanager
async def _lifespan(loaded: LoadedPlugin, state: BackendState) -> AsyncIterator[None]:
    if loaded.plugin.lifespan is None:
        yield
        return
    entered = False
    try:
        with exits_are_crashes():
            async with loaded.plugin.lifespan(state):
                entered = True
                yield
    except Exception as error:
        if not entered:
            error.add_note(f"in the lifespan of plugin {loaded.name!r}")
        _explain(error)
        raise
