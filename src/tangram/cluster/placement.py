"""Run placed plugins where their leases are, and find the node that runs one.

A placed plugin is a child of the tree on every node. On one node its lease is held, and it runs; on the
others it stands by, which counts as started. The deadline of the lease is the deadline of a cancel scope
around the plugin, so that it ends also while Redis cannot be reached.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Protocol, TypeVar

import structlog
import trio

from tangram.cluster.lease import Lease, LeaseState
from tangram.cluster.nodes import Nodes
from tangram.cluster.registry import NodeRecord
from tangram.errors import BrokerUnavailable
from tangram.supervision import CURRENT_CHILD_TASK
from tangram.task_status import RelayedStatus

__all__ = ["HELD_LEASE", "Placement", "under_lease"]

T = TypeVar("T")

log = structlog.get_logger("tangram.cluster")

LEAST_WAIT: Final = 0.05
"""Seconds between two tries to take a lease."""
AWAY_WAIT: Final = 0.25
"""Seconds until the next try while Redis is away."""
RELEASE_TIMEOUT: Final = 1.0
"""Seconds at a stop for the release of a lease."""

HELD_LEASE: Final[ContextVar[str | None]] = ContextVar("tangram_held_lease", default=None)
"""The lease under which the running task works; its publications carry the lease's token."""


class PlacedRun(Protocol):
    """A plugin or a service as a child of the tree."""

    def __call__(self, *, task_status: trio.TaskStatus[Any]) -> Awaitable[object]: ...


