"""The first start of a server under test, and its end: both come, whatever its plugins do and whoever is
cancelled.

What cancels the test's block from outside does not reach the server at random: it stops in order, as always.
So its task is shielded, and the end, which `Lifetime.held` comes to in every case, bounds that.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import trio

from tangram.app import Server
from tangram.groups import all_leaves_are
from tangram.supervision import SupervisionEvent
from tangram.task_status import RelayedStatus
from tangram.testing.run.force_stop import remove_shields
from tangram.testing.run.virtual_clock import SwallowedCancelWatch, watch_swallowed_cancels

if TYPE_CHECKING:
    import httpx

__all__ = ["Lifetime", "NeverStarted", "TangramEnded", "was_cancelled"]

STOP_MORE = 5.0
"""Seconds past ``shutdown_timeout`` that the whole end of a server under test may take: half of its default
again. Then whoever still goes on is cancelled behind its shield, and named.
"""

RELEASES = 20
"""So often that is done, a second apart, for who shields itself anew; as often again it is ended by an
exception that it does not expect.
"""

REAL_STOP_MORE = 15.0
"""Real seconds past ``shutdown_timeout`` after which a task that goes on and on is ended: what is released
needs some, and a slow machine.
"""

PARTS = 6
"""Children of the tree beside its plugins, at most."""

LATES = 3
"""Stop times that supervision waits for a child that was late."""


class TangramEnded(Exception):
    """The server ended before it had started; ``status`` is its exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the server ended with status {status} before it had started")
        self.status = status


class NeverStarted(AssertionError):
    """The server came neither up nor to its end."""


class ServerUnderTest(Protocol):
    """What is needed of a server under test."""

    server: Server
    http: httpx.AsyncClient
    stubborn: list[str]
    status: int

    @property
    def ended(self) -> bool: ...
    def missing(self) -> list[str]: ...
    def stop(self) -> None: ...
    async def serve(self, *, task_status: trio.TaskStatus[Server]) -> None: ...
    async def wait_ended(self) -> int: ...


class Lifetime:
    """The start and the end of one server under test."""

    def __init__(self, running: ServerUnderTest) -> None:
        self._running = running
        self._error: BaseException | None = None
        """What the server raised before it was up."""
        self._is_up = False
        self._over = trio.Event()
        # Bounded: the end of the block cancels it once the stop has passed its time (see `_end`).
        self._serving = trio.CancelScope(shield=True)
        self._limit = trio.CancelScope()

    def _report_up(self, _server: Server) -> None:
        self._is_up = True
        self._over.set()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """The server is up in the block, and has come to its end after it.

        Raises:
            TangramEnded: it ended before it was up.
            NeverStarted: it did neither in its time.
            BaseException: what the block raised, not in the group of a nursery; or what the server did.
        """
        running, error = self._running, None
        with watch_swallowed_cancels(running) as patience:
            try:
                async with running.http, trio.open_nursery() as nursery:
                    try:
                        await self._start(nursery)
                        yield
                    except BaseException as raised:  # noqa: BLE001 - raised below, when the server has ended
                        error = raised
                    await self._end(patience)
            except BaseException as raised:
                if not was_cancelled(raised):
                    raise
                error = error or raised
            finally:
                running.stubborn += patience.ended
        if (error := self._error or error) is not None:
            raise error

    async def _start(self, nursery: trio.Nursery) -> None:
        """Begin to serve in ``nursery``, until the server is up."""
        self._running.server.event_log.listen(self._heard)
        nursery.start_soon(self._serve)
        self._limit.deadline = trio.current_time() + self._start_seconds()
        with self._limit:
            await self._over.wait()
        if self._error is not None:
            raise self._error
        if self._is_up:
            return
        if self._running.ended:
            raise TangramEnded(self._running.status)
        missing = ", ".join(self._running.missing())
        raise NeverStarted(f"the server came neither up nor to its end; missing: {missing}")

    async def _serve(self) -> None:
        try:
            with self._serving:
                await self._running.serve(task_status=RelayedStatus(on_started=self._report_up))
        except BaseException as error:
            if self._is_up or was_cancelled(error):
                raise
            self._error = error
        finally:
            self._over.set()

    def _start_seconds(self) -> float:
        """What all children may take that start one after another, each as late as it is allowed to be."""
        boot, limits = self._running.server.boot, self._running.server.config.supervisor
        plugins = [] if boot.plugins is None else boot.plugins.plugins
        services = [service for one in plugins for service in one.plugin.services]
        each = limits.start_timeout + LATES * limits.stop_timeout
        own = sum(service.start_timeout + LATES * service.stop_timeout for service in services)
        return (PARTS + len(plugins)) * each + own

    def _heard(self, event: SupervisionEvent) -> None:
        """A first start that was given up is not tried again: what is left is its end."""
        if event.kind == "gave_up" and event.path in {(), ("incarnation",)}:
            due = trio.current_time() + self._stop_seconds()
            self._limit.deadline = min(self._limit.deadline, due)

    def _stop_seconds(self) -> float:
        return self._running.server.config.supervisor.shutdown_timeout + STOP_MORE

    async def _end(self, patience: SwallowedCancelWatch) -> None:
        """Stop it. Past its bound everything is cancelled, and whoever shields itself from that is named."""
        running = self._running
        running.stop()
        limit = running.server.config.supervisor.shutdown_timeout
        patience.due = time.monotonic() + limit + REAL_STOP_MORE
        with trio.move_on_after(self._stop_seconds(), shield=True):
            await running.wait_ended()
            return
        self._serving.cancel()
        for again in range(2 * RELEASES):  # who is released may shield itself again
            found = remove_shields(running, self._serving)
            running.stubborn += [one for one in found.values() if one not in running.stubborn]
            if again >= RELEASES:
                patience.hopeless.update(found)
            with trio.move_on_after(1.0, shield=True):
                await running.wait_ended()
                return


def was_cancelled(error: BaseException) -> bool:
    """Whether it is a cancellation and nothing else."""
    return all_leaves_are(error, trio.Cancelled)
