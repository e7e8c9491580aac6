"""Hosts an existing plugin in the supervision tree, with its code on an island.

The island is opened before any code of the plugin runs, and closed after all of it has ended. Each service is
an asyncio task, and the supervised child waits for that task: crashes, restarts and stops take the same path,
with the same names, as those of a native plugin.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import attrs
import structlog
import trio

from tangram.cluster.placement import HELD_LEASE
from tangram.compat.configuration import copy_of
from tangram.compat.extension_sockets import ExtensionSockets
from tangram.compat.first_step import noting_first_step
from tangram.compat.island import Island, IslandClosed, Resident, open_island
from tangram.compat.names import has_fastapi
from tangram.compat.patches import patch_extensions, patch_redis
from tangram.compat.returns import Outage, Returns, has_extension
from tangram.compat.state import BackendState, open_http_client, open_redis_client
from tangram.plugins.host import PluginHost
from tangram.plugins.plugin import Service
from tangram.plugins.service import RestartType
from tangram.plugins.state import BackendState as SharedState
from tangram.task_status import RelayedStatus

if TYPE_CHECKING:
    import asyncio

    from tangram.compat.fastapi_app import FastApp
    from tangram.compat.plugin import Plugin
    from tangram.compat.recording import ClientFence, FencedCommands
    from tangram.plugins.registry import LoadedPlugin
    from tangram.web.site import AppMount

__all__ = ["IslandHost", "run_shared_island"]

log = structlog.get_logger("tangram.compat")

LIFESPAN_SECONDS: Final = 5.0
"""Seconds for a lifespan to end after it was cancelled.

The host cuts this short where the plugin's stop time is used up.
"""


async def run_shared_island(
    keep: Callable[[Island | None], None], *, task_status: trio.TaskStatus[Island] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run the one island of ``[compat] islands = "one"`` as a child of the tree.

    Args:
        keep: Called with the island when it is open, and with ``None`` when it closes.
        task_status: Reports the open island.
    """
    async with open_island("shared") as island:
        keep(island)
        try:
            task_status.started(island)
            await trio.sleep_forever()
        finally:
            keep(None)


SOCKETS_SECONDS: Final = 1.0
"""Seconds for the search for connections that an extension has left open; it takes some milliseconds."""


class StartGateView(Protocol):
    """Lets the services of several plugins start together."""

    def is_last(self, name: str) -> bool: ...
    def arrive(self, name: str) -> None: ...
    def leave(self, name: str) -> None: ...
    async def wait_turn(self, begun: trio.Event) -> None: ...


class _Open:
    """A gate that holds no service."""

    def is_last(self, name: str) -> bool:  # noqa: ARG002 - the protocol's signature
        return False

    def arrive(self, name: str) -> None: ...
    def leave(self, name: str) -> None: ...
    async def wait_turn(self, begun: trio.Event) -> None:  # noqa: ARG002 - the protocol's signature
        await trio.lowlevel.checkpoint()