class Placement:
    """Where plugins run that run on one node at a time.

    Args:
        nodes: returns the nodes; None on a server that is not one of several.
        placed: returns the names of the plugins that run on one node.
        stops: returns whether this node is about to stop or to restart all plugins, or the named one.
    """

    def __init__(
        self,
        nodes: Callable[[], Nodes | None],
        placed: Callable[[], Collection[str]],
        stops: Callable[[str], bool] = lambda _name: False,
    ) -> None:
        self._nodes = nodes
        self._placed = placed
        self._stops = stops
        self._scopes: dict[str, trio.CancelScope] = {}
        self._moves: dict[str, str] = {}
        self._stubborn: set[str] = set()
        self.stopped: set[str] = set()
        """The plugins that the operator has stopped on this node."""
        self.waiting: dict[str, None] = {}
        """The leases for which a plugin of this node waits."""

    # Which node.

    def is_placed(self, plugin: str) -> bool:
        """Return whether a plugin runs on one node at a time, and there may be others."""
        return self._nodes() is not None and plugin in self._placed()

    def is_mine(self, plugin: str) -> bool:
        """Return whether this node answers for a plugin: it holds it, or every node runs it."""
        nodes = self._nodes()
        if nodes is None or plugin not in self._placed():
            return True
        return nodes.book.lease(plugin).held

    def holder(self, plugin: str) -> NodeRecord | None:
        """Return the node that runs a placed plugin; None if there is none now, or it is unknown."""
        nodes = self._nodes()
        if nodes is None:
            return None
        return nodes.alive().get(nodes.book.lease(plugin).holder)

    async def wait_for_holder(self, plugin: str, timeout: float) -> NodeRecord | None:
        """Wait until a node runs a placed plugin, and return it; None after ``timeout`` seconds."""
        with trio.move_on_after(timeout):
            while (holder := self.holder(plugin)) is None:
                nodes = self._nodes()
                if nodes is None:
                    return None
                await nodes.wait_change()
            return holder
        return None

    # Running.

    def attach(self, nodes: Nodes) -> None:
        """Follow the leases of the nodes, which have just been made."""
        nodes.book.watch(self._placed())
        nodes.on_leases(lambda: self._follow(nodes))
        nodes.on_change(self._take_request)

    async def run(
        self,
        name: str,
        run: PlacedRun,
        *,
        task_status: trio.TaskStatus[Any],
        start_timeout: float = math.inf,
        on_standby: Callable[[], None] = lambda: None,
    ) -> None:
        """Run a plugin, or one service, whenever this node holds its lease.

        Args:
            name: the name of the lease: the plugin's, or ``PLUGIN/SERVICE``.
            run: runs it until it is cancelled, or fails.
            task_status: gets the start, also that of a plugin that has to wait.
            start_timeout: seconds for a start after the plugin has waited; it crashes after that.
            on_standby: called when it has to wait.
        """
        nodes = self._nodes()
        if nodes is None:
            await run(task_status=task_status)
            return
        lease = nodes.book.lease(name)
        status = RelayedStatus(task_status, repeatable=True)
        while True:
            await self._wait_held(nodes, lease, status, on_standby)
            try:
                with self._holding(nodes, lease):
                    await _start_within(start_timeout if status.called else math.inf, run, status, name)
                    # The service has returned: keep the lease, so that no other node runs it again.
                    lease.finished = True
                    return
            except Exception as error:
                lease.expire(trio.current_time())
                if lease.state is not LeaseState.LOST:
                    raise
                # Its publications are refused, for example: another node runs it, and nothing has failed.
                log.info("plugin failed after its lease was lost", lease=lease.name, cause=repr(error))
            finally:
                await self._end(nodes, lease)

    async def _wait_held(
        self, nodes: Nodes, lease: Lease, status: RelayedStatus[Any], on_standby: Callable[[], None]
    ) -> None:
        lease.expire(trio.current_time())
        lease.ended()
        lease.want()
        began = trio.current_time()
        try:
            while not lease.held:
                wait = await self._try_to_take(nodes, lease, began)
                if lease.held:
                    break
                if lease.name not in self.waiting:
                    self.waiting[lease.name] = None
                    log.info("plugin stands by", lease=lease.name, holder=lease.holder or None)
                    on_standby()
                    status.started()
                    nodes.renew_now()
                with trio.move_on_after(wait):
                    await nodes.wait_change()
        except BaseException:
            # It waits no longer: this node is no candidate.
            nodes.book.release(lease.name, trio.current_time())
            raise
        finally:
            self.waiting.pop(lease.name, None)

    async def _try_to_take(self, nodes: Nodes, lease: Lease, began: float) -> float:
        """Take the lease if its time has come, and return the seconds until the next try."""
        due = lease.take_at(nodes.book.delay(lease.name, nodes.alive()))
        due = max(due, began + nodes.book.boot_wait(lease.name))
        if trio.current_time() < due:
            return due - trio.current_time()
        nodes.book.taking.add(lease.name)
        try:
            await nodes.take(lease)
        except BrokerUnavailable as error:
            log.debug("lease not taken", lease=lease.name, cause=str(error))
            return AWAY_WAIT
        finally:
            nodes.book.taking.discard(lease.name)
        due = lease.take_at(nodes.book.delay(lease.name, nodes.alive()))
        return max(LEAST_WAIT, due - trio.current_time())

    @contextmanager
    def _holding(self, nodes: Nodes, lease: Lease) -> Iterator[None]:
        """Cancel the block when the lease is lost, and let its publications carry the token."""
        log.info("plugin runs on this node", lease=lease.name, token=lease.token)
        task = CURRENT_CHILD_TASK.get()
        held = HELD_LEASE.set(lease.name)
        nodes.book.running(lease.name)
        nodes.renew_now()
        if task is not None:
            task.limit = lambda: _stop_by(lease)
        try:
            with trio.CancelScope(deadline=lease.deadline) as scope:
                self._scopes[lease.name] = scope
                yield
        finally:
            HELD_LEASE.reset(held)
            del self._scopes[lease.name]
            self._stubborn.discard(lease.name)
            if task is not None:
                task.limit = lambda: math.inf

    async def _end(self, nodes: Nodes, lease: Lease) -> None:
        """Release the lease of a plugin that has ended, or keep it for the plugin's restart."""
        now = trio.current_time()
        lease.expire(now)
        to = self._moves.pop(lease.name, None)
        if lease.state is LeaseState.LOST:
            log.warning("plugin stopped: its lease is lost", lease=lease.name, holder=lease.holder or None)
            lease.ended()
        elif to is not None or self._stops(lease.name):
            with trio.move_on_after(RELEASE_TIMEOUT, shield=True):
                await nodes.release(lease.name, to or "", shun=to is not None)
        elif lease.held:
            nodes.book.idle(lease.name, now)

    def _follow(self, nodes: Nodes) -> None:
        """Move the deadlines of the scopes, and cancel those whose lease is lost."""
        now = trio.current_time()
        for name, scope in self._scopes.items():
            lease = nodes.book.lease(name)
            lease.expire(now)
            if lease.held:
                scope.deadline = lease.deadline
            else:
                scope.cancel()
                self._report_stubborn(lease, now)

    def _report_stubborn(self, lease: Lease, now: float) -> None:
        if now > lease.stop_by and lease.name not in self._stubborn:
            self._stubborn.add(lease.name)
            log.critical(
                "plugin does not stop although its lease is lost: its publications are refused",
                lease=lease.name,
                late=round(now - lease.stop_by, 1),
            )

    # Requests of the operator.

    def give_up(self, plugin: str) -> None:
        """Let another node try a plugin that is in quarantine here."""
        nodes = self._nodes()
        if nodes is not None:
            nodes.book.release(plugin, trio.current_time())
            nodes.renew_now()

    def is_moving(self, name: str) -> bool:
        """Return whether a plugin ends because it was told to move."""
        return name in self._moves

    def move(self, name: str, to: str = "") -> None:
        """Stop a plugin that runs here, and give its lease away.

        Args:
            name: the name of the lease.
            to: the node that shall take it; empty for any other.
        """
        scope = self._scopes.get(name)
        if scope is not None:
            self._moves[name] = to
            scope.cancel()

    def _take_request(self, change: Mapping[str, str]) -> None:
        if change.get("what") == "move":
            self.move(change.get("lease", ""), change.get("to", ""))


async def _start_within(seconds: float, run: PlacedRun, status: RelayedStatus[Any], name: str) -> None:
    """Run a plugin that must report its start in time."""
    late = trio.CancelScope(deadline=trio.current_time() + seconds)

    def started(value: object) -> None:
        late.deadline = math.inf
        status.started(value)

    with late:
        await run(task_status=RelayedStatus(on_started=started, repeatable=True))
    if late.cancelled_caught:
        raise TimeoutError(f"{name!r} did not start within {seconds:g} s after it had taken its lease")


def _stop_by(lease: Lease) -> float:
    """Return when the plugin must have ended; infinity while the lease is held."""
    lease.expire(trio.current_time())
    return lease.stop_by


async def under_lease(lease: str | None, run: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Await ``run(*args)``, whose publications carry the token of a lease, if there is one."""
    if lease is None:
        return await run(*args)
    held = HELD_LEASE.set(lease)
    try:
        return await run(*args)
    finally:
        HELD_LEASE.reset(held)
