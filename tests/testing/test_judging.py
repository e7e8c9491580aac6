"""Planted faults of supervision and plugins, each found by its invariant."""

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
    """Stop children from the first to the last, where ``when(decisions)`` holds."""
    settle = Decider._settle_stops

    def planted(self: Decider, now: float) -> None:
        greatest: Any = builtins.max
        least: Any = lambda *these: min(*these) if len(these) == 1 else greatest(*these)  # noqa: E731 - a function is too long for the example
        monkeypatch.setattr(decide, "max", least if when(self) else greatest, raising=False)
        settle(self, now)

    monkeypatch.setattr(Decider, "_settle_stops", planted)


async def test_the_order_of_stops_is_judged_in_a_restart(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planned restart that stops children from the first to the last is found."""
    plant_order(monkeypatch, lambda decisions: not decisions.closing)

    with pytest.raises(InvariantBroken, match="stops_in_reverse_order: children of incarnation"):
        async with open_tangram([make_plugin(Journal())], fakes=True) as running:
            await Chaos(running).strike("crash_web")


async def test_order_and_bound_are_judged_where_a_server_gives_up(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop of an escalation has an order and a bound."""
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
    """A requested stop that ends with another status than 0 is found."""
    run = Server.run

    async def planted(self: Server, **more: Any) -> int:
        await run(self, **more)
        return 70

    monkeypatch.setattr(Server, "run", planted)

    with pytest.raises(InvariantBroken, match="ends_with_its_status: it ended with status 70"):
        async with open_tangram(fakes=True):
            pass


@pytest.mark.slow
async def test_invariants_are_judged_after_an_unfinished_first_start() -> None:
    """A plugin that leaks when its first start is stopped is found."""
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
    """Make a plugin that shields itself from its end for some seconds."""
    plugin = tangram.Plugin()

    @plugin.register_service(stop_timeout=0.5)
    async def deaf(state: tangram.BackendState) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(seconds)

    return plugin


async def test_a_late_service_breaks_an_invariant(autojump_clock: MockClock) -> None:
    """A service past its stop time is found, although the stop keeps its bound."""
    with pytest.raises(InvariantBroken, match=r"nobody_is_stubborn: .*deaf went on although"):
        async with open_tangram([make_deaf(1.0)], fakes=True):
            await trio.sleep(0.1)


async def test_a_shielded_service_does_not_hang_the_test(autojump_clock: MockClock) -> None:
    """It is named with its line and cancelled, and nothing is left."""
    settings = {"supervisor": {"shutdown_timeout": 1.0}}

    with pytest.raises(InvariantBroken, match=r"not end by itself, because of deaf, at .*in deaf") as caught:
        async with open_tangram([make_deaf(float("inf"))], settings, fakes=True):
            await trio.sleep(0.1)

    assert "nothing_left_alive" not in str(caught.value)


async def test_repeated_shields_are_removed_each_time(autojump_clock: MockClock) -> None:
    """Three shields, one after another, take three cancellations."""
    plugin = tangram.Plugin()

    @plugin.register_service()
    async def onion(state: tangram.BackendState) -> None:
        for _ in range(3):
            with trio.CancelScope(shield=True):
                try:
                    await trio.sleep_forever()
                except trio.Cancelled:
                    continue  # a mistake that the kit must survive

    with pytest.raises(InvariantBroken, match="nobody_is_stubborn"):
        async with open_tangram([plugin], {"supervisor": {"shutdown_timeout": 1.0}}, fakes=True):
            await trio.sleep(0.1)


def make_spinner() -> tangram.Plugin:
    """Make a plugin that swallows its cancellation and never lets a virtual clock pass."""
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
async def test_a_service_that_spins_at_the_stop_is_named_and_ended(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real time ends it, because its virtual clock cannot pass."""
    monkeypatch.setattr(virtual_clock, "SPIN_SECONDS", 0.5)

    with pytest.raises(InvariantBroken, match=r"because of spinner, at .*spinner, which swallows its cancel"):
        async with open_tangram([make_spinner()], fakes=True):
            await trio.sleep(0.1)


@pytest.mark.slow
async def test_a_service_that_spins_in_a_restart_is_named_and_ended(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test goes on, and an invariant is broken."""
    monkeypatch.setattr(virtual_clock, "SPIN_SECONDS", 0.5)

    async def restart() -> None:
        async with open_tangram([make_spinner()], fakes=True) as running:
            await running.server.restart()
            await running.wait_steady()

    with pytest.raises(InvariantBroken, match="because of spinner"):
        await restart()


@pytest.mark.slow
async def test_a_service_that_spins_on_a_real_clock_is_named_and_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The end of the test does not wait for it."""
    for name in ("STOP_MORE", "REAL_STOP_MORE"):
        monkeypatch.setattr(lifetime, name, 0.2)

    with pytest.raises(InvariantBroken, match="because of spinner"):
        async with open_tangram([make_spinner()], {"supervisor": {"shutdown_timeout": 0.5}}, fakes=True):
            await trio.sleep(0.1)


async def test_a_virtual_clock_waits_for_threads(autojump_clock: MockClock) -> None:
    """While a thread works for a plugin no timeout passes: a file is read, a process started."""
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


async def test_two_simultaneous_incarnations_are_seen_from_inside(autojump_clock: MockClock) -> None:
    """The kit itself notes a child that runs twice, under any supervisor events."""
    ports = FaultPorts()
    child = ports.wrap(Child("twin", trio.sleep_forever))

    async with trio.open_nursery() as nursery:
        await nursery.start(child.run)
        assert ports.overlaps == []
        await nursery.start(child.run)
        nursery.cancel_scope.cancel()

    assert ports.overlaps == ["twin"]
