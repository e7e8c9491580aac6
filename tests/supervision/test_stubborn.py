"""Children that go on although they were cancelled."""

from __future__ import annotations

from functools import partial

import pytest
import structlog.testing
import trio

from tangram.errors import ChildStubborn, RestartsExhausted
from tangram.supervision import Child, SupervisionEvent, Supervisor, run_supervisor
from tangram.testing import open_supervised
from tests.supervision.supervisor_harness import World

ON_PURPOSE = {"nobody_is_stubborn": "this is what the case is about"}


async def test_stubborn_restart_has_no_second_incarnation(autojump_clock: object, world: World) -> None:
    """A stubborn child is reported each stop time; after three the supervisor fails.

    No second incarnation is started beside the first.
    """
    world.stubborn.add("b")
    await world.open(world.children("a b", stop_timeout=2.0))
    world.forget()
    await world.crash("a")
    await world.advance(4.1)
    assert world.reported("stubborn") == [("stubborn", "b")] * 2
    assert not world.decider.closing
    await world.advance(2.0)
    assert world.reported("gave_up") == [("gave_up", None), ("gave_up", "b")]
    assert "+b" not in world.log
    await world.advance(2.0)
    assert len(world.reported("stubborn")) == 4
    await world.release("b")

    assert world.failure == "stubborn"
    assert world.log == ["-a", "-b"]


async def test_stubborn_in_time_is_restarted(autojump_clock: object, world: World) -> None:
    """A child that ends between its first and third stop time is restarted."""
    world.stubborn.add("b")
    await world.open(world.children("a b", stop_timeout=2.0))
    await world.crash("a")
    await world.advance(5)
    await world.release("b")

    assert world.running == ["a", "b"]
    assert world.incarnation("b") == 2


async def test_stubborn_is_named_with_its_line(autojump_clock: object) -> None:
    """Log, event and statistics name the line on which a stubborn child or its task waits."""
    free = trio.Event()
    where: list[str | None] = []

    async def inner() -> None:
        with trio.CancelScope(shield=True):
            await free.wait()

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(inner)

    async def look(supervisor: Supervisor) -> None:
        await trio.sleep(1.5)
        where.append(supervisor.statistics().children[0].stubborn)
        free.set()

    with structlog.testing.capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            async with open_supervised(
                [Child("a", run, stop_timeout=1.0)],
                but=ON_PURPOSE,
                on_event=lambda event: where.append(event.where) if event.kind == "stubborn" else None,
            ) as supervised:
                nursery.start_soon(look, supervised.supervisor)

    line = inner.__code__.co_firstlineno + 2
    assert where == [f"{__file__}:{line} in {inner.__qualname__}"] * 2
    assert any(entry.get("where") == where[0] for entry in lines)


async def test_stubborn_failure_is_reported_before_it_can_be_raised(autojump_clock: object) -> None:
    """The block is cancelled and listeners get ``gave_up`` while the child still runs."""
    free = trio.Event()

    async def stubborn() -> None:
        with trio.CancelScope(shield=True):
            await free.wait()

    with pytest.raises(ChildStubborn, match="cannot be started a second time beside itself"):
        async with open_supervised(
            [Child("a", stubborn, stop_timeout=1)],
            but=ON_PURPOSE,
            on_event=lambda event: free.set() if event.kind == "gave_up" else None,
        ) as supervised:
            await supervised.supervisor.restart_child("a")


async def test_a_child_that_delays_a_supervisor_that_gave_up_is_named(
    autojump_clock: object, world: World
) -> None:
    """A supervisor that gave up reports, after three stop times, which child delays its end."""
    world.stubborn.add("a")
    await world.open(world.children("a b", stop_timeout=2.0), restarts=0)
    world.forget()
    await world.crash("b")
    await world.advance(4.1)
    assert world.reported("gave_up") == [("gave_up", None)]
    await world.advance(2.0)
    assert world.reported("gave_up") == [("gave_up", None), ("gave_up", "a")]
    await world.advance(6.0)
    assert len(world.reported("stubborn")) == 6
    assert len(world.reported("gave_up")) == 2
    await world.release("a")

    assert world.failure == "exhausted"
    assert world.closed


async def test_a_child_that_delays_a_requested_stop_is_only_stubborn(
    autojump_clock: object, world: World
) -> None:
    """Without a failure there is no ``gave_up``: the caller of the stop knows its limit."""
    world.stubborn.add("a")
    await world.open(world.children("a b", stop_timeout=2.0))
    await world.close()
    await world.advance(20.0)
    assert len(world.reported("stubborn")) == 10
    await world.release("a")

    assert world.reported("gave_up") == []


async def test_a_child_that_delays_a_nested_supervisor_is_named_above(autojump_clock: object) -> None:
    """The outer listener gets its path and line; the outer supervisor is still up."""
    free = trio.Event()
    states: list[str] = []

    async def deaf() -> None:
        with trio.CancelScope(shield=True):
            await free.wait()

    async def crashing() -> None:
        await trio.sleep(1)
        raise ValueError("boom")

    def hear(event: SupervisionEvent) -> None:
        if event.kind == "gave_up" and event.child is not None:
            states.append(supervised.supervisor.statistics().children[0].state)
            free.set()

    inner = partial(
        run_supervisor,
        [Child("deaf", deaf, stop_timeout=1.0), Child("odd", crashing)],
        name="inner",
        restarts=0,
    )
    with pytest.raises(RestartsExhausted, match="boom"):
        async with open_supervised(
            [Child("inner", inner)], restarts=0, but=ON_PURPOSE, on_event=hear
        ) as supervised:
            await trio.sleep(60)

    (reported,) = [
        event for event in supervised.events if event.kind == "gave_up" and event.child is not None
    ]
    assert reported.path == ("inner", "deaf")
    assert reported.at == pytest.approx(4.0)
    assert reported.where == f"{__file__}:{deaf.__code__.co_firstlineno + 2} in {deaf.__qualname__}"
    assert states == ["running"]
