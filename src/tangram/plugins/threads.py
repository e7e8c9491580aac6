"""Services that are plain functions: each in a thread, told to stop, and left behind when it does not.

A thread cannot be cancelled. It is told through ``trio.from_thread.check_cancelled`` (which raises in it), waited for
until its stop time is over, and then abandoned: named with the line that it stands on, counted, and shown for as long
as it lives. The same service is not started beside its own ghost without a warning.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Any

import attrs
import structlog
import trio

__all__ = ["Ghost", "ThreadedServices"]

log = structlog.get_logger("tangram.plugins")


@attrs.frozen
class Ghost:
    """A thread that goes on although its service was told to stop."""

    service: str
    where: str
    """``file:line`` on which it stands now."""


@attrs.define(eq=False)
class _Run:
    service: str
    finished: trio.Event = attrs.field(factory=trio.Event)
    ident: int | None = None
    alive: bool = True
    told_to_stop: bool = False
    abandoned: bool = False


class ThreadedServices:
    """The threads of one plugin's services, over all its incarnations."""

    def __init__(self, plugin: str) -> None:
        self._plugin = plugin
        self._runs: list[_Run] = []
        self._abandoned = 0

    @property
    def abandoned(self) -> int:
        """How many threads were left behind since the server started, also those that have ended since."""
        return self._abandoned

    def ghosts(self) -> list[Ghost]:
        """The abandoned threads that are still alive."""
        self._runs = [run for run in self._runs if run.alive]
        return [Ghost(run.service, _where(run.ident)) for run in self._runs if run.abandoned]

    async def run(self, service: str, function: Callable[[Any], object], argument: Any, *, stop_timeout: float) -> None:
        """Run ``function(argument)`` in a thread until it ends; cancelled, wait ``stop_timeout`` seconds for it."""
        # run_sync looks for a cancellation once before it starts the thread: looked for here, so that whoever
        # is in the list below has a thread.
        await trio.lowlevel.checkpoint_if_cancelled()
        self._warn_of_ghosts(service)
        run = _Run(service)
        self._runs.append(run)
        try:
            await trio.to_thread.run_sync(
                self._job(run, function, argument),
                abandon_on_cancel=True,
                thread_name=f"{self._plugin}/{service}",
                # A service holds its thread for life: it must not take one of those that short jobs share.
                limiter=trio.CapacityLimiter(1),
            )
        finally:
            if run.alive:
                run.told_to_stop = True
                await self._wait_or_abandon(run, stop_timeout)

    async def _wait_or_abandon(self, run: _Run, stop_timeout: float) -> None:
        with trio.move_on_after(stop_timeout, shield=True):
            await run.finished.wait()
        if run.alive:
            run.abandoned = True
            self._abandoned += 1
            log.warning(
                "a service's thread does not stop and is abandoned",
                plugin=self._plugin,
                service=run.service,
                stop_timeout=stop_timeout,
                where=_where(run.ident),
            )

    def _warn_of_ghosts(self, service: str) -> None:
        beside = [ghost for ghost in self.ghosts() if ghost.service == service]
        if beside:
            log.warning(
                "a service starts beside its own abandoned thread",
                plugin=self._plugin,
                service=service,
                ghosts=len(beside),
                where=beside[-1].where,
            )

    def _job(self, run: _Run, function: Callable[[Any], object], argument: Any) -> Callable[[], None]:
        token = trio.lowlevel.current_trio_token()

        def job() -> None:
            run.ident = threading.get_ident()
            try:
                function(argument)
            except Exception as error:
                if not run.told_to_stop:
                    raise
                # Nobody takes this exception any more, and after a requested stop it is no crash.
                log.warning("a thread failed after it was told to stop", plugin=self._plugin, service=run.service, cause=repr(error))
            finally:
                run.alive = False
                # The server may have ended without this thread.
                with contextlib.suppress(trio.RunFinishedError):
                    token.run_sync_soon(run.finished.set)

        return job


def _where(ident: int | None) -> str:
    frame = sys._current_frames().get(ident or 0)  # noqa: SLF001  # the documented way to see another thread's line
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else "unknown"
