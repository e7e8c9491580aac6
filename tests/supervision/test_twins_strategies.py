"""Twins of OTP's cases about strategies, restart types and intensity."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from tangram.errors import NoSuchChild, RestartsExhausted
from tangram.supervision import Backoff, Child, Window, run_supervisor
from tangram.supervision.decide import Decider
from tangram.supervision.table import Start
from tangram.testing import open_supervised
from tests.supervision.supervisor_harness import Running, World


async def test_multiple_restarts(autojump_clock: object, world: World) -> None:
    """Crashes within the intensity cause restarts; one more ends the supervisor."""
    await world.open(world.children("a"), restarts=3)
    for n in range(3):
        await world.crash("a")
        assert world.incarnation("a") == n + 2
    await world.crash("a")

    assert world.failure == "exhausted"


async def test_one_for_one(autojump_clock: object, world: World) -> None:
    """Only the crashed child is started again."""
    await world.open(world.children("a b c"), strategy="one_for_one")
    world.forget()
    await world.crash("b")

    assert world.log == ["-b", "+b"]
    assert world.running == ["a", "b", "c"]


async def test_one_for_one_escalation(autojump_clock: object, world: World) -> None:
    """A child whose restarts exceed the intensity ends its supervisor in reverse order."""
    world.starts["b"].extend(["ok", "fail", "fail"])
    await world.open(world.children("a b c"), strategy="one_for_one", restarts=2)
    world.forget()
    await world.crash("b")

    assert world.log == ["-b", "+b", "-b", "+b", "-b", "-c", "-a"]
    assert world.failure == "exhausted"


async def test_one_for_all(autojump_clock: object, world: World) -> None:
    """A crash stops all others in reverse order, then all are started in order."""
    await world.open(world.children("a b c d"), strategy="one_for_all")
    world.forget()
    await world.crash("b")

    assert world.log == ["-b", "-d", "-c", "-a", "+a", "+b", "+c", "+d"]
    assert world.decider.restarts == 1


async def test_one_for_all_escalation(autojump_clock: object, world: World) -> None:
    """A group whose restarts exceed the intensity ends the supervisor."""
    world.starts["b"].extend(["ok", "fail", "fail"])
    await world.open(world.children("a b"), strategy="one_for_all", restarts=2)
    world.forget()
    await world.crash("a")

    assert world.log == ["-a", "-b", "+a", "+b", "-b", "-a", "+a", "+b", "-b", "-a"]
    assert world.failure == "exhausted"


async def test_one_for_all_other_child_fails_restart(autojump_clock: object, world: World) -> None:
    """A failed start of another child counts, and the whole group restarts once more."""
    world.starts["b"].extend(["ok", "fail"])
    await world.open(world.children("a b c"), strategy="one_for_all")
    world.forget()
    await world.crash("a")

    assert world.log == ["-a", "-c", "-b", "+a", "+b", "-b", "-a", "+a", "+b", "+c"]
    assert world.decider.restarts == 2
    assert world.running == ["a", "b", "c"]


async def test_rest_for_one(autojump_clock: object, world: World) -> None:
    """A crash restarts the children after it, and none before it."""
    await world.open(world.children("a b c d"), strategy="rest_for_one")
    world.forget()
    await world.crash("b")

    assert world.log == ["-b", "-d", "-c", "+b", "+c", "+d"]
    assert world.incarnation("a") == 1


async def test_rest_for_one_escalation(autojump_clock: object, world: World) -> None:
    """A restart that fails beyond the intensity ends the supervisor."""
    world.starts["b"].extend(["ok", "fail", "fail"])
    await world.open(world.children("a b c"), strategy="rest_for_one", restarts=2)
    await world.crash("b")

    assert world.failure == "exhausted"
    assert world.log[-1] == "-a"


async def test_rest_for_one_other_child_fails_restart(autojump_clock: object, world: World) -> None:
    """If a later child fails to start, the next restart begins with that child."""
    world.starts["c"].extend(["ok", "fail"])
    await world.open(world.children("a b c d"), strategy="rest_for_one")
    world.forget()
    await world.crash("b")

    assert world.log == ["-b", "-d", "-c", "+b", "+c", "-c", "+c", "+d"]
    assert world.decider.restarts == 2


async def test_simple_one_for_one(autojump_clock: object, world: World) -> None:
    """A pool begins empty; a crashed worker is started again alone."""
    await world.open([], strategy="one_for_one")
    for name in ("w1", "w2"):
        await world.start_child(world.child(name))
    world.forget()
    await world.crash("w1")

    assert world.log == ["-w1", "+w1"]
    assert world.running == ["w1", "w2"]


async def test_simple_one_for_one_shutdown(autojump_clock: object, world: World) -> None:
    """A pool is stopped with its supervisor, the worker added last first."""
    await world.open([], strategy="one_for_one")
    for name in ("w1", "w2", "w3"):
        await world.start_child(world.child(name))
    await world.close()

    assert world.log[3:] == ["-w3", "-w2", "-w1"]


async def test_simple_one_for_one_escalation(autojump_clock: object, world: World) -> None:
    """The workers of a pool share its intensity."""
    await world.open([], strategy="one_for_one", restarts=1)
    for name in ("w1", "w2"):
        await world.start_child(world.child(name))
    await world.crash("w1")
    await world.crash("w2")

    assert world.failure == "exhausted"


async def test_simple_one_for_one_corruption(autojump_clock: object, world: World) -> None:
    """A request for an unknown child is refused with the known names, and changes nothing."""
    await world.open([], strategy="one_for_one")
    await world.start_child(world.child("w1"))
    with pytest.raises(NoSuchChild, match="has no child 'w9'; it has: w1"):
        await world.stop_child("w9")

    await world.crash("w1")
    assert world.running == ["w1"]


async def test_permanent_normal(autojump_clock: object, world: World) -> None:
    """A permanent child that returns is started again, and that is charged."""
    await world.open(world.children("a"))
    await world.finish("a")

    assert world.incarnation("a") == 2
    assert world.decider.restarts == 1


async def test_transient_normal(autojump_clock: object, world: World) -> None:
    """A transient child that returns is not started again, and is kept."""
    await world.open(world.children("a b", "transient"))
    await world.finish("a")

    assert world.states == {"a": "finished", "b": "running"}
    assert world.decider.restarts == 0


async def test_temporary_normal(autojump_clock: object, world: World) -> None:
    """A temporary child that returns is forgotten."""
    await world.open(world.children("a b", "temporary"))
    await world.finish("a")

    assert world.states == {"b": "running"}


@pytest.mark.parametrize(
    ("restart", "state", "restarts"),
    [("permanent", "running", 1), ("transient", "finished", 0), ("temporary", None, 0)],
    ids=["permanent_shutdown", "transient_shutdown", "temporary_shutdown"],
)
async def test_shutdown_of_own_will(
    restart: str, state: str | None, restarts: int, autojump_clock: trio.testing.MockClock
) -> None:
    """A child that cancels a scope of its own has returned; its restart type decides."""
    runs = 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        with trio.CancelScope() as scope:
            if runs == 1:
                scope.cancel()
            await trio.sleep_forever()

    child = Child("a", run, restart=restart)  # type: ignore[arg-type]
    async with open_supervised([child], backoff=Backoff(initial=0)) as supervised:
        supervisor = supervised.supervisor
        await trio.testing.wait_all_tasks_blocked()
        statistics = supervisor.statistics()

    assert [c.state for c in statistics.children] == ([] if state is None else [state])
    assert statistics.restarts == restarts


async def test_permanent_abnormal(autojump_clock: object, world: World) -> None:
    """A permanent child that crashes is started again."""
    await world.open(world.children("a"))
    await world.crash("a")

    assert world.incarnation("a") == 2


async def test_transient_abnormal(autojump_clock: object, world: World) -> None:
    """A transient child that crashes is started again."""
    await world.open(world.children("a", "transient"))
    await world.crash("a")

    assert world.incarnation("a") == 2


async def test_temporary_abnormal(autojump_clock: object, world: World) -> None:
    """A temporary child that crashes is forgotten, without a charge or an effect on siblings."""
    await world.open([world.child("a", "temporary"), world.child("b")], restarts=0)
    await world.crash("a")

    assert world.states == {"b": "running"}
    assert world.incarnation("b") == 1
    assert world.reported("crashed") == [("crashed", "a")]


async def test_temporary_bystander(autojump_clock: object, world: World) -> None:
    """A temporary child that a sibling's restart stops does not come back."""
    for strategy in ("one_for_all", "rest_for_one"):
        world = type(world)(world._nursery) if isinstance(world, Running) else type(world)()
        await world.open(
            [world.child("a"), world.child("t", "temporary"), world.child("c")], strategy=strategy
        )
        await world.crash("a")

        assert world.states == {"a": "running", "c": "running"}
        await world.end()


