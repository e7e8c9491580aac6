"""Faults inside the children of a running tree: exceptions, broken starts and ends."""

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
"""A fault that waits in a child: it raises at its end or next start, is never ready, or ignores its
cancellation.
"""


class InjectedFault(Exception):
    """Default exception that a test raises in a child."""


class NothingToStrike(LookupError):
    """A fault has no target, or cannot strike here; the message says why.

    It is a class of its own, so that an unrelated ``KeyError`` is not taken for it.
    """


class StruckAlready(NothingToStrike):
    """A target is being crashed, stopped or started just now, and may run again in a moment."""


class FaultPorts:
    """Gives each child of a tree a port through which a test injects faults into it."""

    def __init__(self) -> None:
        self._ports: dict[str, trio.MemorySendChannel[BaseException]] = {}
        self.order: dict[str, int] = {}
        """Place of each child in its supervisor's start order."""
        self.children: dict[str, Child] = {}
        """The wrapped children, by name: faults respect their limits."""
        self._charges: dict[tuple[Charge, str], float] = {}
        self._hit: set[str] = set()
        """Children with an injected exception that has not ended them yet."""
        self.struck = 0
        """Number of injected exceptions."""
        self.overlaps: list[str] = []
        """Children of which two incarnations ran at once, as seen from inside of them."""
        self._alive: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """Return the children that run now, in the order of their starts."""
        return tuple(self._ports)

    def strike(self, child: str, error: BaseException) -> None:
        """Raise ``error`` in the running incarnation of ``child``; return at once.

        Raises:
            NothingToStrike: there is no child of that name.
            StruckAlready: it does not run just now, or another exception is on its way to it.
        """
        self.find(child).send_nowait(error)
        self._hit.add(child)
        self.struck += 1

    def find(self, child: str) -> trio.MemorySendChannel[BaseException]:
        """Return the port of a child that can be struck now.

        Raises:
            NothingToStrike: as for `strike`.
            StruckAlready: as for `strike`.
        """
        port = self._ports.get(child)
        if port is None:
            running = ", ".join(map(repr, self._ports)) or "none"
            # A known child may be between two incarnations.
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
        """Let the next incarnation of ``child`` never become ready."""
        self._charges["ready", child] = 1.0

    def ignore_cancel(self, child: str, seconds: float) -> None:
        """Let the running incarnation of ``child`` go on for ``seconds`` after its cancellation."""
        self._charges["cancel", child] = seconds

    @contextmanager
    def disarming(self, charge: Charge, child: str) -> Iterator[None]:
        """Remove a charge that has not gone off by the end of the block."""
        try:
            yield
        finally:
            self._charges.pop((charge, child), None)

    def end(self, child: str) -> None:
        """Let the running incarnation of ``child`` return.

        Raises:
            NothingToStrike: as for `strike`.
            StruckAlready: as for `strike`.
        """
        self.strike(child, _Return())

    def wrap(self, child: Child) -> Child:
        """Return ``child`` with a port: ``Boot(wrap=ports.wrap)``."""
        self.order.setdefault(child.name, len(self.order))
        self.children[child.name] = child
        reports_start = takes_task_status(child.run)

        async def run(*, task_status: trio.TaskStatus[object]) -> object:
            with self._one_incarnation(child.name):
                return await live(task_status)

        async def live(task_status: trio.TaskStatus[object]) -> object:
            await self._hinder_start(child.name)
            send, receive = trio.open_memory_channel[BaseException](1)
            result: object = None
            self._ports[child.name] = send
            self._hit.discard(child.name)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_raise_received, receive, nursery.cancel_scope)
                    if reports_start:
                        result = await child.run(task_status=task_status)
                    else:
                        task_status.started()
                        result = await child.run()
                    nursery.cancel_scope.cancel()
            finally:
                self._ports.pop(child.name, None)  # a second incarnation beside it may have removed it
                send.close()
                await self._hinder_end(child.name)
            return result

        return attrs.evolve(child, run=run)

    @contextmanager
    def _one_incarnation(self, child: str) -> Iterator[None]:
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
    """Never raised: it asks the child to return."""


async def _raise_received(receive: trio.MemoryReceiveChannel[BaseException], scope: trio.CancelScope) -> None:
    with receive:
        error = await receive.receive()
        if not isinstance(error, _Return):
            raise error
    scope.cancel()
