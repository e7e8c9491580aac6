"""Twins of OTP's cases about administration, significance, counting, order and scale."""

from __future__ import annotations

import gc
import weakref
from functools import partial

import pytest
import structlog.testing
import trio

from tangram.errors import NoSuchChild, SpecError
from tangram.supervision import Backoff, Child, run_supervisor
from tangram.testing import open_supervised
from tests.supervision.supervisor_harness import Running, World


async def test_child_adm(autojump_clock: object, world: World) -> None:
    """Stop, restart, delete and add work where they fit, and are never charged."""
    moves = {"stops_in_reverse_order": "a is deleted, and stands behind b when it is added again"}
    await world.open(world.children("a b"), strategy="one_for_one", but=moves)
    with pytest.raises(SpecError, match="there is a child 'a' already"):
        await world.start_child(world.child("a"))
    with pytest.raises(SpecError, match="child 'a' is running"):
        await world.delete_child("a")
    await world.stop_child("a")
    assert world.states == {"a": "stopped", "b": "running"}
    await world.stop_child("a")
    await world.restart_child("a")
    assert world.running == ["a", "b"]
    await world.stop_child("a")
    await world.delete_child("a")
    with pytest.raises(NoSuchChild):
        await world.restart_child("a")

    await world.start_child(world.child("a"))

    assert world.running == ["b", "a"]
    assert world.decider.restarts == 0


async def test_child_adm_simple(autojump_clock: object, world: World) -> None:
    """A temporary worker that is stopped is forgotten, and its name is free."""
    await world.open([], strategy="one_for_one")
    await world.start_child(world.child("w1", "temporary"))
    await world.stop_child("w1")
    assert world.states == {}

    await world.start_child(world.child("w1", "temporary"))
    assert world.running == ["w1"]


async def test_child_specs(autojump_clock: object, world: World) -> None:
    """A second child of a name, or a significant one without automatic shutdown, is refused."""
    await world.open(world.children("a"))
    for child in (world.child("a"), world.child("s", "transient", significant=True)):
        with pytest.raises(SpecError):
            await world.start_child(child)

    assert world.states == {"a": "running"}
    assert world.log == ["+a"]


def test_child_specs_map() -> None:
    """Every fault of a child is reported at once, with the expected values."""
    with pytest.raises(SpecError) as caught:
        Child("", None, restart="ever", start_timeout=0, exhausted="x", start_failure="y")  # type: ignore[arg-type]

    message = str(caught.value)
    expected = (
        "name must not be empty",
        "async function",
        "permanent",
        "start_timeout",
        "escalate",
        "quarantine",
    )
    assert all(word in message for word in expected)


async def test_sup_flags() -> None:
    """Faulty flags of a supervisor are refused together, before a child is started."""
    with pytest.raises(
        SpecError, match=r"strategy must be .*; auto_shutdown must be .*; shutdown_timeout must be"
    ):
        async with open_supervised([], strategy="x", auto_shutdown="y", shutdown_timeout=0):  # type: ignore[arg-type]
            pass
    with pytest.raises(SpecError, match="expected a window"):
        async with open_supervised([], restarts=-1):
            pass


@pytest.mark.parametrize("auto_shutdown", ["any_significant", "all_significant"])
async def test_nonsignificant_temporary(autojump_clock: object, world: World, auto_shutdown: str) -> None:
    """The end of a temporary child that is not significant ends no other child."""
    await world.open(world.children("a b", "temporary"), auto_shutdown=auto_shutdown)
    await world.finish("a")
    await world.crash("b")

    assert not world.closed


@pytest.mark.parametrize("auto_shutdown", ["any_significant", "all_significant"])
async def test_nonsignificant_transient(autojump_clock: object, world: World, auto_shutdown: str) -> None:
    """The end of a transient child that is not significant ends no other child."""
    await world.open(world.children("a b", "transient"), auto_shutdown=auto_shutdown)
    await world.finish("a")
    await world.finish("b")

    assert not world.closed


async def test_significant_temporary(autojump_clock: object, world: World) -> None:
    """With all_significant the last significant child to end, also by a crash, ends all."""
    children = [*world.children("a b", "temporary", significant=True), world.child("c")]
    await world.open(children, auto_shutdown="all_significant")
    await world.finish("a")
    assert not world.closed

    await world.crash("b")

    assert world.closed
    assert world.failure is None


async def test_significant_transient(autojump_clock: object, world: World) -> None:
    """With any_significant a significant child that returns ends all; a crash restarts it."""
    children = [*world.children("a b", "transient", significant=True), world.child("c")]
    await world.open(children, auto_shutdown="any_significant")
    await world.crash("a")
    assert world.running == ["a", "b", "c"]
    world.forget()

    await world.finish("a")

    assert world.log == ["-a", "-c", "-b"]
    assert world.closed
    assert world.failure is None


async def test_significant_simple(autojump_clock: object, world: World) -> None:
    """A pool ends with the last of its significant workers."""
    await world.open([], strategy="one_for_one", auto_shutdown="all_significant")
    for name in ("w1", "w2"):
        await world.start_child(world.child(name, "transient", significant=True))
    await world.finish("w1")
    assert not world.closed
    await world.finish("w2")

    assert world.closed


async def test_significant_bystander(autojump_clock: object, world: World) -> None:
    """A significant child that was stopped by request or by a sibling's crash ends no other."""
    children = [
        world.child("a"),
        world.child("s", "transient", significant=True),
        world.child("t", "temporary", significant=True),
    ]
    await world.open(children, auto_shutdown="any_significant")
    await world.crash("a")
    assert world.states == {"a": "running", "s": "running"}
    await world.stop_child("s")

    assert not world.closed


