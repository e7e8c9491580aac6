"""The parent of several workers, in memory."""

from __future__ import annotations

import random
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
import structlog
import trio
from trio.testing import MockClock as Clock

from tangram.config import OPERATOR_TOKEN
from tangram.errors import ConfigError, StartFailed
from tests.workers.memory import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


async def test_all_workers_serve_and_stop_together(autojump_clock: Clock, machine: Machine) -> None:
    """Each has its name and node; the secrets exist before the first one starts."""
    async with machine.run() as parent:
        first, second = machine.started
        secrets = sorted(path.name for path in (machine.folder / "state").iterdir())
        begun = trio.current_time()

        assert machine.ready == ["1", "2"]
        assert machine.url == "http://127.0.0.1:1/"
        assert first.handover.node.removesuffix("1") == second.handover.node.removesuffix("2")
        assert first.handover.share != second.handover.share
        assert secrets == ["jwt-secret", OPERATOR_TOKEN]
        assert parent.supervisor is not None

    assert machine.statuses == [0]
    assert trio.current_time() - begun < 0.5
    assert [one.signals for one in machine.started] == [[signal.SIGTERM]] * 2


async def test_a_stopping_parent_holds_no_socket(autojump_clock: Clock, machine: Machine) -> None:
    """The workers close theirs after their last accept, so that the kernel refuses clients from then on."""
    async with machine.run() as parent:
        (held,) = machine.held
        assert not held.closed
        parent.stop()
        assert held.closed


async def test_a_killed_worker_is_restarted_alone(autojump_clock: Clock, machine: Machine) -> None:
    """The other one goes on."""
    async with machine.run():
        machine.find("1").signal(signal.SIGKILL)
        await trio.sleep(2)

        assert machine.ready == ["2", "1-2"]
    assert machine.statuses == [0]


async def test_a_rolling_restart_replaces_one_after_the_other(
    autojump_clock: Clock, machine: Machine
) -> None:
    """At no time less than all but none are ready, and a place has two processes at most."""
    async with machine.run() as parent:
        machine.write(more="new")
        parent.request_reload()
        least = most = 2
        with trio.move_on_after(10):
            while True:
                least, most = min(least, len(machine.ready)), max(most, len(machine.running))
                await trio.sleep(0.03)

        assert machine.ready == ["1-2", "2-2"]
        assert "new" in machine.find("2-2").text
        assert (least, most) == (2, 3)
        assert [machine.find(name).heard for name in ("1", "2")] == [["replaced"]] * 2


async def test_a_faulty_file_leaves_everything_as_it_is(autojump_clock: Clock, machine: Machine) -> None:
    """No process is started for a file that the parent refuses, one for a fault of a plugin."""
    async with machine.run() as parent:
        before = machine.text
        machine.text = "[server]\nworkers = 'many'\n"
        parent.request_reload()
        await trio.sleep(5)
        assert len(machine.started) == 2
        machine.text = f"{before}# faulty\n"
        with structlog.testing.capture_logs() as logs:
            parent.request_reload()
            await trio.sleep(5)

        assert machine.ready == ["1", "2"]
        assert len(machine.started) == 3
        assert "expected another word @ plugins.word" in str(logs)
        machine.find("1").signal(signal.SIGKILL)
        await trio.sleep(5)
        assert machine.find("1-3").text == before


async def test_the_rest_gets_the_old_configuration_back(autojump_clock: Clock, machine: Machine) -> None:
    """The second new worker does not start, so the first one is replaced by the old version."""
    machine.write(workers=3)
    before = machine.text
    async with machine.run() as parent:
        machine.write(workers=3, more="new")
        parent.request_reload()
        await trio.sleep(1)
        machine.broken_starts = 1
        await trio.sleep(10)

        assert machine.ready == ["2", "3", "1-3"]
        assert machine.find("1-2").text != before
        assert machine.find("1-3").text == before


