"""Publications of placed plugins: Redis refuses the token of an older holder.

A process that was stopped and goes on does not know yet that another node runs its plugin. Redis knows.
"""

from __future__ import annotations

from typing import Final, Protocol

import trio

from tangram.bus.scripts import Fence
from tangram.cluster.library import fence_key
from tangram.cluster.nodes import Nodes
from tangram.errors import BrokerRefused

__all__ = ["FENCED", "Fencing"]

FENCED: Final = "FENCED another node"
"""The beginning of Redis' answer to a token that is too old."""
TAKEN_AGAIN: Final = 2.0
"""Seconds in which a holder takes its lease again after Redis has lost it."""


class GuardedBus(Protocol):
    """The part of the bus that is used here."""

    async def publish(self, channel: str | bytes, payload: bytes | str, *, fence: Fence | None) -> int:
        """Publish one message, unless its fence is too old."""


class Fencing:
    """Guards the publications of the plugins that this node holds.

    Args:
        nodes: this node, with its leases.
    """

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes

    async def publish(self, bus: GuardedBus, name: str, channel: str | bytes, payload: bytes | str) -> int:
        """Publish a message of a placed plugin, and return the number of receivers.

        Raises:
            BrokerRefused: this node does not hold the lease any more; the message was not published.
            BrokerUnavailable: Redis is away, or does not answer in time.
        """
        try:
            return await bus.publish(channel, payload, fence=self.fence(name))
        except BrokerRefused as error:
            if "UNFENCED" not in str(error):
                if FENCED in str(error):
                    self.lose(name)
                raise
        # Redis has lost its data, and has not published the message: take the lease again, and repeat.
        await self.take_again(name)
        return await bus.publish(channel, payload, fence=self.fence(name))

    def fence(self, name: str) -> Fence:
        """Return the right of a placed plugin to publish.

        Raises:
            BrokerRefused: this node does not hold the lease any more.
        """
        lease = self._nodes.book.lease(name)
        lease.expire(trio.current_time())
        if not lease.held:
            raise BrokerRefused(f"fenced: this node does not hold the lease of {name!r} any more")
        return Fence(fence_key(name), str(lease.token))

    def lose(self, name: str) -> None:
        """Note that another node holds a lease, as Redis says; the plugin stops."""
        self._nodes.book.lease(name).lose(trio.current_time())
        self._nodes.renew_now()

    async def take_again(self, name: str) -> None:
        """Take a lease of this node again, of which Redis has lost the token."""
        lease = self._nodes.book.lease(name)
        lease.forget_token()
        self._nodes.renew_now()
        with trio.move_on_after(TAKEN_AGAIN):
            while lease.held and not lease.token:
                await self._nodes.wait_change()