async def test_significant_escalation(autojump_clock: trio.testing.MockClock) -> None:
    """A supervisor that ends because of its significant child counts as a child that returned."""
    go = trio.Event()
    inner = [Child("s", go.wait, restart="transient", significant=True)]
    child = Child(
        "inner",
        partial(run_supervisor, inner, name="inner", auto_shutdown="any_significant"),
        restart="transient",
        significant=True,
    )
    async with open_supervised([child], auto_shutdown="all_significant") as supervised:
        supervisor = supervised.supervisor
        go.set()
        with trio.fail_after(1):
            await supervisor.wait()

    assert supervisor.statistics().state == "closed"
    assert supervisor.statistics().restarts == 0


async def test_count_children(autojump_clock: object, world: World) -> None:
    """The counts distinguish specified and active children, also after a stop and an end."""
    await world.open(world.children("a b c", "transient"), strategy="one_for_one")
    await world.stop_child("a")
    await world.finish("b")

    assert len(world.states) == 3
    assert world.running == ["c"]
    if isinstance(world, Running):
        counts = world.supervisor.statistics().counts
        assert counts == {"children": 3, "active": 1, "waiting": 0, "quarantined": 0, "supervisors": 0}


async def test_count_children_supervisor(autojump_clock: trio.testing.MockClock) -> None:
    """A child that is a supervisor counts as one, and its own children below it."""
    inner = Child("inner", partial(run_supervisor, [Child("x", trio.sleep_forever)], name="inner"))
    async with open_supervised([inner, Child("a", trio.sleep_forever)]) as supervised:
        supervisor = supervised.supervisor
        statistics = supervisor.statistics()

    assert statistics.counts["supervisors"] == 1
    assert statistics.children[0].nested[0].counts["active"] == 1


async def test_count_restarting_children(autojump_clock: object, world: World) -> None:
    """A child that waits for its restart counts as a child, but not as an active one."""
    await world.open(world.children("a b c"), strategy="one_for_one", backoff=Backoff(initial=9.0))
    world.starts["a"].extend(["fail"])
    await world.crash("a")
    assert world.states == {"a": "waiting", "b": "running", "c": "running"}

    await world.advance(11)

    assert world.running == ["a", "b", "c"]


async def test_do_not_save_start_parameters_for_temporary_children(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The arguments of a temporary child can be collected after its end."""

    class Parameter: ...

    async def run(parameter: Parameter) -> None: ...

    async with open_supervised(strategy="one_for_one") as supervised:
        supervisor = supervised.supervisor
        parameter = Parameter()
        seen = weakref.ref(parameter)
        await supervisor.start_child(Child("t", partial(run, parameter), restart="temporary"))
        del parameter
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()

        assert seen() is None


async def test_do_not_save_child_specs_for_temporary_children(autojump_clock: object, world: World) -> None:
    """A temporary child leaves no record after any kind of end."""
    await world.open(world.children("a b c", "temporary"), strategy="one_for_one")
    await world.finish("a")
    await world.crash("b")
    await world.stop_child("c")

    assert world.states == {}
    assert not any(world.decider.roster._by_state.values())


async def test_simple_one_for_one_scale_many_temporary_children(autojump_clock: object, world: World) -> None:
    """A pool of 100 short workers costs in proportion to their number, and leaves no record."""
    await world.open([], strategy="one_for_one")
    for n in range(100):
        await world.start_child(world.child(f"w{n}", "temporary"))
    for n in range(100):
        await world.finish(f"w{n}")

    assert world.states == {}
    assert not any(world.decider.roster._by_state.values())


async def test_order_of_children(autojump_clock: object, world: World) -> None:
    """Children added later come last, restarts keep the order, the stop reverses it."""
    await world.open(world.children("a b"))
    await world.start_child(world.child("c"))
    await world.crash("a")
    world.forget()
    await world.close()

    assert list(world.states) == ["a", "b", "c"]
    assert world.log == ["-c", "-b", "-a"]


async def test_scale_start_stop_many_children(autojump_clock: object, world: World) -> None:
    """A hundred children are started, restarted and stopped in order."""
    names = [f"c{n}" for n in range(100)]
    await world.open([world.child(name) for name in names])
    world.forget()
    await world.restart_all()
    if not isinstance(world, Running):
        assert world.decider.phase == "up"

    assert world.log == [f"-{name}" for name in reversed(names)] + [f"+{name}" for name in names]


async def test_format_log_1(autojump_clock: trio.testing.MockClock) -> None:
    """A crash is one line at error, with child, incarnation, cause and the last frames."""

    async def run() -> None:
        raise ValueError("boom")

    with structlog.testing.capture_logs() as lines:
        async with open_supervised([Child("a", run, restart="temporary")]):
            await trio.testing.wait_all_tasks_blocked()

    (line,) = [line for line in lines if line["log_level"] == "error"]
    assert line["event"] == "child crashed"
    assert (line["child"], line["incarnation"], line["cause"]) == ("a", 1, "ValueError: boom")
    assert line["traceback"][-1].endswith("test_format_log_1.<locals>.run")


async def test_format_log_2(autojump_clock: object, world: World) -> None:
    """A restart is one line at warning, with strategy and delay; empty fields are left out."""
    with structlog.testing.capture_logs() as lines:
        await world.open(world.children("a"), strategy="one_for_one")
        await world.crash("a")
    event = next(event for event in world.events if event.kind == "restarting")

    assert (event.child, event.strategy, event.delay, event.cause) == (
        "a",
        "one_for_one",
        0.0,
        "ValueError: boom",
    )
    if isinstance(world, Running):
        (line,) = [line for line in lines if line["event"] == "restarting"]
        assert (line["log_level"], line["strategy"], line["delay"]) == ("warning", "one_for_one", 0.0)
        assert "where" not in line
