"""The start and the end of a server under test, which come under all circumstances.

A cancellation of the test's block does not reach the server at a random place: the server stops in
order, as always. So its task is shielded, and the end, which `Lifetime.held` reaches in every case,
bounds that.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol

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

STOP_MORE: Final = 5.0
"""Seconds past ``shutdown_timeout`` that the whole end may take: half of its default again.

Tasks that still run then are cancelled behind their shields, and named.
"""

REMOVALS: Final = 20
"""How often shields are removed, a second apart, from tasks that shield themselves again.

As often again such a task is ended by an exception that it does not expect.
"""

REAL_STOP_MORE: Final = 15.0
"""Real seconds past ``shutdown_timeout`` after which a task that goes on is ended.

Removing shields takes some of them, on a slow machine more.
"""

PARTS: Final = 6
"""Children of the tree beside its plugins, at most."""

LATES: Final = 3
"""Stop times that supervision waits for a child that is late."""


class TangramEnded(Exception):
    """The server ended before it had started; ``status`` is its exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the server ended with status {status} before it had started")
        self.status = status


class NeverStarted(AssertionError):
    """The server neither started nor ended in its time."""


class ServerUnderTest(Protocol):
    """The parts of a server under test that its lifetime needs."""

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
    """The start and the end of one server."""

    def __init__(self, running: ServerUnderTest) -> None:
        self._running = running
        self._error: BaseException | None = None
        """The exception of the server before it was up."""
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
        """Keep the server up for the block, and wait for its end after it.

        Raises:
            TangramEnded: it ended before it was up.
            NeverStarted: it did neither in its time.
            BaseException: an exception of the block, without the group of a nursery; or one of the
                server.
        """
        running, error = self._running, None
        with watch_swallowed_cancels(running) as watch:
            try:
                async with running.http, trio.open_nursery() as nursery:
                    try:
                        await self._start(nursery)
                        yield
                    except BaseException as raised:  # noqa: BLE001 - raised below, when the server has ended
                        error = raised
                    await self._end(watch)
            except BaseException as raised:
                if not was_cancelled(raised):
                    raise
                error = error or raised
            finally:
                running.stubborn += watch.ended
        if (error := self._error or error) is not None:
            raise error

    async def _start(self, nursery: trio.Nursery) -> None:
        """Serve in ``nursery``, and return once the server is up."""
        self._running.server.event_log.listen(self._note_giving_up)
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
        raise NeverStarted(f"the server neither started nor ended; missing: {missing}")

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
        """Return the time for all children to start in turn, each as late as allowed."""
        boot, limits = self._running.server.boot, self._running.server.config.supervisor
        plugins = [] if boot.plugins is None else boot.plugins.plugins
        services = [service for one in plugins for service in one.plugin.services]
        each = limits.start_timeout + LATES * limits.stop_timeout
        own = sum(service.start_timeout + LATES * service.stop_timeout for service in services)
        return (PARTS + len(plugins)) * each + own

    def _note_giving_up(self, event: SupervisionEvent) -> None:
        """Bound the wait for a first start that supervision has given up: only its end is left."""
        if event.kind == "gave_up" and event.path in {(), ("incarnation",)}:
            due = trio.current_time() + self._stop_seconds()
            self._limit.deadline = min(self._limit.deadline, due)

    def _stop_seconds(self) -> float:
        return self._running.server.config.supervisor.shutdown_timeout + STOP_MORE

    async def _end(self, watch: SwallowedCancelWatch) -> None:
        """Stop the server; past its bound cancel every task, and name the shielded ones."""
        running = self._running
        running.stop()
        limit = running.server.config.supervisor.shutdown_timeout
        watch.due = time.monotonic() + limit + REAL_STOP_MORE
        with trio.move_on_after(self._stop_seconds(), shield=True):
            await running.wait_ended()
            return
        self._serving.cancel()
        for again in range(2 * REMOVALS):  # a task may shield itself again
            found = remove_shields(running, self._serving)
            running.stubborn += [one for one in found.values() if one not in running.stubborn]
            if again >= REMOVALS:
                watch.hopeless.update(found)
            with trio.move_on_after(1.0, shield=True):
                await running.wait_ended()
                return


def was_cancelled(error: BaseException) -> bool:
    """Whether it is a cancellation and nothing else."""
    return all_leaves_are(error, trio.Cancelled)
