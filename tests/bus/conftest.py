"""Fixtures of the bus's tests: a fake in memory, and the real valkey-server of the kit."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator

import pytest
import trio

from tangram.testing import RealBroker, open_broker
from tests.bus.fakes import FakeRedis


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[RealBroker]:
    """A broker for tests that leave it running."""
    with open_broker() as broker:
        yield broker


@pytest.fixture
def valkey() -> Iterator[RealBroker]:
    """A broker for one test."""
    with open_broker() as broker:
        yield broker


@pytest.fixture
async def fake(nursery: trio.Nursery) -> AsyncGenerator[FakeRedis]:
    """A Redis in memory."""
    server = FakeRedis(nursery)
    yield server
    await server.drop()
