"""A broker in memory, and nodes on it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from tangram.bus.resp import current_dial
from tangram.testing.fakes.memory_broker import MemoryBroker


@pytest.fixture
async def memory(nursery: trio.Nursery) -> AsyncIterator[MemoryBroker]:
    """A running broker in memory, which everything below this test dials."""
    broker = MemoryBroker()
    await nursery.start(broker.run)
    token = current_dial.set(broker.dial)
    yield broker
    current_dial.reset(token)
