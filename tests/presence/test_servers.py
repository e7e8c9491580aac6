"""Several servers on one broker in memory: every browser sees the members of all of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tangram.bus.resp import current_dial
from tangram.client import Channel
from tangram.errors import BrokerUnavailable
from tangram.plugins.state import BackendState
from tangram.presence.stamps import WHO
from tangram.redis_url import RedisAddress
from tangram.testing import RunningTangram, open_tangram
from tangram.testing.fakes.memory_broker import MemoryBroker
from tangram.testing.run.server import CHEAP

CHECKS = [name for name in CHEAP if name not in {"nothing_left_alive", "each_crash_logged_once"}]
"""Those count the descriptors and the log of the whole process, in which another server runs on."""


async def run_again(broker: MemoryBroker, *, task_status: trio.TaskStatus[None]) -> None:
    """Start a broker again whenever it is killed."""
    await trio.lowlevel.checkpoint()
    started = False
    while True:
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(broker.run)
                if not started:
                    started = True
                    task_status.started()
        except* BrokerUnavailable:
            pass  # it begins again without its data


@pytest.fixture
async def memory(nursery: trio.Nursery) -> AsyncIterator[MemoryBroker]:
    """A running broker in memory."""
    broker = MemoryBroker()
    await nursery.start(run_again, broker)
    token = current_dial.set(broker.dial)
    yield broker
    current_dial.reset(token)


@asynccontextmanager
async def open_node(memory: MemoryBroker, name: str, **channel: Any) -> AsyncIterator[RunningTangram]:
    """Run a server as one node on a broker that others use, too."""
    config: Mapping[str, Any] = {
        "core": {"redis_url": memory.server_url},
        "cluster": {"node": name},
        "channel": {"jwt_secret": "one for all nodes, long enough", **channel},
    }

    def use_memory(running: RunningTangram) -> None:
        running.redis_route.inner = memory.dial

    async with open_tangram([], config, memory_port=True, on_server=use_memory, checks=CHECKS) as running:
        yield running


def state_of(node: RunningTangram) -> BackendState:
    assert node.server.tree is not None
    return node.server.tree.incarnation.require_state()


@asynccontextmanager
async def open_member(node: RunningTangram, id_: str, topic: str = "map") -> AsyncIterator[Channel]:
    """Join a topic on one node."""
    answer = await node.http.post("/token", json={"channel": topic, "id": id_})
    assert node.port is not None
    with node.port.dialled():
        async with node.open_socket() as socket:
            yield await socket.join(topic, token=str(answer.json()["token"]))


async def see(channel: Channel, *ids: str) -> None:
    """Wait until a channel has exactly these members."""
    with trio.fail_after(60):
        await channel.wait_presence(lambda seen: set(seen) == set(ids))


async def test_a_newcomer_gets_the_members_of_all_nodes(
    autojump_clock: MockClock, memory: MemoryBroker
) -> None:
    """Members of another node are in the state, and later ones come as differences, within 200 ms."""
    async with open_node(memory, "a") as one, open_node(memory, "b") as two, open_member(one, "ann") as first:
        await see(first, "ann")
        async with open_member(two, "bob") as second:
            began = trio.current_time()
            await see(second, "ann", "bob")
            await see(first, "ann", "bob")

            assert trio.current_time() - began < 0.2
            assert first.presence == second.presence
            members = await state_of(one).presence("map")
            assert members == {id_: {"metas": metas} for id_, metas in first.presence.items()}
        await see(first, "ann")
        assert list(await state_of(two).presence("map")) == ["ann"]


@asynccontextmanager
async def watched(channel: Channel, nursery: trio.Nursery) -> AsyncIterator[set[str]]:
    """Yield a set that gets each id which is missing for a moment."""
    missing: set[str] = set()
    always = set(channel.presence)

    async def watch() -> None:
        while True:
            missing.update(always - set(channel.presence))
            always.difference_update(missing)
            await channel.wait_presence(lambda seen: not always <= set(seen))

    scope = trio.CancelScope()

    async def run() -> None:
        with scope:
            await watch()

    nursery.start_soon(run)
    yield missing
    scope.cancel()


def cut(node: RunningTangram) -> None:
    """Cut a node off from the broker."""

    async def refuse(_address: RedisAddress) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        raise ConnectionRefusedError(111, "Connection refused")

    node.redis_route.inner = refuse
    node.redis_route.cut()


@pytest.mark.parametrize("late", [0.0, 0.5, 1.0, 1.5])
async def test_members_of_a_node_that_dies_leave_within_8_s(
    autojump_clock: MockClock, memory: MemoryBroker, late: float
) -> None:
    """Its record expires, and another node removes them; if it was cut off only, they come back with it."""
    async with open_node(memory, "a") as one, open_node(memory, "b") as two, open_member(one, "ann") as first:
        async with open_member(two, "bob"), open_member(two, "bea"):
            await see(first, "ann", "bob", "bea")
            assert two.server.tree is not None
            assert two.server.tree.nodes is not None
            # The beats of both nodes come at any distance, and the node dies behind one of its own.
            await trio.sleep(late)
            two.server.tree.nodes.renew_now()
            await trio.sleep(0.01)
            began = trio.current_time()
            cut(two)
            await see(first, "ann")

            assert 5.9 < trio.current_time() - began < 8
            two.redis_route.inner = memory.dial
            await see(first, "ann", "bob", "bea")


async def test_members_of_a_node_that_stops_may_join_again_without_a_flicker(
    autojump_clock: MockClock, nursery: trio.Nursery, memory: MemoryBroker
) -> None:
    """They stay for the grace; those that have joined elsewhere stay, and the others leave then."""
    async with open_node(memory, "a") as one, open_member(one, "ann") as first:
        async with AsyncExitStack() as stack:
            two = await stack.enter_async_context(open_node(memory, "b"))
            await stack.enter_async_context(open_member(two, "bob"))
            await stack.enter_async_context(open_member(two, "bea"))
            await see(first, "ann", "bob", "bea")
            old = first.presence["bob"]
            missing = await stack.enter_async_context(watched(first, nursery))
            two.stop()
            await two.wait_ended()
            began = trio.current_time()
            async with open_member(one, "bob") as again:
                await see(again, "ann", "bob", "bea")
                assert missing == set()
                await see(first, "ann", "bob")

                assert 4 < trio.current_time() - began < 7
                await trio.testing.wait_all_tasks_blocked()
                assert missing == {"bea"}
                assert first.presence["bob"] == again.presence["bob"] != old
                assert len(first.presence["bob"]) == 1


async def test_a_restart_of_one_node_is_no_flicker(
    autojump_clock: MockClock, nursery: trio.Nursery, memory: MemoryBroker
) -> None:
    """Members of a crashed incarnation join again, and others do not see them leave."""
    async with (
        open_node(memory, "a") as one,
        open_node(memory, "b") as two,
        open_member(one, "ann") as first,
        open_member(two, "bob") as second,
    ):
        await see(first, "ann", "bob")
        async with watched(first, nursery) as missing:
            before = second.presence["bob"]
            two.crash("channels")
            await two.wait_ready(2)
            await second.wait_presence(lambda seen: seen.get("bob", before) != before)
            await trio.sleep(10)

            assert first.presence["bob"] == second.presence["bob"] != before
            assert missing == set()


@pytest.mark.parametrize("lost", [False, True])
async def test_presence_survives_a_restart_of_redis(
    autojump_clock: MockClock, memory: MemoryBroker, *, lost: bool
) -> None:
    """Nodes state their members again, whether Redis has kept them or not."""
    async with (
        open_node(memory, "a") as one,
        open_node(memory, "b") as two,
        open_member(one, "ann") as first,
        open_member(two, "bob") as second,
    ):
        await see(first, "ann", "bob")
        if lost:
            memory.kill()
        else:
            memory.drop()
        await trio.sleep(5)
        async with open_member(two, "cat") as third:
            for channel in (first, second, third):
                await see(channel, "ann", "bob", "cat")
            assert first.presence == second.presence == third.presence


async def test_several_nodes_sweep_a_dead_one_once(autojump_clock: MockClock, memory: MemoryBroker) -> None:
    """All that are left may try: one takes the lock, and the members leave in one difference."""
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(open_node(memory, name)) for name in "abcd"]
        members = [await stack.enter_async_context(open_member(one, "ann")) for one in nodes[:3]]
        await stack.enter_async_context(open_member(nodes[3], "bob"))
        await stack.enter_async_context(open_member(nodes[3], "bea"))
        for channel in members:
            await see(channel, "ann", "bob", "bea")
        before = len(memory.published)
        cut(nodes[3])
        for channel in members:
            await see(channel, "ann")
        await trio.sleep(1)

        stamps = [json.loads(payload) for name, payload in memory.published[before:] if name == WHO]
        assert [stamp["x"] for stamp in stamps if "x" in stamp] == [1]
        assert [sorted(await state_of(one).presence("map")) for one in nodes[:3]] == [["ann"]] * 3


async def test_topics_show_the_members_of_all_nodes(autojump_clock: MockClock, memory: MemoryBroker) -> None:
    """``members`` are those of the node, and ``present`` those of all."""
    async with (
        open_node(memory, "a") as one,
        open_node(memory, "b") as two,
        open_member(one, "ann") as first,
        open_member(two, "bob") as second,
        open_member(two, "cat"),
    ):
        for channel in (first, second):
            await see(channel, "ann", "bob", "cat")
        found = []
        for node in (one, two):
            topics = (await node.http.get("/-/topics", headers=node.operator)).json()
            found += [(each["members"], each["present"]) for each in topics if each["topic"] == "map"]
        assert found == [(1, 3), (2, 3)]


async def test_a_topic_above_its_limit_sends_numbers(autojump_clock: MockClock, memory: MemoryBroker) -> None:
    """Above the limit members of all nodes get their number, and below it the list again."""
    rules = [{"topics": "map", "limit": 3}]
    async with (
        open_node(memory, "a", presence=rules) as one,
        open_node(memory, "b", presence=rules) as two,
        open_member(one, "ann") as first,
        open_member(two, "bob") as second,
    ):
        await see(first, "ann", "bob")
        async with open_member(two, "cat") as third, open_member(one, "eve"):
            for channel in (first, second, third):
                with trio.fail_after(5):
                    await channel.wait_present(lambda count: count == 4)
            sent = len([one for one, _ in memory.published if one == b"to:map:presence_diff"])
            async with open_member(one, "dan"):
                await trio.sleep(2)
                assert first.present == third.present == 5
            assert sent == len([one for one, _ in memory.published if one == b"to:map:presence_diff"])
            await trio.sleep(0.1)
            assert sorted(await state_of(one).presence("map")) == ["ann", "bob", "cat", "eve"]
        for channel in (first, second):
            await see(channel, "ann", "bob")
            assert channel.present == 2
