"""The broker in memory and the real one pass the same checks; one that does not keep them fails."""

from __future__ import annotations

import os
import signal

import pytest

from tangram.broker import EmbeddedBroker
from tangram.config import BrokerConfig
from tangram.testing import MemoryBroker
from tangram.testing.conformance import Broker, check_broker


def kill(broker: Broker) -> None:
    if isinstance(broker, MemoryBroker):
        broker.kill()
        return
    pid = broker.statistics().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


async def test_the_broker_in_memory_conforms() -> None:
    """The fake does all that is checked, over real sockets too."""
    await check_broker(MemoryBroker, kill)


@pytest.mark.slow
async def test_the_real_broker_conforms() -> None:
    """The process does the same."""
    await check_broker(lambda: EmbeddedBroker(BrokerConfig(port=0)), kill)


async def test_a_broker_that_loses_messages_does_not_conform() -> None:
    """One that delivers to nobody is told apart."""

    class Deaf(MemoryBroker):
        def publish(self, channel: bytes, payload: bytes) -> int:
            return 0

    with pytest.RaisesGroup(
        pytest.RaisesExc(AssertionError, match="two are subscribed"), flatten_subgroups=True
    ):
        await check_broker(Deaf, kill)
