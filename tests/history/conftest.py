"""A broker, and a bus with histories on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import trio

from tangram.bus import Bus
from tangram.history import History, Rules
from tangram.history.rules import Rule
from tangram.testing import RealBroker, open_broker

RULES = [
    Rule("stream", History(size=5)),
    Rule("small", History(size=50, max_bytes=1024)),
    Rule("short", History(ttl=0.05)),
    Rule("latest", History(mode="latest", size=3, max_bytes=1024)),
]


@pytest.fixture
def broker() -> Iterator[RealBroker]:
    """A real broker for one test."""
    with open_broker() as broker:
        yield broker


class Histories:
    """A bus with histories, and the messages that it received."""

    def __init__(self, bus: Bus, rules: Rules, received: list[tuple[bytes, bytes]]) -> None:
        self.bus, self.rules, self.received = bus, rules, received
        self.changed = trio.Event()

    async def wait_received(self, count: int) -> None:
        """Return once that many messages have arrived."""
        with trio.fail_after(60):
            while len(self.received) < count:
                self.changed = trio.Event()
                await self.changed.wait()


async def open_histories(nursery: trio.Nursery, url: str, *, identity: str | None = None) -> Histories:
    """Return a running bus with the rules above."""
    received: list[tuple[bytes, bytes]] = []
    rules = Rules(RULES, identity=lambda: identity)

    def sink(batch: Sequence[tuple[bytes, bytes]]) -> None:
        received.extend(batch)
        histories.changed.set()

    bus = Bus(url, sink=sink, history=rules)
    histories = Histories(bus, rules, received)
    await nursery.start(bus.run)
    return histories
