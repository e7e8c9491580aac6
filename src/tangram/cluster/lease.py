"""One lease, as one node knows it: rules without I/O and without a clock.

1. A lease lets one node run a plugin. Redis holds it, with the value of the holder, for ``ttl`` seconds.
2. The holder's deadline is the time at which its last good renewal was *sent*, plus the ttl, less a tenth of
   it for clocks that run differently, less ``stop_limit``. Then the plugin is stopped, and has ended before
   another node may start it. The time of the answer means nothing: the answer may have waited for long.
3. A deadline that has passed is final. An answer that comes later does not bring the lease back.
4. Each take after a release or a loss has a new value, so that a late command of an earlier one cannot touch
   it.
5. Redis may come back without its data. The holder takes its lease again at once, within its deadline. The
   others wait for one ttl after they have noticed, unless the holder says that it has released the lease.

| state | meaning | left by |
|---|---|---|
| idle | this node does not want it | want |
| standby | this node waits for it | take, give up |
| held | this node runs the plugin, or is about to | lose, give up |
| lost | it was held, and the plugin has still to end | end |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final

from tangram.cluster.library import LeaseRow, TakeAnswer

__all__ = ["DRIFT", "STOP_SHARE", "Lease", "LeaseState", "node_of", "stop_limit"]

DRIFT: Final = 0.1
"""The share of the ttl by which the clocks of a node and of Redis may differ within one ttl."""
STOP_SHARE: Final = 0.3
"""The share of the ttl in which a plugin must end that has lost its lease."""
PREFERRED: Final = 1.0
"""Seconds for which other nodes leave a lease to the node for which it was released."""
SHUN: Final = 3.0
"""Seconds for which a node leaves a lease to the others after it was told to give it away."""


AGAIN: Final = 0.25
"""Seconds between two tries of a node to take a lease that is about to expire."""


class LeaseState(Enum):
    """The states of the table above."""

    IDLE = "idle"
    STANDBY = "standby"
    HELD = "held"
    LOST = "lost"


def stop_limit(ttl: float) -> float:
    """Return the seconds that a plugin has to end after it has lost its lease."""
    return STOP_SHARE * ttl


def node_of(value: str) -> str:
    """Return the node of a holder's value."""
    return value.partition(":")[0]


