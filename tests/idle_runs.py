"""Pairs of sockets, and runs of Trio that read from sockets while no task is runnable."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import trio

from tangram.idle import IdleClock
from tangram.readiness import Readiness, current_readiness, share_readiness

__all__ = ["Pair", "open_pairs", "run_idle"]

PATIENCE: Final = 20.0
"""Seconds after which a test fails."""

Pair = tuple[socket.socket, socket.socket]
"""Both ends of a connection: the first one does not block."""


@contextmanager
def open_pairs(number: int) -> Iterator[list[Pair]]:
    """Open pairs of sockets; close those that the test has left open."""
    with ExitStack() as stack:
        made = [socket.socketpair() for _ in range(number)]
        for ours, theirs in made:
            ours.setblocking(False)
            stack.enter_context(ours)
            stack.enter_context(theirs)
        yield made


def run_idle(test: Callable[[Readiness, trio.Nursery], Awaitable[None]]) -> None:
    """Run a test on the system's clock, with the reader that all parts of a server share."""

    async def main() -> None:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                share_readiness(nursery.start_soon)
                shared = current_readiness()
                assert shared is not None
                await test(shared, nursery)
                nursery.cancel_scope.cancel()

    trio.run(main, clock=IdleClock())
