"""A plugin's life: its configuration checked, its lifespan entered, its services run under a supervisor of
their own.

The supervisor has an intensity of 0: the first service that crashes ends the plugin, whose place in the tree
decides what happens next. What leaves is the supervisor's own exception, from which the one above reads the
path ``("plugin:NAME", "SERVICE")`` and the cause.

Order: configuration, lifespan, services by (priority, name); on the way down the services in reverse, then
the lifespan, which gets time of its own to clean up although the stop has been asked for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs
import structlog
import trio

from tangram.bus.subscriber import service_nursery
from tangram.plugins.plugin import Service
from tangram.plugins.registry import LoadedPlugin
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

__all__ = ["LIFESPAN_EXIT_SECONDS", "HostStatistics", "PluginHost"]

log = structlog.get_logger("tangram.plugins")

LIFESPAN_EXIT_SECONDS = 5.0
"""What a lifespan gets to clean up after a stop, if the plugin's own stop time has so much left: as long as
one service.
"""
LIFESPAN_ENTER_SECONDS = 30.0
"""What a lifespan gets to set up: the same as a service by default."""
LIFESPAN_LEAST_SECONDS = 0.2
"""What it gets in any case, although the services have used the plugin's stop time up: enough to close a
file.
"""


@attrs.frozen
class HostStatistics:
    """What is to be seen of one plugin."""

    running: bool
    """Its services have started and it has not been stopped since."""
    ghosts: tuple[AbandonedThread, ...]
    """Threads of its services that go on although they were told to stop, and have been left behind."""


class PluginHost:
    """The child that a plugin is in the supervision tree. Made with the incarnation, run anew whenever the
    plugin is restarted.
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
    ) -> None:
        """``config`` is the raw ``[plugins.NAME]``; ``supervisor`` is passed on to ``open_supervisor``
        (``on_event``); ``started`` holds the temporary services that have had their start, for who makes
        several hosts of one plugin.
        """
        self.loaded = loaded
        self._state = state
        self._raw = dict(config or {})
        self._settings = dict(supervisor or {})
        self._lifespan_timeout = lifespan_timeout
        self._temporary_started: set[str] = set() if started is None else started
        self._running = False

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self.loaded.name

    @property
    def start_timeout(self) -> float:
        """Seconds that its start may take: the lifespan's share, and its services' one after another."""
        return LIFESPAN_ENTER_SECONDS + sum(
            service.start_timeout for service in self._to_start() if service.reports_start
        )

    @property
    def stop_timeout(self) -> float:
        """Seconds that its stop may take: its services' one after another, and the lifespan's share."""
        return self._lifespan_timeout + sum(service.stop_timeout for service in self.loaded.plugin.services)

    def check_config(self) -> Any:
        """The configuration structured into the plugin's class; raises `PluginConfigError` with all
        faults.
        """
        return self.loaded.plugin.structure_config(self._raw, key=self.loaded.key)

    @property
    def running(self) -> bool:
        """Its services have started and it has not been stopped since; cheap, for it is asked at every
        request.
        """
        return self._running

    def app(self, max_body: int) -> Any:  # noqa: ARG002  # other hosts' applications read bodies
        """An ASGI application of its routes, for the site; ``None``: they are in the site's own table.
        ``max_body`` bounds a request's body in bytes, 0 does not.
        """
        return None

    def statistics(self) -> HostStatistics:
        own = f"{self.name}/"
        ghosts = tuple(ghost for ghost in thread_statistics().ghosts if ghost.name.startswith(own))
        return HostStatistics(running=self._running, ghosts=ghosts)

    async def run(self, *, task_status: trio.TaskStatus[Supervisor] = trio.TASK_STATUS_IGNORED) -> None:
        """One incarnation. Reports its start when all services have; runs until cancelled or a service
        crashes.
        """
        state = self._state()
        state.set_plugin_config(self.loaded.dist_name, self.loaded.plugin.config_class, self.check_config())
        crash: Exception | None = None
        with trio.CancelScope() as guard:
            async with self.lifespan(state):
                try:
                    await self._serve(state, task_status)
                except Exception as error:
                    crash = error
                    raise
                finally:
                    # The rest is the lifespan's clean-up: it may await although we are cancelled, for so
                    # long.
                    guard.shield = True
                    guard.deadline = self._lifespan_deadline()
        if guard.cancelled_caught:
            log.warning(
                "a lifespan did not end in time and was cut", plugin=self.name, seconds=self._lifespan_timeout
            )
        # A lifespan that swallows what ended the plugin must not hide it.
        await trio.lowlevel.checkpoint_if_cancelled()
        if crash is not None:
            raise crash

    def lifespan(self, state: BackendState) -> AbstractAsyncContextManager[None]:
        """What is around the services, also where the plugin declares nothing."""
        return _lifespan(self.loaded, state)

    async def call_service(
        self, service: Service, state: BackendState, task_status: trio.TaskStatus[None]
    ) -> None:
        """Run an async service to its end, and report its start."""
        await _run_async(service, state, task_status)

    def _lifespan_deadline(self) -> float:
        now = trio.current_time()
        life = CURRENT_CHILD_TASK.get()
        left = self._lifespan_timeout if life is None else life.stop_due - now
        return now + min(self._lifespan_timeout, max(left, LIFESPAN_LEAST_SECONDS))

    async def _serve(self, state: BackendState, task_status: trio.TaskStatus[Supervisor]) -> None:
        async with open_supervisor(
            [self._child(service, state) for service in self._to_start()],
            name=self.name,
            strategy="one_for_all",
            restarts=0,
            # Each service has its own; what the plugin itself has left of a stop bounds them all.
            shutdown_timeout=self.stop_timeout,
            **self._settings,
        ) as supervisor:
            self._running = True
            try:
                task_status.started(supervisor)
                await trio.sleep_forever()
            finally:
                # Here, and not once they have ended: routes must not count on services that are on their
                # way down.
                self._running = False

    def _to_start(self) -> list[Service]:
        services = sorted(self.loaded.plugin.services, key=lambda service: (service.priority, service.name))
        return [
            one for one in services if one.restart != "temporary" or one.name not in self._temporary_started
        ]

    def _child(self, service: Service, state: BackendState) -> Child:
        async def run(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            if service.restart == "temporary":
                self._temporary_started.add(service.name)
            if service.threaded:
                task_status.started()
                await run_sync_in_thread(
                    service.function,
                    state,
                    name=f"{self.name}/{service.name}",
                    stop_timeout=service.stop_timeout,
                )
            else:
                await self.call_service(service, state, task_status)

        return Child(
            service.name,
            run,
            restart=service.restart,
            start_timeout=service.start_timeout,
            stop_timeout=service.stop_timeout,
        )


async def _run_async(service: Service, state: BackendState, task_status: trio.TaskStatus[None]) -> None:
    # What a service starts (a Subscriber's task) lives in its own nursery, and ends the service if it
    # crashes.
    try:
        async with trio.open_nursery() as nursery:
            service_nursery.set(nursery)
            if service.reports_start:
                await service.function(state, task_status=task_status)
            else:
                task_status.started()
                await service.function(state)
        return
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        only = group.exceptions[0]
    # The nursery is ours, not the author's: where only one thing went wrong, it is told without the wrapping.
    raise only


@asynccontextmanager
async def _lifespan(loaded: LoadedPlugin, state: BackendState) -> AsyncIterator[None]:
    if loaded.plugin.lifespan is None:
        yield
        return
    entered = False
    try:
        async with loaded.plugin.lifespan(state):
            entered = True
            yield
    except Exception as error:
        if not entered:
            error.add_note(f"in the lifespan of plugin {loaded.name!r}")
        raise
