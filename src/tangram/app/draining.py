"""A placed plugin ends after the requests that it is answering.

A planned stop first drains the plugin, in a bounded time; a crash, or a lease that is lost, ends it at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import trio

from tangram.cluster import Placement
from tangram.config import Config
from tangram.groups import unwrap_single
from tangram.http.forward.in_flight import InFlight

__all__ = ["drained", "move_grace", "with_drain"]

MOVE_GRACE: Final = 2.0
"""Seconds that requests in hand get before their plugin is moved, much less than a lease."""


class PluginRun(Protocol):
    """A plugin as a child of the tree."""

    def __call__(self, *, task_status: trio.TaskStatus[Any]) -> Awaitable[object]: ...


def move_grace(config: Config) -> float:
    """Return the seconds that requests in hand get before their plugin is moved."""
    return min(MOVE_GRACE, config.server.drain_grace, config.supervisor.stop_timeout / 2)


class DrainingTree(Protocol):
    """The attributes of `Tree` that are read here."""

    config: Config
    in_flight: InFlight
    placement: Placement

    def stops(self, lease: str) -> bool: ...


def drained(run: PluginRun, plugin: str, tree: DrainingTree) -> PluginRun:
    """Return ``run`` with a drain before a move, and before a stop that was asked for."""
    return with_drain(
        run,
        plugin,
        tree.in_flight,
        planned=lambda: tree.placement.is_moving(plugin) or tree.stops(plugin),
        seconds=move_grace(tree.config),
    )


def with_drain(
    run: PluginRun, plugin: str, in_flight: InFlight, *, planned: Callable[[], bool], seconds: float
) -> PluginRun:
    """Return ``run`` with a drain before a planned stop.

    Args:
        run: runs the plugin until it is cancelled.
        plugin: its name.
        in_flight: counts its requests.
        planned: returns whether the cancellation that has just come is a planned stop.
        seconds: for the drain.
    """

    async def run_drained(*, task_status: trio.TaskStatus[Any]) -> None:
        in_flight.resume(plugin)
        # Bounded: this task cancels it after the drain.
        inner = trio.CancelScope(shield=True)
        ended = trio.Event()

        async def run_shielded() -> None:
            try:
                with inner:
                    await run(task_status=task_status)
            finally:
                ended.set()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run_shielded)
                try:
                    await ended.wait()
                finally:
                    if not ended.is_set() and planned():
                        with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds):
                            await in_flight.drain(plugin, seconds)
                    inner.cancel()
        except BaseExceptionGroup as group:
            raise unwrap_single(group) from None

    return run_drained