async def test_a_reload_changes_the_number_of_workers(autojump_clock: Clock, machine: Machine) -> None:
    """New ones start, and surplus ones stop as replaced ones do."""
    async with machine.run() as parent:
        machine.write(workers=4)
        parent.request_reload()
        await trio.sleep(10)
        assert machine.ready == ["1-2", "2-2", "3", "4"]
        machine.write(workers=1)
        parent.request_reload()
        await trio.sleep(10)

        assert machine.ready == ["1-3"]
        assert machine.find("4").heard == ["replaced"]
        assert list(parent.places) == [1]
    assert machine.statuses == [0]


async def test_a_replaced_worker_that_hangs_is_killed(autojump_clock: Clock, machine: Machine) -> None:
    """The rolling restart goes on after its stop time."""
    async with machine.run() as parent:
        machine.hangs = True
        parent.request_reload()
        await trio.sleep(60)

        assert machine.ready == ["1-2", "2-2"]
        assert machine.running == ["1-2", "2-2"]
        assert signal.SIGKILL in machine.find("1").signals


async def test_a_place_without_budget_stays_empty_until_the_next_reload(
    autojump_clock: Clock, machine: Machine
) -> None:
    """The others go on serving."""
    async with machine.run() as parent:
        for _ in range(4):
            machine.find(next(name for name in machine.ready if name.startswith("1"))).signal(signal.SIGKILL)
            await trio.sleep(5)
        await trio.sleep(300)
        assert machine.ready == ["2"]
        parent.request_reload()
        await trio.sleep(5)

        assert len(machine.ready) == 2
    assert machine.statuses == [0]


async def test_the_parent_ends_when_every_place_is_empty(autojump_clock: Clock, machine: Machine) -> None:
    """With the status for too many crashes."""
    async with machine.run():
        with trio.move_on_after(600):
            while not machine.statuses:
                for name in machine.ready:
                    machine.find(name).signal(signal.SIGKILL)
                await trio.sleep(1)

    assert machine.statuses == [70]


async def test_a_mistake_of_the_operator_ends_the_first_start(
    autojump_clock: Clock, machine: Machine
) -> None:
    """It is raised as by a single process; no second worker is started."""
    machine.write(more="faulty")
    with pytest.raises(ConfigError, match="expected another word"):
        await machine.parent().run()

    assert [one.name for one in machine.started] == ["1"]


async def test_a_worker_that_cannot_start_ends_the_parent(autojump_clock: Clock, machine: Machine) -> None:
    """With status 1, as a single process."""
    machine.broken_starts = 1
    assert await machine.parent().run() == 1
    assert machine.running == []


async def test_a_stop_during_a_rolling_restart_leaves_no_process(
    autojump_clock: Clock, machine: Machine
) -> None:
    """Also not the one that is not ready yet."""
    async with machine.run() as parent:
        parent.request_reload()
        await trio.sleep(0.3)
        assert machine.running == ["1", "2", "1-2"]

    assert machine.statuses == [0]


async def test_a_worker_killed_during_its_replacement_is_no_crash(
    autojump_clock: Clock, machine: Machine
) -> None:
    """The new one takes over."""
    async with machine.run() as parent:
        parent.request_reload()
        await trio.sleep(0.3)
        machine.find("1").signal(signal.SIGKILL)
        await trio.sleep(10)

        assert machine.ready == ["1-2", "2-2"]


async def test_a_silent_worker_is_ended_as_systemd_would(autojump_clock: Clock, machine: Machine) -> None:
    """It is aborted, so that it leaves a record, and started again."""
    machine.environ = {"WATCHDOG_USEC": "4000000"}
    async with machine.run():
        await trio.sleep(6)

        assert signal.SIGABRT in machine.find("1").signals
        assert len(machine.started) > 2


