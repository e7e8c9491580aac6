"""Publications of placed plugins, on a broker in memory."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tangram.app.incarnation import Incarnation
from tangram.bus import Bus
from tangram.cluster import Fencing, load_functions
from tangram.cluster.library import fence_key
from tangram.cluster.placement import HELD_LEASE, under_lease
from tangram.errors import BrokerRefused
from tangram.history import History, Rules
from tangram.history.rules import Rule
from tangram.testing.fakes.memory_broker import MemoryBroker
from tests.cluster.test_nodes import url
from tests.cluster.test_placement import Cluster, cluster

__all__ = ["cluster"]


async def open_bus(nursery: trio.Nursery, memory: MemoryBroker) -> Bus:
    bus = Bus(url(memory), history=Rules([Rule("kept", History(size=5))]), loads=(load_functions,))
    await nursery.start(bus.run)
    return bus


def execute(memory: MemoryBroker, *words: bytes) -> None:
    memory._valkey.execute(memory._valkey.connect(lambda: None, lambda: None), list(words))


@pytest.mark.parametrize("topic", ["plain", "kept"])
async def test_a_holder_publishes_and_an_older_one_does_not(
    autojump_clock: MockClock, nursery: trio.Nursery, memory: MemoryBroker, cluster: Cluster, topic: str
) -> None:
    """A process that was stopped believes that it holds the lease; Redis refuses its publications."""
    first = await cluster.open("a")
    second = await cluster.open("b")
    bus = await open_bus(nursery, memory)
    channel = f"to:{topic}:x"
    assert await Fencing(first.nodes).publish(bus, "globe", channel, "1") == 1
    old = first.nodes.book.lease("globe").token
    with pytest.raises(BrokerRefused, match="fenced"):
        await Fencing(second.nodes).publish(bus, "globe", channel, "2")
    await first.stop()
    await cluster.stage.wait_on("globe", "b")
    lease = first.nodes.book.lease("globe")
    lease.state, lease.token, lease.deadline = second.nodes.book.lease("globe").state, old, 1e9

    with pytest.raises(BrokerRefused, match="FENCED another node"):
        await Fencing(first.nodes).publish(bus, "globe", channel, "3")
    assert not lease.held
    assert await Fencing(second.nodes).publish(bus, "globe", channel, "4") == 1
    assert [payload for where, payload in memory.published if where == channel.encode()] == [b"1", b"4"]


@pytest.mark.parametrize("lost", [(b"FLUSHALL",), (b"DEL", fence_key("globe").encode())])
async def test_a_holder_whose_token_is_lost_takes_the_lease_again_and_repeats(
    autojump_clock: MockClock,
    nursery: trio.Nursery,
    memory: MemoryBroker,
    cluster: Cluster,
    lost: tuple[bytes, ...],
) -> None:
    """A message that Redis refused because it has lost its data is published once, with a new token."""
    first = await cluster.open("a")
    bus = await open_bus(nursery, memory)
    before = first.nodes.book.lease("globe").token
    await trio.sleep(1)
    execute(memory, *lost)

    assert await Fencing(first.nodes).publish(bus, "globe", "to:plain:x", "1") == 1
    assert first.nodes.book.lease("globe").token > before
    assert [where for where, _ in memory.published].count(b"to:plain:x") == 1
    assert cluster.stage.starts == [("globe", "a")]


async def test_every_way_to_publish_carries_the_token(
    autojump_clock: MockClock, nursery: trio.Nursery, memory: MemoryBroker, cluster: Cluster
) -> None:
    """``redis_client.publish``, a raw command, a pipeline, and the handler of a route."""
    server = await cluster.open("a")
    incarnation = Incarnation(bus=await open_bus(nursery, memory), fencing=Fencing(server.nodes))
    client = incarnation.make_redis_client()

    async def publish_both() -> list[int]:
        raw = await client.execute_command("publish", "to:plain:x", "2")  # type: ignore[no-untyped-call]
        return [await client.publish("to:plain:x", "1"), raw]

    assert await under_lease("globe", publish_both) == [1, 1]
    pipe = client.pipeline()
    plain = client.pipeline().publish("to:plain:x", "3")
    held = HELD_LEASE.set("globe")
    pipe.publish("to:plain:x", "3").execute_command("PUBLISH", b"to:plain:x", 4)
    HELD_LEASE.reset(held)
    token = str(server.nodes.book.lease("globe").token)
    words = ("FCALL", "tangram_fenced", "1", fence_key("globe"), token)
    assert [args for _, args, _ in pipe._commands] == [
        (*words, "to:plain:x", "3"),
        (*words, b"to:plain:x", "4"),
    ]
    assert [name for name, _, _ in plain._commands] == ["publish"]
    server.nodes.book.lease("globe").deadline = 0.0
    with pytest.raises(BrokerRefused, match="fenced"):
        await under_lease("globe", publish_both)
    assert await under_lease(None, publish_both) == [1, 1]
