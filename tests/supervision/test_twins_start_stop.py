"""Twins of OTP's cases about start and stop; see ``docs/supervision-cases.md``."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
import trio

from tangram.errors import ChildStubborn, SpecError, StartFailed
from tangram.supervision import Child, Supervisor
from tangram.supervision.spec import check_supervisor
from tangram.testing import open_supervised
from tests.supervision.supervisor_harness import STUBBORN, Running, World


async def test_sup_start_normal(autojump_clock: object, world: World) -> None:
    """Children are started in order, one after another, and stopped in reverse order."""
    await world.open(world.children("a b c"))
    assert world.states == {"a": "running", "b": "running", "c": "running"}

    await world.close()

    assert world.log == ["+a", "+b", "+c", "-c", "-b", "-a"]
    assert world.closed
    assert world.failure is None


async def test_sup_start_ignore_child(autojump_clock: object, world: World) -> None:
    """A child that returns before its start is finished without a fault, and is kept."""
    world.starts["a"].append("ignore")
    await world.open(world.children("a b", "transient"))

    assert world.states == {"a": "finished", "b": "running"}
    assert not world.reported("crashed")


async def test_sup_start_ignore_temporary_child(autojump_clock: object, world: World) -> None:
    """A temporary child that returns before its start is forgotten at once."""
    world.starts["a"].append("ignore")
    await world.open(world.children("a b", "temporary"))

    assert world.states == {"b": "running"}


async def test_sup_start_ignore_temporary_child_start_child(autojump_clock: object, world: World) -> None:
    """A temporary child that is added later and returns early causes no error for its caller."""
    await world.open(world.children("a"))
    world.starts["b"].append("ignore")
    await world.start_child(world.child("b", "temporary"))

    assert world.states == {"a": "running"}


async def test_sup_start_ignore_temporary_child_start_child_simple(
    autojump_clock: object, world: World
) -> None:
    """In a pool a worker that returns early touches no other, and its name is free again."""
    await world.open([], strategy="one_for_one")
    world.starts["w2"].append("ignore")
    for name in ("w1", "w2", "w3", "w2"):
        await world.start_child(world.child(name, "temporary"))

    assert world.states == {"w1": "running", "w3": "running", "w2": "running"}


async def test_sup_start_ignore_permanent_child_start_child_simple(
    autojump_clock: object, world: World
) -> None:
    """A permanent child that returns before its start has failed; its caller gets the error."""
    await world.open([], strategy="one_for_one")
    world.starts["w1"].append("ignore")
    with pytest.raises(StartFailed):
        await world.start_child(world.child("w1"))

    assert world.states == {}


async def test_sup_start_fail(autojump_clock: object, world: World) -> None:
    """At first boot a failed start stops the children before it in reverse, without a retry."""
    world.starts["c"].append("fail")
    await world.open(world.children("a b c d"))

    assert world.log == ["+a", "+b", "+c", "-c", "-b", "-a"]
    assert world.failure == "boot"
    assert world.closed


async def test_sup_start_child_returns_error(autojump_clock: object, world: World) -> None:
    """A child that is added later and cannot start is forgotten; its caller gets the error."""
    await world.open(world.children("a"))
    world.starts["b"].append("fail")
    with pytest.raises(StartFailed, match="no start"):
        await world.start_child(world.child("b"))

    assert world.states == {"a": "running"}
    assert world.incarnation("a") == 1
    assert world.decider.restarts == 0


async def test_sup_start_restart_child_returns_error(autojump_clock: object, world: World) -> None:
    """A stopped child whose requested start fails stays stopped, and can be started again."""
    await world.open(world.children("a b"))
    await world.stop_child("a")
    world.starts["a"].append("fail")
    with pytest.raises(StartFailed):
        await world.restart_child("a")
    assert world.states == {"a": "stopped", "b": "running"}

    await world.restart_child("a")

    assert world.states == {"a": "running", "b": "running"}
    assert world.decider.restarts == 0


async def test_a_temporary_child_whose_requested_restart_fails_is_not_retried(
    autojump_clock: object, world: World
) -> None:
    """A running temporary child may be restarted by request; if that fails it is forgotten."""
    await world.open([world.child("t", "temporary"), world.child("b")])
    world.starts["t"].append("fail")
    with pytest.raises(StartFailed):
        await world.restart_child("t")

    assert world.states == {"b": "running"}
    assert world.decider.restarts == 0


@pytest.mark.parametrize("strategy", ["one_for_all", "one_for_one"])
@pytest.mark.parametrize("how", ["fail", "hang"])
async def test_a_running_child_whose_requested_restart_fails_is_retried(
    autojump_clock: object, world: World, strategy: str, how: str
) -> None:
    """The caller gets the failed start, although the retry brings the child back."""
    await world.open([world.child("a", start_timeout=3.0), world.child("b")], strategy=strategy)
    world.starts["a"].append(how)
    with trio.fail_after(60), pytest.raises(StartFailed, match=r"no start|did not report its start"):
        await world.restart_child("a")
    await world.advance(1.0)

    assert world.running == ["a", "b"]
    assert world.incarnation("a") == 3
    assert world.decider.restarts == 1

    await world.restart_child("a")
    assert world.incarnation("a") == 4


async def test_a_start_that_does_not_end_fails_when_the_supervisor_gives_up(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """The caller of a start that ignores its cancellation waits no longer than the supervisor."""
    free = trio.Event()
    runs = 0

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            task_status.started()
            await trio.sleep_forever()
        with trio.CancelScope(shield=True):
            await free.wait()

    async def hold(*, task_status: trio.TaskStatus[Supervisor]) -> None:
        child = Child("a", run, start_timeout=2.0, stop_timeout=1.0)
        with suppress(ChildStubborn):
            async with open_supervised([child], but=STUBBORN) as supervised:
                task_status.started(supervised.supervisor)
                await trio.sleep_forever()

    supervisor = await nursery.start(hold)
    with trio.move_on_after(60), pytest.raises(StartFailed, match="did not report its start"):
        await supervisor.restart_child("a")
    assert trio.current_time() == pytest.approx(5.0)
    free.set()


async def test_sup_start_child_returns_error_simple(autojump_clock: object, world: World) -> None:
    """In a pool a worker that cannot start is forgotten; the pool goes on."""
    await world.open([], strategy="one_for_one")
    await world.start_child(world.child("w1"))
    world.starts["w2"].append("fail")
    with pytest.raises(StartFailed):
        await world.start_child(world.child("w2"))

    assert world.states == {"w1": "running"}


async def test_sup_start_map(autojump_clock: object, world: World) -> None:
    """A child of only a name and a function is permanent, with 30 s to start and 5 s to stop."""
    child = world.child("a")
    await world.open([child])

    assert (child.restart, child.start_timeout, child.stop_timeout) == ("permanent", 30.0, 5.0)
    assert world.running == ["a"]


def test_sup_start_map_faulty_specs() -> None:
    """A faulty declaration is refused before any start, with all of its faults."""

    async def run() -> None: ...

    with pytest.raises(SpecError, match=r"restart must be one of.*stop_timeout must be more than 0"):
        Child("a", run, restart="always", stop_timeout=-1)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="cannot be significant"):
        Child("a", run, significant=True)
    with pytest.raises(SpecError, match=r"strategy must be .*given to two children"):
        check_supervisor(
            [Child("a", run), Child("a", run)], strategy="all", auto_shutdown="never", shutdown_timeout=1
        )


async def test_sup_stop_infinity(autojump_clock: object, world: World) -> None:
    """A child without a stop time may take the whole stop, and is never called stubborn."""
    world.stubborn.add("a")
    await world.open([world.child("a", stop_timeout=math.inf), world.child("b")])
    await world.restart_child("b")
    world.forget()
    await world.stop_child("b")
    if isinstance(world, Running):
        world._nursery.start_soon(world.stop_child, "a")
    else:
        await world.stop_child("a")
    await world.advance(10_000)
    assert world.states["a"] == "stopping"
    assert not world.reported("stubborn")

    await world.release("a")

    assert world.states["a"] == "stopped"


async def test_sup_stop_timeout(autojump_clock: object, world: World) -> None:
    """A child past its stop time is named and delays no other; the stop ends when it does."""
    world.stubborn.add("b")
    await world.open(world.children("a b c", stop_timeout=2.0))
    await world.close()
    assert world.log[3:] == ["-c"]

    await world.advance(2.0)
    assert world.log[3:] == ["-c", "-a"]
    assert world.reported("stubborn") == [("stubborn", "b")]
    assert not world.closed
    await world.release("b")

    assert world.closed
    assert world.failure is None


async def test_sup_stop_timeout_dynamic(autojump_clock: object, world: World) -> None:
    """Workers of a pool share the total of the stop: past it all are cancelled at once."""
    world.stubborn.update({"w1", "w2", "w3"})
    await world.open(
        world.children("w1 w2 w3 w4", stop_timeout=4.0), shutdown_timeout=6.0, strategy="one_for_one"
    )
    await world.close()
    await world.advance(5.9)
    assert world.states["w1"] == "leaving"

    await world.advance(0.2)
    assert [world.states[name] for name in ("w1", "w2", "w3", "w4")] == ["stopping"] * 3 + ["stopped"]
    for name in ("w1", "w2", "w3"):
        await world.release(name)

    assert world.closed


async def test_sup_stop_race(autojump_clock: object, world: World) -> None:
    """A child that ends by itself at the moment of the stop is not restarted."""
    await world.open(world.children("a b"))
    if isinstance(world, Running):
        event, errors = world._orders["b"]
        errors.append(ValueError("boom"))
        event.set()
    else:
        await world.crash("b")
    await world.close()

    assert world.closed
    assert world.failure is None
    assert world.running == []


async def test_sup_stop_non_shutdown_exit_dynamic(autojump_clock: object, world: World) -> None:
    """An exception from a clean-up after a requested stop is logged, and is no crash."""
    world.dirty.update({"w1", "w2"})
    await world.open(world.children("w1 w2 w3"), strategy="one_for_one")
    await world.stop_child("w1")
    await world.close()

    assert world.closed
    assert world.failure is None
    assert not world.reported("crashed")
    assert [e.cause for e in world.events if e.kind == "stopped" and e.cause] == [
        "ValueError: in clean-up"
    ] * 2


async def test_extra_return(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    """The value that a child reports with its start is kept, anew for each incarnation."""
    runs = 0

    async def run(*, task_status: trio.TaskStatus[int]) -> None:
        nonlocal runs
        runs += 1
        task_status.started(runs)
        await trio.sleep_forever()

    async with open_supervised([Child("a", run)]) as supervised:
        supervisor = supervised.supervisor
        assert supervisor.value("a") == 1
        assert await supervisor.restart_child("a") == 2
        assert supervisor.value("a") == 2
        assert await supervisor.start_child(Child("b", run)) == 3
