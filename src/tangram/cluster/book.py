"""All leases of one node, without I/O: renewals, and the plugins that it takes.

1. One beat renews the record of the node and all leases that it holds, and looks at the others. So an idle
   node costs Redis one call every two seconds, whatever it holds.
2. A free lease goes to the node that holds the fewest. Each node knows the numbers of the others from their
   records, and waits a tenth of a second for each node that comes before it.
3. A lease without a running plugin is kept for a while, because the plugin is restarted after its back-off.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from tangram.cluster.lease import Lease, LeaseState
from tangram.cluster.library import LeaseRow
from tangram.cluster.registry import NodeRecord

__all__ = ["STEP", "LeaseBook"]

STEP: Final = 0.1
"""Seconds that a node leaves a free lease to each node that holds fewer."""
BOOT_STEP: Final = 0.5
"""Seconds for each held lease that a node leaves a new one to others that start at the same time."""
KEPT: Final = 60.0
"""Seconds for which a lease is kept although nothing runs: longer than any back-off and start."""

Asked = tuple[str, str, float]
"""Name, value to renew or an empty text, and seconds."""


class LeaseBook:
    """The leases that one node holds, waits for, or only watches.

    Args:
        node: the id of this node.
        ttl: seconds for which a lease lasts.
        new_value: returns a random text.
        spread: whether other nodes start at the same time, and shall find something to take.
    """

    def __init__(self, node: str, ttl: float, new_value: Callable[[], str], *, spread: bool = False) -> None:
        self.ttl = ttl
        self.storage = ""
        """The storage that this node has seen; empty before the first answer."""
        self.to_release: dict[str, str] = {}
        """Values by lease that have to be released."""
        self.taking: set[str] = set()
        """The leases of which a take is under way."""
        self._node = node
        self._new_value = new_value
        self._spread = spread
        self._leases: dict[str, Lease] = {}
        self._idle_since: dict[str, float] = {}

    def lease(self, name: str) -> Lease:
        """Return the lease of that name."""
        found = self._leases.get(name)
        if found is None:
            found = self._leases[name] = Lease(
                name, self._node, self.ttl, lambda: f"{self._node}:{self._new_value()}"
            )
        return found

    def watch(self, names: Iterable[str]) -> None:
        """Look at these leases in each beat, also if this node does not want them."""
        for name in names:
            self.lease(name)

    @property
    def held(self) -> Sequence[str]:
        """The names of the leases that this node holds."""
        return [lease.name for lease in self._leases.values() if lease.held]

    @property
    def standby(self) -> Sequence[str]:
        """The names of the leases for which this node waits."""
        return [lease.name for lease in self._leases.values() if lease.state is LeaseState.STANDBY]

    # Beats.

    def asked(self) -> Sequence[Asked]:
        """Return the leases of the next beat, and the value to renew of each that is held."""
        return [(lease.name, lease.value if lease.held else "", lease.ttl) for lease in self._leases.values()]

    def answered(
        self, sent: float, now: float, asked: Sequence[Asked], rows: Sequence[LeaseRow], storage: str
    ) -> Sequence[str]:
        """Take the answer to a beat, and return the leases that have to be taken again."""
        if self.storage and storage != self.storage:
            self.distrust(now)
        self.storage = storage
        again = []
        for (name, value, _), row in zip(asked, rows, strict=True):
            if self._leases[name].renewal_answered(sent, now, row, value):
                again.append(name)
        return again

    def distrust(self, now: float) -> None:
        """Note that Redis may have lost leases."""
        for lease in self._leases.values():
            if not lease.held:
                lease.distrust(now)

    def heard(self, now: float, change: Mapping[str, str]) -> None:
        """Take a change of a lease that a node has published."""
        lease = self._leases.get(change.get("lease", ""))
        if lease is not None:
            lease.heard(now, change)

    # Who takes.

    def delay(self, name: str, nodes: Mapping[str, NodeRecord]) -> float:
        """Return the seconds for which this node leaves a free lease to others."""
        rivals = [one for one in nodes.values() if one.id != self._node and name in one.standby]
        me = (len(self.held), _draw(name, self._node))
        return STEP * sum((len(one.plugins), _draw(name, one.id)) < me for one in rivals)

    def boot_wait(self, name: str) -> float:
        """Return the seconds from its first wish for which this node leaves a new lease to others.

        Nodes that start together cannot know each other yet, so each one takes the first lease at once, and
        the further ones after a time in which the others appear.
        """
        if not self._spread or self.lease(name).seen:
            return 0.0
        return BOOT_STEP * len({*self.held, *self.taking} - {name})

    # Leases without a plugin.

    def running(self, name: str) -> None:
        """Note that the plugin of a lease runs."""
        self._idle_since.pop(name, None)

    def idle(self, name: str, now: float) -> None:
        """Note that the plugin of a lease has ended, and may be restarted."""
        self._idle_since.setdefault(name, now)

    def release(self, name: str, now: float, *, shun: bool = False) -> None:
        """Want a lease no longer, and release it if it is held."""
        self._idle_since.pop(name, None)
        value = self.lease(name).give_up(now, shun=shun)
        if value:
            self.to_release[name] = value

    def release_abandoned(self, now: float) -> Sequence[str]:
        """Release leases whose plugin has not run for a long time, and return their names."""
        names = [
            name
            for name, since in self._idle_since.items()
            if now - since > KEPT and not self._leases[name].finished
        ]
        for name in names:
            self.release(name, now)
        return names


def _draw(name: str, node: str) -> str:
    """Return a text that orders nodes, differently for each lease."""
    return hashlib.sha256(f"{name} {node}".encode()).hexdigest()
