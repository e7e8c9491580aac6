"""Turns for long work: in each pass of the event loop one client gets one of them.

1. The bytes of one read can cost milliseconds, for example those of 10,000 tiny frames. Work on them is done
   in steps of bounded length. Other tasks run between the steps, but steps of 20 such clients in the same
   pass would add up. So a client waits for its turn before each further step.
2. A client that keeps up with small messages never waits: only the second step of a read, and reads of a
   client that needed several steps for its last one, need a turn.
3. Turns are first come, first served, so that all clients with much work advance equally.
4. A turn is not held: ``wait`` returns, the step follows without an ``await``, and the next client's turn is
   in the next pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import trio

__all__ = ["ClientTurns", "Turns"]

REPORT_AFTER: Final = 50
"""Turns within ``REPORT_WINDOW`` after which an address is reported: about 0.1 s of processor time."""

REPORT_WINDOW: Final = 10.0
"""Seconds in which the turns of an address are counted, with those of all its connections."""


class Turns:
    """The turns of all clients of one part of the server.

    Args:
        report: called with an address that takes many turns; it must not block.
    """

    __slots__ = ("_began", "_gate", "_report", "_taken")

    def __init__(self, report: Callable[[str], None] = lambda _address: None) -> None:
        self._gate = trio.Lock()
        self._report = report
        self._taken: Counter[str] = Counter()
        self._began = 0.0

    def client(self, address: Callable[[], str]) -> ClientTurns:
        """Return the turns of one client.

        Args:
            address: returns the client's address, for the report alone.
        """
        return ClientTurns(self, address)

    async def wait(self, address: str) -> None:
        """Return in a pass of the event loop in which no other call returns."""
        now = trio.current_time()
        if now - self._began > REPORT_WINDOW:
            self._began = now
            self._taken.clear()
        self._taken[address] += 1
        if self._taken[address] == REPORT_AFTER:
            self._report(address)
        async with self._gate:
            pass  # the gate is handed over to the next waiting task, which runs in the next pass


class ClientTurns:
    """The turns of one client."""

    __slots__ = ("_address", "_find_address", "_turns")

    def __init__(self, turns: Turns, address: Callable[[], str]) -> None:
        self._turns = turns
        self._find_address = address
        self._address: str | None = None

    async def wait(self) -> None:
        """Wait for the next turn; do one step of work without an ``await`` afterwards."""
        if self._address is None:
            self._address = self._find_address()
        await self._turns.wait(self._address)
