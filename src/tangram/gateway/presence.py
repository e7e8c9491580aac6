"""Send presence: differences through Redis, and states to newcomers, at a bounded rate.

The hub knows the messages, and this module the time. Joins are replied to before anything here runs, so that
10,000 clients that come at once have their replies first and their lists of 10,000 members later.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import trio

from tangram.channels.hub import Hub, Publication
from tangram.gateway.joining import Joining
from tangram.gateway.node_presence import NodePresence
from tangram.gateway.publishing import Done

__all__ = ["PresenceSender"]

PRESENCE_WINDOW: Final = 0.05
"""Seconds over which joins and leaves of a topic are gathered into one difference."""
SLICE: Final = 0.01
"""Seconds of the rate that are sent at once."""
MAX_SLICE: Final = 2 * 1024 * 1024
"""Bytes that are sent at once at most: 1 to 2 ms of the event loop."""
CREDIT: Final = 0.1
"""Seconds of the rate that may be caught up on: a busy event loop wakes a task late."""


class PresenceSender:
    """The tasks that send presence.

    Args:
        hub: the hub whose presence is sent.
        rate: bytes a second (``[channel] presence_rate``), with ``SEND_COST`` for each message.
        publish: hands publications to the bus.
        wait_uncongested: returns when the bus takes messages.
        joining: the clients that join; the states wait for a crowd of them.
        turns: the turns of slices; by default a lock of its own, which other parts may share.
        nodes: the presence of all nodes, if there may be several.
    """

    def __init__(
        self,
        hub: Hub,
        rate: float,
        publish: Callable[[Sequence[Publication], Done], None],
        wait_uncongested: Callable[[], Awaitable[None]],
        *,
        joining: Joining[Any],
        turns: trio.Lock | None = None,
        nodes: NodePresence | None = None,
    ) -> None:
        self._hub = hub
        self._rate = rate
        self._publish = publish
        self._wait_uncongested = wait_uncongested
        self._joining = joining
        self.turns = turns or trio.Lock()
        """Handed over in each pass of the event loop: each has one slice of presence or of recoveries."""
        self._nodes = nodes
        if nodes is not None:
            nodes.roll.wake = self._wake
            nodes.on_answer = self._take_answer
        self._dirty = trio.Event()
        self._states_due = trio.Event()
        self._slices_due = trio.Event()
        hub.slices.wake = self._wake_slices
        self._counted = 0
        """The hub's cost of presence that ``_paid_at`` includes."""
        self._paid_at = -float("inf")
        """The time at which everything sent so far is within the rate."""

    def changed(self) -> None:
        """Schedule a flush, if there is anything to flush."""
        if self._hub.dirty or (self._nodes is not None and self._nodes.roll.dirty):
            self._dirty.set()

    def _wake(self) -> None:
        """Go on, because the roll of all nodes has changed."""
        self.changed()
        if self._hub.states_due:
            self._states_due.set()

    def _take_answer(self) -> None:
        """Go on, because Redis has answered."""
        self._hub.put_corrections()
        self._wake()

    def tick(self) -> None:
        """Send the numbers of members that have changed; to be called once a second."""
        if self._nodes is not None:
            self._nodes.tick()
        self.changed()
        self._hub.send_numbers()

    async def run(self) -> None:
        """Send until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_differences)
            nursery.start_soon(self._send_states)
            nursery.start_soon(self._put_slices)

    async def _send_differences(self) -> None:
        while True:
            await self._dirty.wait()
            await trio.sleep(PRESENCE_WINDOW)
            await trio.sleep(self._debt())
            await self._wait_uncongested()
            self._dirty = trio.Event()
            # Few newcomers get the state here, before the difference that announces them.
            if not self._joining.crowded:
                self._send_some_states()
            if self._hub.states_due:
                self._states_due.set()
            if self._nodes is not None:
                self._nodes.flush()
                continue
            differences = self._hub.flush()
            self._publish(differences, partial(self._restore_failed, differences))

    def _restore_failed(self, differences: Sequence[Publication], failures: Mapping[int, Exception]) -> None:
        # They are repeated with the next change or by the sweep, so that an outage causes no busy loop.
        for at in failures:
            self._hub.restore(differences[at])

    async def _send_states(self) -> None:
        while True:
            await self._states_due.wait()
            self._states_due = trio.Event()
            while self._hub.states_due:
                await trio.sleep(self._debt())
                await self._joining.wait_calm()
                await self._take_turn()
                self._send_some_states()

    def _wake_slices(self) -> None:
        self._slices_due.set()

    async def _put_slices(self) -> None:
        while True:
            await self._slices_due.wait()
            self._slices_due = trio.Event()
            while len(self._hub.slices):
                await self._take_turn()
                self._hub.slices.put_slice()

    async def _take_turn(self) -> None:
        async with self.turns:
            pass  # the lock is handed over to the next one, whose slice is in the next pass

    def _send_some_states(self) -> None:
        self._hub.send_states(min(max(1, int(self._rate * SLICE)), MAX_SLICE))

    def _debt(self) -> float:
        """Return the seconds until the presence that was sent so far is within the rate."""
        now = trio.current_time()
        cost = self._hub.presence_cost
        self._paid_at = max(self._paid_at, now - CREDIT) + (cost - self._counted) / self._rate
        self._counted = cost
        return max(0.0, self._paid_at - now)
