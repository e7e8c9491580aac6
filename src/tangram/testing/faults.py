"""Faults that a test puts into a running tree: an exception raised inside a child, at its own place
in the tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio

from tangram.supervision import Child
from tangram.supervision.lives import takes_task_status

__all__ = ["FaultPorts", "InjectedFault"]


class InjectedFault(Exception):
    """What a test raises in a child when it names nothing better."""


class FaultPorts:
    """Gives each child of a tree a port through which an exception can be put into it."""

    def __init__(self) -> None:
        self._ports: dict[str, trio.MemorySendChannel[BaseException]] = {}
        self.order: dict[str, int] = {}
        """The place of each child in its supervisor's start order."""
        self.children: dict[str, Child] = {}
        """What was wrapped, by name: its limits are those that faults have to reckon with."""
        self._spiteful: set[str] = set()
        self._stillborn: set[str] = set()
        self._silent: set[str] = set()
        self._deaf: dict[str, float] = {}
        self.struck = 0
        """Exceptions that were put in."""
        self.overlaps: list[str] = []
        """Children of which two incarnations ran at once, as seen from inside of them."""
        self._alive: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """The children that run now, in the order in which they were started."""
        return tuple(self._ports)

    def strike(self, child: str, error: BaseException) -> None:
        """Raise ``error`` in the running incarnation of ``child``; returns at once.

        Raises:
            LookupError: no child of that name runs, or one strike is on its way to it already.
        """
        try:
            port = self._ports[child]
        except KeyError:
            running = ", ".join(map(repr, self._ports)) or "none"
            raise LookupError(f"no child {child!r} runs; expected one of {running}") from None
        try:
            port.send_nowait(error)
        except (trio.WouldBlock, trio.BrokenResourceError):
            raise LookupError(f"child {child!r} is being crashed or stopped already") from None
        self.struck += 1

    def break_cleanup(self, child: str) -> None:
        """Let the running incarnation of ``child`` raise when it is stopped next."""
        self._spiteful.add(child)

    def break_start(self, child: str) -> None:
        """Let the next incarnation of ``child`` raise before it has started."""
        self._stillborn.add(child)

    def hang_start(self, child: str) -> None:
        """Let the next incarnation of ``child`` never say that it has started."""
        self._silent.add(child)

    def ignore_cancel(self, child: str, seconds: float) -> None:
        """Let the running incarnation of ``child`` go on for so long after it was told to end."""
        self._deaf[child] = seconds

    def end(self, child: str) -> None:
        """Let the running incarnation of ``child`` return.

        Raises:
            LookupError: as for `strike`.
        """
        self.strike(child, _Return())

    def wrap(self, child: Child) -> Child:
        """``child`` with a port: ``Boot(wrap=ports.wrap)``."""
        self.order.setdefault(child.name, len(self.order))
        self.children[child.name] = child

        async def run(*, task_status: trio.TaskStatus[object]) -> object:
            with self._one_life(child.name):
                return await live(task_status)

        async def live(task_status: trio.TaskStatus[object]) -> object:
            await self._hinder_start(child.name)
            send, receive = trio.open_memory_channel[BaseException](1)
            result: object = None
            self._ports[child.name] = send
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_raise_what_comes, receive, nursery.cancel_scope)
                    if takes_task_status(child.run):
                        result = await child.run(task_status=task_status)
                    else:
                        task_status.started()
                        result = await child.run()
                    nursery.cancel_scope.cancel()
            finally:
                self._ports.pop(child.name, None)  # a second life beside it has had the same place
                send.close()
                await self._hinder_end(child.name)
            return result

        return attrs.evolve(child, run=run)

    @contextmanager
    def _one_life(self, child: str) -> Iterator[None]:
        if child in self._alive:
            self.overlaps.append(child)
        self._alive.add(child)
        try:
            yield
        finally:
            self._alive.discard(child)

    async def _hinder_start(self, child: str) -> None:
        if child in self._stillborn:
            self._stillborn.discard(child)
            raise InjectedFault(f"raised at the start of {child!r}")
        if child in self._silent:
            self._silent.discard(child)
            await trio.sleep_forever()

    async def _hinder_end(self, child: str) -> None:
        seconds = self._deaf.pop(child, 0.0)
        if seconds:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds):
                await trio.sleep_forever()
        if child in self._spiteful:
            self._spiteful.discard(child)
            raise InjectedFault(f"raised in the clean-up of {child!r}")


class _Return(Exception):
    """Not raised: the child is to return."""


async def _raise_what_comes(
    receive: trio.MemoryReceiveChannel[BaseException], scope: trio.CancelScope
) -> None:
    with receive:
        error = await receive.receive()
        if not isinstance(error, _Return):
            raise error
    scope.cancel()
