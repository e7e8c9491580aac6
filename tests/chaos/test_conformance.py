"""The broker in memory and the real one pass the same checks; bad ones fail."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tangram.broker import EmbeddedBroker
from tangram.bus.resp import Dial
from tangram.chaos.conformance import Broker, check_broker
from tangram.config import BrokerConfig
from tangram.testing import MemoryBroker
from tangram.testing.fakes.valkey import ClientState
from tangram.testing.fakes.valkey.keyspace import Keyspace


def kill(broker: Broker) -> None:
    if isinstance(broker, MemoryBroker):
        broker.kill()
        return
    pid = broker.statistics().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def dial(broker: Broker) -> Dial:
    assert isinstance(broker, MemoryBroker)
    return broker.dial


@pytest.mark.slow
@pytest.mark.parametrize("way", [None, dial], ids=["port", "dial"])
async def test_the_broker_in_memory_conforms(way: Callable[[Broker], Dial] | None) -> None:
    """The fake passes every check, over real sockets too."""
    await check_broker(MemoryBroker, kill, dial=way)


@pytest.mark.slow
async def test_the_real_broker_conforms() -> None:
    """The process passes the same checks, as their reference."""
    await check_broker(lambda: EmbeddedBroker(BrokerConfig(port=0)), kill)


class Deaf(MemoryBroker):
    """A broker that delivers no message."""

    def publish(self, channel: bytes, payload: bytes) -> int:
        return 0


async def test_a_broker_that_loses_messages_does_not_conform() -> None:
    """A broker that delivers no message fails."""
    with pytest.RaisesGroup(
        pytest.RaisesExc(AssertionError, match="two are subscribed"), flatten_subgroups=True
    ):
        await check_broker(Deaf, kill)


async def test_a_broker_that_keeps_keys_for_ever_does_not_conform(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that forgets the expiry of a key fails."""
    monkeypatch.setattr(Keyspace, "end", lambda *_: None)

    with pytest.RaisesGroup(pytest.RaisesExc(AssertionError, match="'TTL k'"), flatten_subgroups=True):
        await check_broker(MemoryBroker, kill, dial=dial)


@pytest.mark.slow
async def test_a_broker_that_keeps_everything_does_not_conform(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker without a bound for a silent subscriber fails."""
    monkeypatch.setattr(ClientState, "push", lambda self, message, limit, now: self.emit(message))

    with pytest.RaisesGroup(
        pytest.RaisesExc(AssertionError, match="bytes were published"), flatten_subgroups=True
    ):
        await check_broker(MemoryBroker, kill, dial=dial)