async def test_tree(autojump_clock: trio.testing.MockClock) -> None:
    """Inner crashes restart inner children; past the inner intensity the outer restarts all."""
    log: list[str] = []
    bombs: dict[str, trio.Event] = {}

    async def run(name: str) -> None:
        log.append(f"+{name}")
        bombs[name] = trio.Event()
        try:
            await bombs[name].wait()
            raise ValueError(name)
        finally:
            log.append(f"-{name}")

    def inner() -> list[Child]:
        return [Child(name, partial(run, name)) for name in ("x", "y")]

    child = Child("inner", partial(run_supervisor, inner, name="inner", restarts=1, strategy="one_for_all"))
    async with open_supervised([Child("a", partial(run, "a")), child], strategy="one_for_one") as supervised:
        supervisor = supervised.supervisor
        log.clear()
        bombs["x"].set()
        await trio.testing.wait_all_tasks_blocked()
        assert log == ["-x", "-y", "+x", "+y"]
        assert supervisor.statistics().restarts == 0

        bombs["y"].set()
        await trio.sleep(1)
        statistics = supervisor.statistics()

    assert log[4:8] == ["-y", "-x", "+x", "+y"]
    assert statistics.restarts == 1
    assert statistics.children[1].nested[0].children[0].state == "running"
    crash = statistics.children[1].last_crash
    assert crash is not None
    assert crash.path == ("inner", "y")
    assert crash.cause == "ValueError: y"


