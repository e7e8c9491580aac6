"""Faults that a test puts into a running tree: an exception raised inside a child, at its own place
in the tree.
"""

from __future__ import annotations

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
        self._spiteful: set[str] = set()
        self.struck = 0
        """Exceptions that were put in."""

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

    def wrap(self, child: Child) -> Child:
        """``child`` with a port: ``Boot(wrap=ports.wrap)``."""
        self.order.setdefault(child.name, len(self.order))

        async def run(*, task_status: trio.TaskStatus[object]) -> object:
            send, receive = trio.open_memory_channel[BaseException](1)
            result: object = None
            self._ports[child.name] = send
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_raise_what_comes, receive)
                    if takes_task_status(child.run):
                        result = await child.run(task_status=task_status)
                    else:
                        task_status.started()
                        result = await child.run()
                    nursery.cancel_scope.cancel()
            finally:
                del self._ports[child.name]
                send.close()
                if child.name in self._spiteful:
                    self._spiteful.discard(child.name)
                    raise InjectedFault(f"raised in the clean-up of {child.name!r}")
            return result

        return attrs.evolve(child, run=run)


async def _raise_what_comes(receive: trio.MemoryReceiveChannel[BaseException]) -> None:
    with receive:
        raise await receive.receive()
