"""What a whole server under test is held to: planted faults of supervision and of plugins, each told by the
invariant that is named for it.
"""

from __future__ import annotations

import builtins
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import tangram
from tangram.app.server import Server
from tangram.supervision import Child, decide
from tangram.supervision.decide import Decider
from tangram.testing import (
    Chaos,
    InvariantBroken,
    RunningTangram,
    StepFailed,
    every_step,
    open_tangram,
)
from tangram.testing.injection.child_faults import FaultPorts
from tangram.testing.run import lifetime, virtual_clock
from tests.app.helpers import Journal, make_plugin


def plant_order(monkeypatch: pytest.MonkeyPatch, when: Callable[[Decider], bool]) -> None:
    """Children are stopped from the first to the last, where ``when(decisions)`` holds."""
    settle = Decider._settle_stops

    def planted(self: Decider, now: float) -> None:
        greatest: Any = builtins.max
        least: Any = lambda *these: min(*these) if len(these) == 1 else greatest(*these)  # noqa: E731
        monkeypatch.setattr(decide, "max", least if when(self) else greatest, raising=False)
        settle(self, now)

    monkeypatch.setattr(Decider, "_settle_stops", planted)


async def test_the_order_of_stops_is_judged_in_a_restart(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Children that a planned restart stops from the first to the last break the invariant."""
    plant_order(monkeypatch, lambda decisions: not decisions.closing)

    with pytest.raises(InvariantBroken, match="stops_in_reverse_order: children of incarnation"):
        async with open_tangram([make_plugin(Journal())], fakes=True) as running:
            await Chaos(running).strike("crash_web")


async def test_order_and_bound_are_judged_where_a_server_gives_up(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An escalation is a stop like another: its order holds, and the time that it takes is known."""
    plant_order(monkeypatch, lambda decisions: decisions.failure is not None)

    async def give_up() -> None:
        async with open_tangram(config={"supervisor": {"root_restarts": 0}}, fakes=True) as running:
            seen.append(running)
            running.crash("web")
            assert await running.wait_steady() == "ended"

    seen: list[RunningTangram] = []
    with pytest.raises(InvariantBroken, match="stops_in_reverse_order"):
        await give_up()

    assert seen[0].status == 70
    assert seen[0].stop_seconds is not None


async def test_the_status_of_a_stop_is_judged(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop that was asked for and ends with another status than 0 is told."""
    run = Server.run

    async def planted(self: Server, **more: Any) -> int:
        await run(self, **more)
        return 70

    monkeypatch.setattr(Server, "run", planted)

    with pytest.raises(InvariantBroken, match="ends_with_its_status: it ended with status 70"):
        async with open_tangram(fakes=True):
            pass


@pytest.mark.slow
async def test_invariants_are_judged_where_the_first_start_does_not_come_to_its_end() -> None:
    """A plugin that leaks where it is stopped while it starts for the first time is found."""
    plugin = tangram.Plugin()
    kept: list[socket.socket] = []

    @plugin.register_service()
    async def careless(state: tangram.BackendState, *, task_status: trio.TaskStatus[None]) -> None:
        ours = socket.socket()
        kept.append(ours)
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        kept.remove(ours)
        ours.close()
        task_status.started()
        await trio.sleep_forever()

    try:
        with pytest.raises(StepFailed, match=r"stop at step .*nothing_left_alive: 1 more descriptors"):
            await every_step(plugins=[plugin], kinds=["stop"])
    finally:
        for one in kept:
            one.close()


def make_deaf(seconds: float) -> tangram.Plugin:
    """One that shields itself from its end for so long."""
    plugin = tangram.Plugin()

    @plugin.register_service(stop_timeout=0.5)
    async def deaf(state: tangram.BackendState) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(seconds)

    return plugin


async def test_who_ends_late_is_named_in_every_test(autojump_clock: MockClock) -> None:
    """A service that goes on past its stop time breaks the invariant, although the stop has its bound."""
    with pytest.raises(InvariantBroken, match=r"nobody_is_stubborn: .*deaf went on although"):
        async with open_tangram([make_deaf(1.0)], fakes=True):
            await trio.sleep(0.1)


async def test_who_never_ends_does_not_hang_the_test(autojump_clock: MockClock) -> None:
    """Behind a shield for ever: it is named with its line, cancelled all the same, and nothing is left."""
    settings = {"supervisor": {"shutdown_timeout": 1.0}}

    with pytest.raises(InvariantBroken, match=r"not end by itself, because of deaf, at .*in deaf") as caught:
        async with open_tangram([make_deaf(float("inf"))], settings, fakes=True):
            await trio.sleep(0.1)

    assert "nothing_left_alive" not in str(caught.value)


async def test_who_shields_itself_again_and_again_is_released_each_time(autojump_clock: MockClock) -> None:
    """Three shields, one after another, take three cancels."""
    plugin = tangram.Plugin()

    @plugin.register_service()
    async def onion(state: tangram.BackendState) -> None:
        for _ in range(3):
            with trio.CancelScope(shield=True):
                try:
                    await trio.sleep_forever()
                except trio.Cancelled:
                    continue  # what the kit has to live with

    with pytest.raises(InvariantBroken, match="nobody_is_stubborn"):
        async with open_tangram([plugin], {"supervisor": {"shutdown_timeout": 1.0}}, fakes=True):
            await trio.sleep(0.1)


def make_spinner() -> tangram.Plugin:
    """One that takes its cancellation for nothing, and never gives way to a clock."""
    plugin = tangram.Plugin()

    @plugin.register_service()
    async def spinner(state: tangram.BackendState) -> None:
        while True:
            try:
                await trio.sleep(1)
            except trio.Cancelled:
                continue

    return plugin


@pytest.mark.slow
async def test_who_spins_at_the_stop_is_named_and_ended(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that swallows its cancellation keeps a virtual clock from ever passing: real time ends it."""
    monkeypatch.setattr(virtual_clock, "SPIN_SECONDS", 0.5)

    with pytest.raises(InvariantBroken, match=r"because of spinner, at .*in .*spinner, which takes"):
        async with open_tangram([make_spinner()], fakes=True):
            await trio.sleep(0.1)


@pytest.mark.slow
async def test_who_spins_in_a_restart_is_named_and_ended(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same while everything restarts: the test goes on, and is told."""
    monkeypatch.setattr(virtual_clock, "SPIN_SECONDS", 0.5)

    async def restart() -> None:
        async with open_tangram([make_spinner()], fakes=True) as running:
            await running.server.restart()
            await running.wait_steady()

    with pytest.raises(InvariantBroken, match="because of spinner"):
        await restart()


@pytest.mark.slow
async def test_who_spins_on_a_real_clock_is_named_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where stop times do pass, the end of the test does not wait for it either."""
    for name in ("STOP_MORE", "REAL_STOP_MORE"):
        monkeypatch.setattr(lifetime, name, 0.2)

    with pytest.raises(InvariantBroken, match="because of spinner"):
        async with open_tangram([make_spinner()], {"supervisor": {"shutdown_timeout": 0.5}}, fakes=True):
            await trio.sleep(0.1)


async def test_a_virtual_clock_waits_for_threads(autojump_clock: MockClock) -> None:
    """While a thread works for a plugin no timeout passes: a file is read, and a process is started."""
    plugin = tangram.Plugin()

    @asynccontextmanager
    async def lifespan(state: tangram.BackendState) -> AsyncIterator[None]:
        await trio.to_thread.run_sync(time.sleep, 0.05)
        yield

    plugin.lifespan = lifespan
    async with open_tangram([plugin], fakes=True) as running:
        began = trio.current_time()
        await trio.to_thread.run_sync(time.sleep, 0.05)
        assert trio.current_time() - began < 0.01
        await trio.sleep(5)
        assert trio.current_time() - began >= 5
        assert [event.kind for event in running.events if event.kind == "crashed"] == []


async def test_two_lives_at_once_are_seen_from_inside(autojump_clock: MockClock) -> None:
    """Whatever the supervisor tells: a child that runs twice is noted by the kit itself."""
    ports = FaultPorts()
    child = ports.wrap(Child("twin", trio.sleep_forever))

    async with trio.open_nursery() as nursery:
        await nursery.start(child.run)
        assert ports.overlaps == []
        await nursery.start(child.run)
        nursery.cancel_scope.cancel()

    assert ports.overlaps == ["twin"]