class IslandHost(PluginHost):
    """Hosts one plugin on an island of its own, or on the one that ``shared`` returns."""

    def __init__(
        self,
        loaded: LoadedPlugin,
        *,
        state: Callable[[], SharedState],
        shared: Callable[[], Island | None] = lambda: None,
        gate: StartGateView | None = None,
        outage: Outage | None = None,
        fenced: Callable[[], FencedCommands | None] = lambda: None,
        **settings: Any,
    ) -> None:
        super().__init__(loaded, state=self._view, **settings)
        self._shared_state = state
        self._shared_island = shared
        self._gate = gate or _Open()
        self._outage = outage
        self._fenced = fenced
        self._package = loaded.module.partition(".")[0]
        self._restart: RestartType | None = None
        self._sockets: ExtensionSockets | None = None
        self._fast = self._fast_app()
        self.resident: Resident | None = None
        self.state: BackendState | None = None

    def replace(self, loaded: LoadedPlugin) -> None:
        """Take another version of the plugin, with the routes that it declares."""
        super().replace(loaded)
        self._fast = self._fast_app()

    def _view(self) -> SharedState:
        assert self.state is not None
        # The native host uses attributes alone that this view passes on.
        return cast("SharedState", self.state)

    async def run(self, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
        """Run one incarnation on its island."""
        island = self._shared_island()
        if island is not None:
            await self._reside(island, task_status)
            return
        async with open_island(self.name) as island:
            await self._reside(island, task_status)

    async def _reside(self, island: Island, task_status: trio.TaskStatus[Any]) -> None:
        patch_extensions(self._package)
        patch_redis()
        resident = self.resident = Resident(island, self.name)
        shared = self._shared_state()
        url = str(shared.config.core.redis_url)
        plugin = cast("Plugin", self.loaded.plugin)
        own, self._restart = plugin.split_config(self._raw, key=self.loaded.key)
        config = copy_of(shared.config)
        if self._restart is not None:
            config.plugins[self.loaded.key] = copy.deepcopy(dict(own))
        fence = self._fence()
        state = self.state = BackendState(
            lambda: shared,
            config=config,
            make={
                "redis_client": partial(open_redis_client, shared.client_url, shared.history_rules, fence),
                "http_client": open_http_client,
            },
        )
        self._sockets = ExtensionSockets(self.name, self._package, url)
        arrive = partial(self._gate.arrive, self.name)
        try:
            await super().run(task_status=RelayedStatus(task_status, on_started=lambda _: arrive()))
        finally:
            self._gate.leave(self.name)
            self.resident = self.state = None
            await resident.close(state.opened_clients)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + SOCKETS_SECONDS):
                await self._sockets.close_leftover()

    def _fence(self) -> ClientFence | None:
        """Return the fence of the plugin's client, with the lease under which the plugin runs now."""
        commands = self._fenced()
        if commands is None:
            return None
        from tangram.compat.recording import ClientFence

        return ClientFence(HELD_LEASE.get(), commands)

    def running_resident(self) -> tuple[Resident, BackendState]:
        """Return the resident and the state that its routes use now.

        Raises:
            IslandClosed: the plugin is not running.
        """
        if self.resident is None or self.state is None:
            raise IslandClosed(f"plugin {self.name!r} is restarting", plugin=self.name)
        return self.resident, self.state

    def app(self, max_body: int) -> AppMount | None:
        """Return its routes as an application for the site, or ``None`` where it has no routes."""
        if self._fast is not None or not self.loaded.plugin.routers:
            return self._fast
        from tangram.compat.table_app import TableApp

        return TableApp(self, list(self.loaded.plugin.routers), max_body)

    def _fast_app(self) -> FastApp | None:
        """Return the application of its FastAPI routers, if it has such."""
        from tangram.routing import APIRouter

        routers: list[Any] = list(self.loaded.plugin.routers)
        if all(isinstance(router, APIRouter) for router in routers) or not has_fastapi():
            return None
        from tangram.compat.fastapi_app import FastApp

        return FastApp(self, routers, lambda: self._shared_state().config.compat.max_body)

    def _note_sockets(self) -> None:
        if self._sockets is not None and has_extension(self._package):
            self._sockets.note()

    def _to_start(self) -> list[Service]:
        services = super()._to_start()
        if self._restart is None:
            return services
        return [attrs.evolve(service, restart=self._restart) for service in services]

    async def call_service(
        self, service: Service, state: SharedState, task_status: trio.TaskStatus[None]
    ) -> None:
        """Run a service in an asyncio task; call it again where `Returns` says so."""
        returns = Returns(
            self.name,
            self._outage,
            restart=service.restart,
            streams=partial(has_extension, self._package),
        )

        begun = trio.Event()
        reports = service.reports_start or self._gate.is_last(self.name)
        steps = self._first_steps

        async def run() -> None:
            status = trio.TASK_STATUS_IGNORED if begun.is_set() or not reports else task_status
            begun.set()
            with noting_first_step(status, steps, service) as noted:
                if service.reports_start:
                    await service.function(state, task_status=noted)
                else:
                    noted.started()
                    await service.function(state)

        if self._gate.is_last(self.name):
            self._gate.arrive(self.name)
        elif not reports:
            task_status.started()
        try:
            if not service.reports_start:
                await self._gate.wait_turn(begun)
                await steps.check()
            await self._call_repeatedly(run, service, returns)
        finally:
            begun.set()

    async def _call_repeatedly(
        self, run: Callable[[], Awaitable[None]], service: Service, returns: Returns
    ) -> None:
        resident, _ = self.running_resident()
        while True:
            began = trio.current_time()
            await resident.call(
                run,
                name=service.name,
                stop_timeout=service.stop_timeout,
                before_stop=self._note_sockets,
            )
            reason = await returns.reason(began)
            log.log(
                logging.INFO if reason is None else logging.WARNING,
                "service returned",
                plugin=self.name,
                service=service.name,
                seconds=round(trio.current_time() - began, 3),
                called_again_because=reason,
            )
            if reason is None:
                return
            await returns.wait()
            patch_extensions(self._package)  # the first call may have imported further modules
            patch_redis()

    def lifespan(self, state: SharedState) -> AbstractAsyncContextManager[None]:
        if self.loaded.plugin.lifespan is None and self._fast is None:
            return super().lifespan(state)
        return self._lifespan_on_island(state)

    @asynccontextmanager
    async def _lifespans(self, state: SharedState) -> AsyncIterator[None]:
        """Enter the plugin's lifespan, then those of its routers, as the published server does."""
        lifespan = self.loaded.plugin.lifespan
        async with AsyncExitStack() as stack:
            if lifespan is not None:
                await stack.enter_async_context(lifespan(state))
            if self._fast is not None:
                await stack.enter_async_context(self._fast.lifespan(cast("BackendState", state)))
            yield

    @asynccontextmanager
    async def _lifespan_on_island(self, state: SharedState) -> AsyncIterator[None]:
        """Enter and leave the lifespan within one asyncio task, as its task groups require."""
        resident, _ = self.running_resident()
        entered = trio.Event()
        leave: list[asyncio.Future[None]] = []

        async def hold() -> None:
            async with self._lifespans(state):
                leave.append(resident.island.loop.create_future())
                entered.set()
                await leave[0]

        task = resident.spawn(hold, name=f"lifespan of {self.name}")
        task.add_done_callback(lambda _task: entered.set())
        try:
            await entered.wait()
        except trio.Cancelled:
            await resident.wait(task, stop_timeout=LIFESPAN_SECONDS)
            raise
        if not leave:
            await self._not_entered(resident, task)
        try:
            yield
        finally:
            if leave and not leave[0].done():
                leave[0].set_result(None)
            await resident.wait(task, stop_timeout=LIFESPAN_SECONDS)

    async def _not_entered(self, resident: Resident, task: asyncio.Task[None]) -> None:
        try:
            await resident.wait(task)
        except Exception as error:
            error.add_note(f"in the lifespan of plugin {self.name!r}")
            raise
        raise RuntimeError(f"the lifespan of plugin {self.name!r} did not yield")
