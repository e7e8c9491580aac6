"""Faults that a test puts into a running tree: an exception raised inside a child, at its own place
in the tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import attrs
import trio

from tangram.supervision import Child
from tangram.supervision.child_task import takes_task_status

__all__ = ["Charge", "FaultPorts", "InjectedFault", "NothingToStrike", "StruckAlready"]

Charge = Literal["cleanup", "start", "ready", "cancel"]
"""What waits in a child for its time: it raises when it ends, or when it starts next, is never ready then, or
ignores its cancellation.
"""


class InjectedFault(Exception):
    """What a test raises in a child when it names nothing better."""


class NothingToStrike(LookupError):
    """There is nothing that a fault could be put into, or it cannot be put in here; the message says why.

    A class of its own, so that a ``KeyError`` of anybody else is never taken for it.
    """


class StruckAlready(NothingToStrike):
    """Not now: whom it would strike is being crashed, stopped or started, and may be there in a moment."""


class FaultPorts:
    """Gives each child of a tree a port through which an exception can be put into it."""

    def __init__(self) -> None:
        self._ports: dict[str, trio.MemorySendChannel[BaseException]] = {}
        self.order: dict[str, int] = {}
        """The place of each child in its supervisor's start order."""
        self.children: dict[str, Child] = {}
        """What was wrapped, by name: its limits are those that faults have to reckon with."""
        self._charges: dict[tuple[Charge, str], float] = {}
        self._hit: set[str] = set()
        """Children into which something was put that has not ended them yet."""
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
            NothingToStrike: there is no child of that name.
            StruckAlready: it does not run just now, or one strike is on its way to it already.
        """
        self.find(child).send_nowait(error)
        self._hit.add(child)
        self.struck += 1

    def find(self, child: str) -> trio.MemorySendChannel[BaseException]:
        """The port of a child that can be struck now.

        Raises:
            NothingToStrike, StruckAlready: as for `strike`.
        """
        port = self._ports.get(child)
        if port is None:
            running = ", ".join(map(repr, self._ports)) or "none"
            # One that was there once may be between two lives.
            kind = StruckAlready if child in self.children else NothingToStrike
            raise kind(f"no child {child!r} runs; expected one of {running}")
        if child in self._hit or not port.statistics().open_receive_channels:
            raise StruckAlready(f"child {child!r} is being crashed or stopped already")
        return port

    def break_cleanup(self, child: str) -> None:
        """Let the running incarnation of ``child`` raise when it ends."""
        self._charges["cleanup", child] = 1.0

    def break_start(self, child: str) -> None:
        """Let the next incarnation of ``child`` raise before it has started."""
        self._charges["start", child] = 1.0

    def hang_start(self, child: str) -> None:
        """Let the next incarnation of ``child`` never say that it has started."""
        self._charges["ready", child] = 1.0

    def ignore_cancel(self, child: str, seconds: float) -> None:
        """Let the running incarnation of ``child`` go on for so long after it was told to end."""
        self._charges["cancel", child] = seconds

    @contextmanager
    def disarming(self, charge: Charge, child: str) -> Iterator[None]:
        """What was put into ``child`` and has not gone off by the end of the block never will."""
        try:
            yield
        finally:
            self._charges.pop((charge, child), None)

    def end(self, child: str) -> None:
        """Let the running incarnation of ``child`` return.

        Raises:
            NothingToStrike, StruckAlready: as for `strike`.
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
            self._hit.discard(child.name)
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
        if self._charges.pop(("start", child), None):
            raise InjectedFault(f"raised at the start of {child!r}")
        if self._charges.pop(("ready", child), None):
            await trio.sleep_forever()

    async def _hinder_end(self, child: str) -> None:
        seconds = self._charges.pop(("cancel", child), None)
        if seconds:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds):
                await trio.sleep_forever()
        if self._charges.pop(("cleanup", child), None):
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
