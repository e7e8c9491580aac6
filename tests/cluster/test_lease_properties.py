"""The rules of a lease under drawn delays and clocks: never two holders at once."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

import attrs
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tangram.cluster.lease import DRIFT, Lease, LeaseState, stop_limit
from tangram.cluster.library import LeaseRow, TakeAnswer

TTL = 6.0
SECONDS = 60.0
POLL = 0.1
"""Seconds between two tries of a node that takes a lease in the first moment."""
RATE = DRIFT / 2 - 0.001
"""The largest share by which one clock differs from that of Redis: two of them stay below the bound."""


@attrs.frozen
class Step:
    """One message of a node: the seconds before it, and on its way to Redis and back."""

    node: int
    pause: float
    there: float
    back: float
    lost: bool


DELAYS = st.one_of(st.floats(0.0, 0.05), st.floats(0.5, 3.0), st.floats(0.0, 9.0))
MANY = st.lists(
    st.builds(Step, st.integers(0, 1), st.floats(0.05, 2.5), DELAYS, DELAYS, st.booleans()),
    min_size=8,
    max_size=60,
)
LATE = st.builds(
    Step, st.just(0), st.floats(0.1, 1.5), st.floats(0.0, 0.5), st.floats(0.5, 1.5), st.just(False)
)
"""A renewal whose answer is long on its way; nothing comes after it."""
STEPS = st.one_of(MANY, LATE.map(lambda late: [Step(0, 0.1, 0.001, 0.001, lost=False), late]))
CLOCKS = st.lists(st.tuples(st.floats(1 - RATE, 1 + RATE), st.floats(-1e4, 1e4)), min_size=3, max_size=3)


class World:
    """Redis with one lease, and three nodes with clocks of their own; no broken promise goes unseen."""

    def __init__(self, clocks: list[tuple[float, float]]) -> None:
        values = (f":{number}" for number in count())
        self.clocks = clocks
        self.now = 0.0
        self.leases = [Lease("globe", f"n{i}", TTL, lambda i=i: f"n{i}{next(values)}") for i in range(3)]  # type: ignore[misc]
        self.value, self.end, self.token = "", 0.0, 0
        self.ends: list[float] = [0.0] * 3
        """When each node's plugin has ended for certain, on the clock of Redis."""
        self.starts = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        for lease in self.leases:
            lease.want()

    def clock(self, node: int) -> float:
        rate, offset = self.clocks[node]
        return self.now * rate + offset

    def true(self, node: int, at: float) -> float:
        """Return the time of Redis at which a node's clock shows a time."""
        rate, offset = self.clocks[node]
        return (at - offset) / rate

    def at(self, when: float, run: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (when, next(self._numbers), run))

    def run(self) -> None:
        while self._queue and self._queue[0][0] < SECONDS:
            self.now, _, run = heapq.heappop(self._queue)
            run()
            self.check()

    def check(self) -> None:
        """Note until when each plugin may run, and require that no two may at the same time."""
        running = []
        for node, lease in enumerate(self.leases):
            if lease.held:
                # The plugin is stopped at the deadline, and ends within its limit, by the node's clock.
                self.ends[node] = self.true(node, lease.deadline + stop_limit(TTL))
            elif lease.state is LeaseState.LOST:
                self.ends[node] = min(self.ends[node], self.true(node, lease.stop_by))
            if self.ends[node] > self.now:
                running.append(node)
        assert len(running) <= 1, f"at {self.now:.3f} of {running} each may run: {self.ends}"

    def poll(self, node: int) -> None:
        """Let a node try to take the lease all the time, and never renew it."""
        for number in range(int((SECONDS - 4) / POLL)):
            self.at(4.0 + number * POLL, lambda: self._poll(node))

    def _poll(self, node: int) -> None:
        if not self.leases[node].held:
            self.send(Step(node, 0.0, 0.001, 0.001, lost=False))
        self.leases[node].expire(self.clock(node))

    def send(self, step: Step) -> None:
        node, lease = step.node, self.leases[step.node]
        lease.expire(self.clock(node))
        if lease.state is LeaseState.LOST:
            if self.now < self.ends[node]:
                return
            lease.ended()
        if not lease.held and self.clock(node) < lease.take_at(0.0):
            return
        sent, value, renews = self.clock(node), lease.value, lease.held
        answer = self.renew if renews else self.take

        def arrive() -> None:
            reply = answer(node, sent, value)
            if not step.lost:
                self.at(self.now + step.back, reply)

        self.at(self.now + step.there, arrive)

    def take(self, node: int, sent: float, value: str) -> Callable[[], None]:
        left = self.end - self.now if self.value else 0.0
        found = TakeAnswer(0, self.value, left, "s")
        if left <= 0 or self.value == value:
            self.value, self.end, self.token = value, self.now + TTL, self.token + 1
            found = TakeAnswer(self.token, "", TTL, "s")

        def reply() -> None:
            lease, before = self.leases[node], self.leases[node].held
            unwanted = lease.take_answered(sent, self.clock(node), found, value)
            self.starts += lease.held and not before
            if unwanted and unwanted == self.value:
                self.value = ""

        return reply

    def renew(self, node: int, sent: float, value: str) -> Callable[[], None]:
        left = self.end - self.now if self.value else 0.0
        mine = left > 0 and self.value == value
        if mine:
            self.end = self.now + TTL
        row = LeaseRow(mine, self.value if left > 0 else "", TTL if mine else max(left, 0.0))

        def reply() -> None:
            self.leases[node].renewal_answered(sent, self.clock(node), row, value)

        return reply


def run(clocks: list[tuple[float, float]], steps: list[Step], *, eager: bool = False) -> World:
    world, at = World(clocks), 0.0
    if eager:
        world.poll(2)
    for step in steps:
        at += step.pause
        world.at(at, lambda step=step: world.send(step))  # type: ignore[misc]
    world.run()
    return world


# Without shrinking, so that a broken rule is told within seconds; the failure names the holders and times.
@settings(
    max_examples=150, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)
@given(CLOCKS, STEPS)
def test_no_two_nodes_hold_a_lease_at_once(clocks: list[tuple[float, float]], steps: list[Step]) -> None:
    """Whatever the delays and losses, the plugin of one node has ended before another node may start it."""
    run(clocks, steps, eager=True)


def test_a_lease_goes_from_a_node_that_falls_silent_to_the_next() -> None:
    """The world of the property is not one in which nothing happens."""
    prompt = [Step(node, 0.5, 0.001, 0.001, lost=False) for node in (0, 1, 2) * 4]
    others = [Step(node, 0.5, 0.001, 0.001, lost=False) for node in (1, 2) * 12]
    world = run([(1.0, 0.0), (1.0, 50.0), (1.0, -7.0)], [*prompt, *others])

    assert world.starts == 2
    assert world.leases[1].held or world.leases[2].held