async def test_tree_of_decisions() -> None:
    """The failure of an inner decider is the crash that the outer one charges."""
    inner = Decider([], window=Window(0, 1), backoff=Backoff(), draw=lambda: 0.5, name="inner")
    outer = Decider(
        [Child("inner", run_supervisor)], window=Window(1, 9), backoff=Backoff(), draw=lambda: 0.5
    )
    outer.open(0)
    outer.started("inner", 0)
    inner.open(0)
    inner.add(Child("x", run_supervisor), 0)
    inner.started("x", 0)
    inner.restart_all(0)
    inner.ended("x", 0)
    inner.started("x", 0)
    inner.ended("x", 0)
    assert inner.failure is not None
    assert inner.closed

    effects = outer.ended("inner", 0, inner.failure.crash)

    assert effects[-1] == Start("inner", 2)


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one", "one_for_one"])
async def test_hanging_restart_loop(autojump_clock: object, world: World, strategy: str) -> None:
    """During failing restarts the state is readable and a stop is obeyed at once (OTP-9549)."""
    world.starts["b"].extend(["ok"] + ["fail"] * 10_000)
    await world.open(
        world.children("a b"), strategy=strategy, restarts=10**6, backoff=Backoff(initial=1.0, jitter=0.0)
    )
    await world.crash("b")
    await world.advance(30)
    assert world.states["b"] == "waiting"
    assert world.incarnation("b") > 5

    await world.close()
    assert world.closed
    assert world.failure is None


async def test_hanging_restart_loop_simple(autojump_clock: object, world: World) -> None:
    """A worker can be stopped while its restarts fail, and other workers are not affected."""
    await world.open([], strategy="one_for_one", restarts=10**6, backoff=Backoff(initial=1.0))
    for name in ("w1", "w2"):
        await world.start_child(world.child(name))
    world.starts["w1"].extend(["fail"] * 10_000)
    await world.crash("w1")
    await world.advance(30)
    await world.stop_child("w1")
    await world.advance(30)

    assert world.states == {"w1": "stopped", "w2": "running"}
    assert world.incarnation("w2") == 1


async def test_hanging_restart_loop_rest_for_one(autojump_clock: object, world: World) -> None:
    """Earlier children run on during failing restarts; later ones start once it is stopped."""
    await world.open(
        world.children("a b c"), strategy="rest_for_one", restarts=10**6, backoff=Backoff(initial=1.0)
    )
    world.starts["b"].extend(["fail"] * 10_000)
    await world.crash("b")
    await world.advance(30)
    assert world.states == {"a": "running", "b": "waiting", "c": "waiting"}

    await world.stop_child("b")
    await world.advance(30)

    assert world.states == {"a": "running", "b": "stopped", "c": "running"}


async def test_exhausted_names_the_last_crashes(autojump_clock: trio.testing.MockClock) -> None:
    """`RestartsExhausted` names the last crashes, oldest first, and is caused by the last one."""
    n = 0

    async def run() -> None:
        nonlocal n
        n += 1
        raise ValueError(f"number {n}")

    with pytest.raises(RestartsExhausted) as caught:
        async with open_supervised([Child("a", run)], restarts=2):
            await trio.sleep_forever()

    assert caught.value.crashes == tuple(f"a: ValueError: number {k}" for k in (1, 2, 3))
    assert str(caught.value.__cause__) == "number 3"
