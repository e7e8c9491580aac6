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

from collections.abc import Callable
from typing import Final

import trio

__all__ = ["ClientTurns", "Turns"]

REPORT_AFTER: Final = 50
"""Turns within ``REPORT_WINDOW`` after which a client is reported: about 0.1 s of processor time."""

REPORT_WINDOW: Final = 10.0
"""Seconds in which a client's turns are counted."""


class Turns:
    """The turns of all clients of one part of the server.

    Args:
        report: called with the address of a client that takes many turns; it must not block.
    """

    __slots__ = ("_gate", "report")

    def __init__(self, report: Callable[[str], None] = lambda _address: None) -> None:
        self._gate = trio.Lock()
        self.report = report

    def client(self, address: Callable[[], str]) -> ClientTurns:
        """Return the turns of one client.

        Args:
            address: returns the client's address, for the report alone.
        """
        return ClientTurns(self, address)

    async def wait(self) -> None:
        """Return in a pass of the event loop in which no other call returns."""
        async with self._gate:
            pass  # the gate is handed over to the next waiting task, which runs in the next pass


class ClientTurns:
    """The turns of one client."""

    __slots__ = ("_address", "_began", "_taken", "_turns")

    def __init__(self, turns: Turns, address: Callable[[], str]) -> None:
        self._turns = turns
        self._address = address
        self._taken = 0
        self._began = 0.0

    async def wait(self) -> None:
        """Wait for the next turn; do one step of work without an ``await`` afterwards."""
        now = trio.current_time()
        if now - self._began > REPORT_WINDOW:
            self._began, self._taken = now, 0
        self._taken += 1
        if self._taken == REPORT_AFTER:
            self._turns.report(self._address())
        await self._turns.wait()