class Lease:
    """One lease on one node.

    Args:
        name: the plugin, or ``PLUGIN/SERVICE``.
        node: the id of this node.
        ttl: seconds for which the lease lasts without a renewal.
        new_value: returns a value that no take had before.
    """

    def __init__(self, name: str, node: str, ttl: float, new_value: Callable[[], str]) -> None:
        self.name = name
        self.ttl = ttl
        self.state = LeaseState.IDLE
        self.value = ""
        """The value of the present or the next take."""
        self.token = 0
        """The fencing token of the last take."""
        self.deadline = -math.inf
        """When the plugin must be stopped, on this node's clock."""
        self.holder = ""
        """The node that holds the lease, as far as this node knows; empty for none."""
        self.finished = False
        """Whether it is kept although nothing runs, because the service has returned."""
        self.stop_by = math.inf
        """When the plugin must have ended after a loss."""
        self._node = node
        self._new_value = new_value
        self._busy_until = -math.inf
        self._not_before = -math.inf
        self._free_since = -math.inf
        self._called = False
        """Whether the lease was released for this node."""

    @property
    def held(self) -> bool:
        """Whether this node holds the lease."""
        return self.state is LeaseState.HELD

    @property
    def seen(self) -> bool:
        """Whether this node has ever known a holder."""
        return bool(self.holder) or max(self._busy_until, self._free_since) > -math.inf

    # What the node wants.

    def want(self) -> None:
        """Wait for the lease from now on."""
        if self.state is LeaseState.IDLE:
            self.state, self.value = LeaseState.STANDBY, self._new_value()
            self.finished = False

    def ended(self) -> None:
        """Note that the plugin has ended after a loss; the node may take the lease again."""
        if self.state is LeaseState.LOST:
            self.state, self.value = LeaseState.STANDBY, self._new_value()

    def give_up(self, now: float, *, shun: bool = False) -> str:
        """Want the lease no longer, and return the value to release; empty if it is not held.

        Args:
            now: the time.
            shun: leave the lease to the other nodes for a while.
        """
        value = self.value if self.held else ""
        if self.held:
            self.holder = ""
        self.state, self.value, self.deadline = LeaseState.IDLE, "", -math.inf
        if shun:
            self._not_before = max(self._not_before, now + SHUN)
        return value

    def expire(self, now: float) -> bool:
        """Lose the lease if its deadline has passed, and return whether it was lost now."""
        if self.held and now >= self.deadline:
            self._lose(self.deadline, "")
            return True
        return False

    def lose(self, now: float) -> None:
        """Lose the lease, because another node holds it."""
        if self.held:
            self._lose(now, "")

    def forget_token(self) -> None:
        """Take the lease again at the next renewal, because Redis has lost the token."""
        self.token = 0

    # Takes.

    def take_at(self, delay: float) -> float:
        """Return when this node should try to take the lease.

        Args:
            delay: seconds for which it leaves a free lease to nodes that hold fewer.
        """
        wait = 0.0 if self._called else delay
        return max(self._busy_until, self._not_before, self._free_since) + wait

    def take_answered(self, sent: float, now: float, answer: TakeAnswer, value: str) -> str:
        """Take the answer to a take; return a value that must be released, or an empty text.

        Args:
            sent: when the take was sent.
            now: the time.
            answer: the answer.
            value: the value with which it was sent.
        """
        current = value == self.value and self.state in (LeaseState.STANDBY, LeaseState.HELD)
        if not answer.token:
            if current:
                self._refused(now, answer)
            return ""
        if self.expire(now) or (self.state is LeaseState.LOST and value == self.value):
            # The plugin has still to end: a release would let another node start it beside this one.
            return ""
        if not current:
            return value
        # The answers to two takes may come in any order: the later deadline and the newer token count.
        deadline = max(self._deadline(sent), self.deadline)
        if now >= deadline:
            # The answer was too late to begin with the plugin.
            self.value = self._new_value()
            self.state = LeaseState.STANDBY
            return value
        self.state, self.holder = LeaseState.HELD, self._node
        self.token, self.deadline = max(answer.token, self.token), deadline
        self.stop_by = math.inf
        return ""

    def _refused(self, now: float, answer: TakeAnswer) -> None:
        if answer.holder:
            if self.held:
                self._lose(now, node_of(answer.holder))
            self._see(now, answer.holder, answer.left)
        elif not self.held:
            self.distrust(now)

    def _deadline(self, sent: float) -> float:
        return sent + (1 - DRIFT) * self.ttl - stop_limit(self.ttl)

    # Renewals.

    def renewal_answered(self, sent: float, now: float, row: LeaseRow, value: str) -> bool:
        """Take the answer to a renewal or a look; return whether to take the lease again.

        Args:
            sent: when the renewal was sent.
            now: the time.
            row: the answer.
            value: the value that was to be renewed; empty for a look.
        """
        if not self.held:
            self._see(now, row.holder, row.left)
            return False
        if value != self.value or self.expire(now):
            return False
        if row.renewed:
            self.deadline = max(self.deadline, self._deadline(sent))
            return not self.token
        if row.holder:
            self._lose(now, node_of(row.holder))
            self._see(now, row.holder, row.left)
            return False
        return True

    # News.

    def heard(self, now: float, change: Mapping[str, str]) -> None:
        """Take a change of this lease that another node has published."""
        by = node_of(change.get("by", ""))
        if change.get("what") == "taken" and by != self._node:
            if not self.held:
                self.holder, self._called = by, False
                self._busy_until = now + self.ttl
        elif change.get("what") == "released" and not self.held:
            self.holder = ""
            self._busy_until = -math.inf
            to = change.get("to", "")
            self._called = to == self._node
            self._free_since = now + (PREFERRED if to and not self._called else 0.0)
            if by != self._node:
                self._not_before = -math.inf

    def distrust(self, now: float) -> None:
        """Note that Redis may have lost leases: leave a free one to its holder for one ttl."""
        self._not_before = max(self._not_before, now + self.ttl)

    def _see(self, now: float, value: str, left: float) -> None:
        holder = node_of(value)
        if holder:
            self._busy_until = now + max(left, AGAIN)
        elif self.holder:
            self._free_since, self._busy_until = now, -math.inf
        else:
            self._busy_until = -math.inf
        self.holder = holder

    def _lose(self, since: float, holder: str) -> None:
        self.state, self.holder = LeaseState.LOST, holder
        self.stop_by = since + stop_limit(self.ttl)
        self.deadline = -math.inf
