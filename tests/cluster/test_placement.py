"""Placed plugins on several nodes, on a broker in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from trio.testing import MockClock

from tangram.cluster import NodeRecord, Nodes, Placement
from tangram.errors import BrokerRefused, BrokerUnavailable
from tangram.testing.fakes.memory_broker import MemoryBroker
from tests.cluster.test_nodes import url

PLACED = frozenset({"globe", "map", "system/tick"})


class Stage:
    """Who runs which plugin, over all nodes."""

    def __init__(self) -> None:
        self.running: dict[str, list[str]] = {}
        self.starts: list[tuple[str, str]] = []
        self.overlaps: list[str] = []
        self.changed = trio.Event()

    @contextmanager
    def on(self, name: str, node: str) -> Iterator[None]:
        running = self.running.setdefault(name, [])
        if running:
            self.overlaps.append(f"{name} on {node} beside {running}")
        running.append(node)
        self.starts.append((name, node))
        self.notify()
        try:
            yield
        finally:
            running.remove(node)
            self.notify()

    def notify(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def wait_on(self, name: str, node: str | None, seconds: float = 30.0) -> float:
        """Return once a plugin runs on a node, with the seconds that it took."""
        began = trio.current_time()
        with trio.fail_after(seconds):
            while self.running.get(name, []) != ([] if node is None else [node]):
                await self.changed.wait()
        return trio.current_time() - began


class Server:
    """One node with placed plugins, which restart after a crash as a supervisor restarts them."""

    def __init__(
        self, memory: MemoryBroker, stage: Stage, node: str, ttl: float = 6.0, *, spread: bool = False
    ) -> None:
        self.stage, self.node = stage, node
        record = NodeRecord(node, 1.0, "0.1.0", None, 1, 0, (), run=f"run-{node}")
        self.nodes = Nodes(url(memory), record, lease_ttl=ttl, spread=spread)
        self.stopping = False
        self.placed = PLACED
        self.alive = True
        self.placement = Placement(
            lambda: self.nodes if self.alive else None, lambda: self.placed, lambda _name: self.stopping
        )
        self.placement.attach(self.nodes)
        self.crash = trio.Event()
        self.stop_seconds = 0.0
        self.standby: list[str] = []
        self.scope = trio.CancelScope()
        self.plugins: trio.Nursery | None = None

    async def run(self, names: tuple[str, ...], *, task_status: trio.TaskStatus[None]) -> None:
        with self.scope:
            async with trio.open_nursery() as outer:
                await outer.start(self.nodes.run)
                try:
                    async with trio.open_nursery() as self.plugins:
                        for name in names:
                            await self.plugins.start(self.child, name)
                        task_status.started()
                        await trio.sleep_forever()
                finally:
                    outer.cancel_scope.cancel()

    async def child(self, name: str, *, task_status: trio.TaskStatus[None]) -> None:
        status = task_status
        while True:

            async def plugin(*, task_status: trio.TaskStatus[None]) -> None:
                with self.stage.on(name, self.node):
                    task_status.started()
                    try:
                        await self.crash.wait()
                    finally:
                        with trio.CancelScope(shield=True):
                            await trio.sleep(self.stop_seconds)
                raise RuntimeError("crash")

            try:
                await self.placement.run(
                    name, plugin, task_status=status, on_standby=lambda: self.standby.append(name)
                )
            except RuntimeError:
                await trio.sleep(5.0)
            status = trio.TASK_STATUS_IGNORED

    async def stop(self) -> None:
        """Stop the plugins first, then the node, as the tree does."""
        self.stopping = True
        assert self.plugins is not None
        self.plugins.cancel_scope.cancel()
        await self.stage.wait_on("globe", None)

    def cut(self) -> None:
        """Let no command of this node reach Redis any more."""

        async def refuse(*_args: object, **_more: object) -> None:
            await trio.sleep(0.1)
            raise BrokerUnavailable("cut off")

        self.nodes.call = refuse  # type: ignore[method-assign]


class Cluster:
    """Servers on one broker."""

    def __init__(self, nursery: trio.Nursery, memory: MemoryBroker) -> None:
        self.nursery, self.memory, self.stage = nursery, memory, Stage()
        self.servers: dict[str, Server] = {}

    async def open(self, node: str, *names: str, ttl: float = 6.0) -> Server:
        server = self.servers[node] = Server(self.memory, self.stage, node, ttl)
        await self.nursery.start(server.run, names or ("globe",))
        return server


@pytest.fixture
async def cluster(nursery: trio.Nursery, memory: MemoryBroker) -> Cluster:
    """A cluster without nodes."""
    return Cluster(nursery, memory)


async def test_a_placed_plugin_runs_on_one_node(autojump_clock: MockClock, cluster: Cluster) -> None:
    """The first node takes it; the second one stands by, which counts as started."""
    first = await cluster.open("a")
    second = await cluster.open("b")
    await trio.sleep(60)

    assert cluster.stage.starts == [("globe", "a")]
    assert second.standby == ["globe"]
    assert first.placement.is_mine("globe")
    assert not second.placement.is_mine("globe")
    for server in (first, second):
        holder = server.placement.holder("globe")
        assert holder is not None
        assert holder.id == "a"
        assert holder.plugins == ("globe",)
        assert server.nodes.alive()["b"].standby == ("globe",)


async def test_a_planned_stop_hands_over_in_one_round_trip(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    """The plugin ends, then its lease is released, and the next node starts it at once."""
    first = await cluster.open("a")
    await cluster.open("b")
    await trio.sleep(3)
    first.stop_seconds = 0.7
    first.stopping = True
    assert first.plugins is not None
    first.plugins.cancel_scope.cancel()
    took = await cluster.stage.wait_on("globe", "b")

    assert took == pytest.approx(0.7, abs=0.05)
    assert cluster.stage.overlaps == []


async def test_a_node_that_dies_is_replaced_within_the_ttl(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    """It renews no longer; the other node takes the lease when it has expired, and not before."""
    first = await cluster.open("a")
    await cluster.open("b")
    await trio.sleep(3)
    first.cut()
    first.nodes._publisher._closed = True
    took = await cluster.stage.wait_on("globe", "b")

    assert 2.0 < took <= 7.0
    assert cluster.stage.overlaps == []


async def test_a_holder_without_redis_stops_before_another_starts(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    """Its own deadline stops the plugin, which may take three tenths of the ttl to end."""
    first = await cluster.open("a")
    await cluster.open("b")
    await trio.sleep(3)
    first.stop_seconds = 1.79
    began = trio.current_time()
    first.cut()
    await cluster.stage.wait_on("globe", "b")

    assert trio.current_time() - began < 7.0
    assert cluster.stage.overlaps == []
    assert cluster.stage.starts == [("globe", "a"), ("globe", "b")]


async def test_a_crash_keeps_the_lease_over_its_back_off(autojump_clock: MockClock, cluster: Cluster) -> None:
    """The plugin restarts where it crashed, although another node waits for it."""
    first = await cluster.open("a")
    await cluster.open("b")
    await trio.sleep(3)
    first.crash.set()
    await cluster.stage.wait_on("globe", None)
    first.crash = trio.Event()
    took = await cluster.stage.wait_on("globe", "a")

    assert took == pytest.approx(5.0, abs=0.1)
    assert cluster.stage.starts == [("globe", "a"), ("globe", "a")]


async def test_quarantine_lets_another_node_try(autojump_clock: MockClock, cluster: Cluster) -> None:
    """The lease of a plugin in quarantine is released at once."""
    first = await cluster.open("a")
    await cluster.open("b")
    await trio.sleep(3)
    first.crash.set()
    await cluster.stage.wait_on("globe", None)
    first.placement.give_up("globe")
    took = await cluster.stage.wait_on("globe", "b")

    assert took < 0.1


async def test_a_move_goes_to_the_named_node(autojump_clock: MockClock, cluster: Cluster) -> None:
    """It may be asked of any node; the holder stops the plugin, and the named node takes it."""
    await cluster.open("a")
    second = await cluster.open("b")
    third = await cluster.open("c")
    await trio.sleep(3)
    for server, to in ((second, "c"), (third, "b"), (second, "a")):
        await server.nodes.publish_change({"what": "move", "lease": "globe", "to": to})
        assert await cluster.stage.wait_on("globe", to) < 0.2

    assert cluster.stage.overlaps == []


async def test_plugins_of_a_dead_node_are_spread(autojump_clock: MockClock, cluster: Cluster) -> None:
    """The node that holds fewer takes the next one."""
    first = await cluster.open("a", "globe", "map")
    await cluster.open("b", "globe", "map")
    await cluster.open("c", "globe", "map")
    await trio.sleep(3)
    await first.stop()
    await trio.sleep(1)

    assert sorted(node for running in cluster.stage.running.values() for node in running) == ["b", "c"]


@pytest.mark.parametrize("late", [0.0, 0.2, 0.4, 0.7, 0.9])
async def test_workers_that_start_together_share_the_plugins(
    autojump_clock: MockClock, nursery: trio.Nursery, cluster: Cluster, late: float
) -> None:
    """Each takes one at once and the further ones later, so that the others find some."""
    names = ("globe", "map", "system/tick", "a", "b", "c")

    async def start(node: str, after: float) -> None:
        await trio.sleep(after)
        server = Server(cluster.memory, cluster.stage, node, spread=True)
        server.placed = frozenset(names)
        server.nodes.book.watch(names)
        await nursery.start(server.run, names)

    for number, node in enumerate(("w1", "w2")):
        nursery.start_soon(start, node, late * number)
    await trio.sleep(10)
    held = [node for running in cluster.stage.running.values() for node in running]

    assert len(held) == len(names)
    assert abs(held.count("w1") - held.count("w2")) <= 2
    assert len(cluster.stage.starts) == len(names)


async def test_a_lone_worker_takes_all_plugins(autojump_clock: MockClock, cluster: Cluster) -> None:
    """Its second plugin waits for half a second, its third one for a second."""
    names = ("globe", "map", "system/tick")
    server = Server(cluster.memory, cluster.stage, "w1", spread=True)
    began = trio.current_time()
    await cluster.nursery.start(server.run, names)
    for name in names:
        await cluster.stage.wait_on(name, "w1")

    assert trio.current_time() - began == pytest.approx(1.0, abs=0.1)


async def test_a_redis_that_loses_everything_costs_no_restart(
    autojump_clock: MockClock, cluster: Cluster
) -> None:
    """The holder takes its lease again; the other node does not grab it meanwhile."""
    await cluster.open("a")
    await cluster.open("b")
    await trio.sleep(3)
    memory = cluster.memory
    for drop in (False, True):
        memory._valkey.execute(memory._valkey.connect(lambda: None, lambda: None), [b"FLUSHALL"])
        if drop:
            memory.drop()
        await trio.sleep(30)

    assert cluster.stage.starts == [("globe", "a")]


async def test_a_returned_service_does_not_run_again_elsewhere(
    autojump_clock: MockClock, nursery: trio.Nursery, cluster: Cluster
) -> None:
    """Its lease is kept for as long as its node lives."""
    runs: list[str] = []
    for node in ("a", "b"):
        server = await cluster.open(node)

        async def job(node: str = node, *, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            runs.append(node)

        async def place(
            server: Server = server, job: object = job, *, task_status: trio.TaskStatus[None]
        ) -> None:
            await server.placement.run("system/tick", job, task_status=task_status)  # type: ignore[arg-type]

        await nursery.start(place)
    await trio.sleep(200)

    assert runs == ["a"]


async def test_a_start_after_the_wait_has_a_limit(
    autojump_clock: MockClock, nursery: trio.Nursery, cluster: Cluster
) -> None:
    """A plugin that hangs at its start on the next node crashes there after its start time."""
    first = await cluster.open("a")
    second = await cluster.open("b", "map")
    outcome: list[BaseException] = []
    failed = trio.Event()

    async def hang(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep_forever()

    async def place(*, task_status: trio.TaskStatus[None]) -> None:
        try:
            await second.placement.run("globe", hang, task_status=task_status, start_timeout=4.0)
        except TimeoutError as error:
            outcome.append(error)
            failed.set()

    await nursery.start(place)
    await first.stop()
    began = trio.current_time()
    await failed.wait()

    assert trio.current_time() - began == pytest.approx(4.0, abs=0.1)
    assert "did not start within 4 s" in str(outcome[0])


async def test_an_idle_node_costs_redis_few_commands(autojump_clock: MockClock, cluster: Cluster) -> None:
    """One call every two seconds, and the pings of its two connections."""
    await cluster.open("a", "globe", "map")
    await cluster.open("b", "globe", "map")
    await trio.sleep(10)
    counted: list[bytes] = []
    execute = cluster.memory._valkey.execute

    def count(session: object, words: list[bytes]) -> None:
        counted.append(words[0])
        execute(session, words)  # type: ignore[arg-type]

    cluster.memory._valkey.execute = count  # type: ignore[method-assign]
    await trio.sleep(100)

    assert len(counted) / 100 / 2 < 1.6


async def test_a_server_alone_runs_its_plugins_without_redis(autojump_clock: MockClock) -> None:
    """Without nodes there is no lease."""
    placement = Placement(lambda: None, lambda: PLACED)
    started: list[object] = []

    async def plugin(*, task_status: trio.TaskStatus[None]) -> None:
        started.append(task_status)

    await placement.run("globe", plugin, task_status=trio.TASK_STATUS_IGNORED)
    assert started == [trio.TASK_STATUS_IGNORED]
    placement.move("globe")
    placement.give_up("globe")


async def test_a_failure_after_the_lease_is_lost_is_no_crash(
    autojump_clock: MockClock, nursery: trio.Nursery, cluster: Cluster
) -> None:
    """A plugin whose publication is refused stands by again; with its lease held, it crashes."""
    server = await cluster.open("a", "map")
    book = server.nodes.book
    starts: list[float] = []

    async def refused(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        starts.append(trio.current_time())
        if len(starts) == 1:
            book.lease("globe").deadline = trio.current_time()
        raise BrokerRefused("FENCED another node holds the lease")

    with pytest.raises(BrokerRefused):
        await server.placement.run("globe", refused, task_status=trio.TASK_STATUS_IGNORED)

    assert len(starts) == 2
    assert server.placement._scopes.keys() == {"map"}