async def test_systemd_learns_of_each_phase(autojump_clock: Clock, machine: Machine) -> None:
    """READY when all workers are ready, RELOADING around a rolling restart, STOPPING at the end."""
    path = machine.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.setblocking(False)
        machine.environ = {"NOTIFY_SOCKET": str(path)}
        async with machine.run() as parent:
            parent.request_reload()
            await trio.sleep(10)
        received = []
        with suppress(BlockingIOError):
            while True:
                received.append(systemd.recv(1024).decode().splitlines())

    assert [lines[0] for lines in received] == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]
    assert received[1][1].startswith("MONOTONIC_USEC=")


class _Broker:
    """The embedded broker, as far as the parent uses it."""

    def __init__(self, _config: object) -> None:
        self.folder: Path | None = None
        self.keeps = False
        self.starts = 0
        self.crash = trio.Event()

    server_url = "redis://tangram:secret@127.0.0.1:9"
    identity = "one"

    def statistics(self) -> object:
        from tangram.broker import BrokerStatistics

        return BrokerStatistics(
            kind="embedded", url="redis://127.0.0.1:9", up=True, pid=7, starts=self.starts
        )

    def stop_keeping(self) -> None:
        self.keeps = False

    async def run(self, *, task_status: trio.TaskStatus[str]) -> None:
        self.starts += 1
        self.crash = trio.Event()
        task_status.started("redis://127.0.0.1:9")
        await self.crash.wait()
        raise StartFailed("broker", "ended")


@pytest.mark.parametrize("histories", [True, False])
async def test_workers_follow_the_broker_of_the_parent(
    autojump_clock: Clock, tmp_path: Path, histories: bool
) -> None:
    """They learn its URL at their start, its end and its next start; it keeps data if a worker needs it."""
    machine = Machine(tmp_path, redis=False)
    machine.write(more="history" if histories else "")
    brokers: list[_Broker] = []

    def make(config: object) -> _Broker:
        brokers.append(_Broker(config))
        return brokers[-1]

    async with machine.run(embedded=make):
        one = machine.find("1")
        assert one.handover.broker is not None
        assert one.handover.broker["server_url"] == _Broker.server_url
        assert brokers[0].keeps is histories
        brokers[0].crash.set()
        await trio.sleep(3)

        assert one.heard[0] is None
        assert isinstance(one.heard[1], Mapping)
        assert one.heard[1]["starts"] == 2
        assert machine.ready == ["1", "2"]


async def disturb(machine: Machine, parent: object, rng: random.Random) -> AsyncIterator[str]:
    """Yield after each of some random faults and requests."""
    for _ in range(12):
        await trio.sleep(rng.choice([0.05, 0.3, 0.8, 4.0]))
        kind = rng.choice(["kill", "reload", "faulty", "resize", "kill starting"])
        if kind == "kill" and machine.ready:
            machine.find(rng.choice(machine.ready)).signal(signal.SIGKILL)
        elif kind == "kill starting":
            for name in set(machine.running) - set(machine.ready):
                machine.find(name).signal(signal.SIGKILL)
        else:
            more = "faulty" if kind == "faulty" else f"version {rng.random()}"
            machine.write(workers=rng.randint(1, 4) if kind == "resize" else 2, more=more)
            parent.request_reload()  # type: ignore[attr-defined]
        yield kind


@pytest.mark.parametrize("seed", range(20))
async def test_random_faults_never_leave_a_mess(autojump_clock: Clock, tmp_path: Path, seed: int) -> None:
    """Names are used once, a place has two processes at most, and at rest all have one configuration."""
    machine = Machine(tmp_path, seed=seed)
    rng = random.Random(seed)
    async with machine.run() as parent:
        async for _ in disturb(machine, parent, rng):
            places = [name.partition("-")[0] for name in machine.running]
            assert max(map(places.count, places), default=0) <= 2
        await trio.sleep(120)
        machine.write(workers=3, more="last")
        parent.request_reload()
        await trio.sleep(120)

        names = [one.name for one in machine.started]
        assert len(set(names)) == len(names)
        if not machine.statuses:
            assert len(machine.ready) == 3
            assert {machine.find(name).text for name in machine.ready} == {machine.text}
    assert set(machine.statuses) <= {0, 70}
