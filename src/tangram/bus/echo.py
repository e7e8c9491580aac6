"""When a quiet subscriber connection is probed by a message to itself.

After a failover a connection can stay attached to a Redis that answers pings and hears no messages. Only a
message shows that messages arrive. Rules of this file:

1. It does no I/O: readings come in, and the next step goes out.
2. A connection that received anything since the last look is not probed.
3. The message goes to a channel of this connection alone, so that no other connection pays for it.
4. An account that may not use the channel gets no probes; pings and the sentinels remain.
5. A probe that was not published proves nothing: the fault is that of the publisher connection.
"""

from __future__ import annotations

from typing import Final, Literal

from tangram.bus.topics import own_key

__all__ = ["ECHO_EVERY", "ECHO_TIMEOUT", "Echo"]

ECHO_EVERY: Final = 10.0
"""Seconds between two looks: a tenth of a command a second."""

ECHO_TIMEOUT: Final = 3.0
"""Seconds for the message to come back, as for a ping."""


class Echo:
    """The probes of one subscriber connection.

    Args:
        name: a name that no other connection has.
    """

    def __init__(self, name: str) -> None:
        self.channel = own_key("echo", name)
        """The channel of the probes. SUBSCRIBE is used, which an ACL allows by a pattern: PSUBSCRIBE needs
        the very same pattern in the ACL."""
        self.allowed = False
        """Whether Redis has confirmed the subscription."""
        self._received = 0
        self._asked: int | None = None

    def connected(self) -> None:
        """Note a new connection."""
        self.allowed, self._asked = False, None

    def look(self, received: int) -> Literal["probe", "wait"]:
        """Return the next step at the end of an interval.

        Args:
            received: messages that the connection received so far, probes included.
        """
        quiet, self._received = received == self._received, received
        if not quiet or not self.allowed:
            return "wait"
        self._asked = received
        return "probe"

    def is_deaf(self, received: int, *, published: bool) -> bool:
        """Return whether a probe shows that messages do not arrive, ``ECHO_TIMEOUT`` after it.

        Args:
            received: messages that the connection received so far.
            published: whether Redis has taken the message of the probe.
        """
        asked, self._asked = self._asked, None
        self._received = received
        return published and asked == received
