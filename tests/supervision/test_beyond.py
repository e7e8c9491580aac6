"""Cases beyond OTP: groups, BaseException, stubborn children, back-off and own windows."""

from __future__ import annotations

import contextvars
import random
from functools import partial

import pytest
import structlog.testing
import trio
from trio.testing import MockClock

from tangram.errors import RestartsExhausted, StartFailed, SupervisionError
from tangram.supervision import Backoff, Child, SupervisionEvent, Supervisor, Window, run_supervisor
from tangram.testing import open_supervised
from tests.supervision.supervisor_harness import World

AT_ONCE = Backoff(initial=0)


async def test_exception_group_leaf(autojump_clock: object) -> None:
    """The first leaf of a group is the cause; the other leaves are listed."""

    async def run() -> None:
        raise ExceptionGroup(
            "outer", [ExceptionGroup("inner", [KeyError("first"), OSError("second")]), TypeError()]
        )

    async with open_supervised([Child("a", run, restart="temporary")], strategy="one_for_one") as supervised:
        await trio.testing.wait_all_tasks_blocked()
        (crash,) = supervised.supervisor.statistics().crashes

    assert crash.cause == "KeyError: 'first'"
    assert crash.others == ("OSError: second", "TypeError")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
async def test_base_exception_ends_in_order(autojump_clock: object, error: BaseException) -> None:
    """KeyboardInterrupt and SystemExit, nested or in a group, stop all without a restart."""
    log: list[str] = []
    go = trio.Event()

    async def steady(name: str) -> None:
        try:
            await trio.sleep_forever()
        finally:
            log.append(name)

    async def run() -> None:
        await go.wait()
        raise BaseExceptionGroup("", [ValueError(), error])

    inner = Child("inner", partial(run_supervisor, [Child("x", run)], name="inner"))
    with pytest.raises(type(error)) as caught:  # noqa: PT012 - the block is what is under test
        async with open_supervised(
            [Child("a", partial(steady, "a")), Child("b", partial(steady, "b")), inner]
        ):
            go.set()
            await trio.sleep_forever()

    assert caught.value is error
    assert log == ["b", "a"]


async def test_fatal_in_both_harnesses(autojump_clock: object, world: World) -> None:
    """After a fatal exception no child is started again."""
    await world.open(world.children("a b c"))
    world.forget()
    await world.crash("b", error=SystemExit(1))

    assert world.log == ["-b", "-c", "-a"]
    assert world.failure == "fatal"


async def test_nested_cancelled_from_inside(autojump_clock: object) -> None:
    """A child that cancels its supervisor's nursery causes an error; the others stop in order."""
    log: list[str] = []

    async def steady() -> None:
        try:
            await trio.sleep_forever()
        finally:
            log.append("steady gone")

    async def run() -> None:
        nursery = trio.lowlevel.current_task().parent_nursery
        assert nursery is not None
        nursery.cancel_scope.cancel()
        await trio.sleep_forever()

    error: BaseException | None = None
    try:
        async with open_supervised([Child("a", steady), Child("b", run)]):
            await trio.sleep_forever()
    except BaseException as caught:  # a Cancelled that got out would pass for the end of the test
        error = caught

    assert isinstance(error, SupervisionError)
    assert "cancelled from inside" in str(error)
    assert log == ["steady gone"]


async def test_swallowed_cancelled_of_a_foreign_scope(autojump_clock: object) -> None:
    """A Cancelled that leaves its own scope is a crash as any other."""

    async def run() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.sleep_forever()
            except trio.Cancelled as cancelled:
                error = cancelled
        raise error

    with pytest.raises(RestartsExhausted, match="Cancelled"):
        async with open_supervised([Child("a", run)], restarts=1):
            await trio.sleep_forever()


async def test_two_crashes_in_one_tick(autojump_clock: object, world: World) -> None:
    """With one_for_all two crashes at once cause one restart, and each child starts once."""
    await world.open(world.children("a b c"), strategy="one_for_all")
    world.forget()
    await world.crash("a", "b")

    assert sorted(world.log[:3]) == ["-a", "-b", "-c"]
    assert world.log[3:] == ["+a", "+b", "+c"]
    assert world.decider.restarts == 1


async def test_crash_during_restart(autojump_clock: object, world: World) -> None:
    """A crash while later children are still starting is a new crash of the group."""
    world.starts["c"].extend(["ok", "hang"])
    await world.open(world.children("a b c"), strategy="one_for_all")
    world.forget()
    await world.crash("b")
    assert world.states["c"] == "starting"
    await world.crash("a")

    assert world.log == ["-b", "-c", "-a", "+a", "+b", "+c", "-a", "-c", "-b", "+a", "+b", "+c"]
    assert world.decider.restarts == 2


async def test_stop_during_backoff(autojump_clock: object, world: World) -> None:
    """A stop during back-off is obeyed at once: no child is started any more."""
    world.starts["a"].extend(["ok", "fail"])
    await world.open(world.children("a b"), backoff=Backoff(initial=5.0))
    await world.crash("a")
    assert world.states == {"a": "waiting", "b": "waiting"}
    world.forget()
    await world.close()

    assert world.closed
    assert world.log == []
    assert world.states == {"a": "stopped", "b": "stopped"}


async def test_crash_inside_cleanup(autojump_clock: object, world: World) -> None:
    """An exception from a clean-up during a group restart is logged, and charges nothing."""
    world.dirty.add("c")
    await world.open(world.children("a b c"))
    await world.crash("a")

    assert world.decider.restarts == 1
    assert world.reported("crashed") == [("crashed", "a")]
    assert [e.cause for e in world.events if e.child == "c" and e.kind == "stopped"] == [
        "ValueError: in clean-up"
    ]


async def test_backoff_grows_resets_and_hurries(autojump_clock: object, world: World) -> None:
    """Delays grow from 0 and 50 ms to 5 s, reset after 60 s, and are skipped by hurry()."""
    await world.open(world.children("a"), restarts=10**6, backoff=Backoff())
    for _ in range(10):
        await world.crash("a")
        await world.advance(6.1)
    delays = [event.delay for event in world.events if event.delay is not None]
    assert delays[0] == 0
    for n, delay in enumerate(delays[1:]):
        assert 0.8 <= delay / min(5.0, 0.05 * 2**n) <= 1.2
    assert len(set(delays)) == len(delays)

    await world.crash("a")
    assert world.states == {"a": "waiting"}
    await world.hurry()
    assert world.states == {"a": "running"}
    await world.advance(60.1)
    world.forget()
    await world.crash("a")
    assert [event.delay for event in world.events if event.delay is not None] == [0.0]


async def test_a_restart_that_is_due_before_the_supervisor_waits_is_not_lost(
    autojump_clock: MockClock,
) -> None:
    """On a busy machine the back-off may be over before the supervisor reckons how long to wait."""
    up, starts = trio.Event(), 0

    async def crash_twice() -> None:
        nonlocal starts
        starts += 1
        if starts < 3:
            raise ValueError("boom")
        up.set()
        await trio.sleep_forever()

    def take_long(event: SupervisionEvent) -> None:
        if (event.kind, event.child) == ("stopped", "steady"):
            autojump_clock.jump(5)

    children = [Child("steady", trio.sleep_forever), Child("crashing", crash_twice)]
    async with open_supervised(children, backoff=Backoff(initial=1, jitter=0), on_event=take_long):
        with trio.fail_after(60):
            await up.wait()


def test_jitter_is_seedable() -> None:
    """The same seed gives the same delays."""
    first, second = (random.Random(7) for _ in range(2))

    assert [Backoff().delay(n, first.random()) for n in range(9)] == [
        Backoff().delay(n, second.random()) for n in range(9)
    ]


async def test_start_limit(autojump_clock: object, world: World) -> None:
    """A start past its limit has failed; at first boot all children stop in reverse order."""
    world.starts["b"].append("hang")
    await world.open(world.children("a b", start_timeout=3.0))
    await world.advance(2.9)
    assert world.states == {"a": "running", "b": "starting"}
    await world.advance(0.2)

    assert world.log == ["+a", "+b", "-b", "-a"]
    assert world.failure == "boot"


async def test_start_limit_in_a_restart(autojump_clock: object, world: World) -> None:
    """A restart past its limit counts as another restart."""
    world.starts["b"].extend(["ok", "hang"])
    await world.open(world.children("a b", start_timeout=3.0))
    await world.crash("b")
    await world.advance(3.1)

    assert world.running == ["a", "b"]
    assert world.decider.restarts == 2


async def test_quarantine_leaves_siblings_running(autojump_clock: object, world: World) -> None:
    """A full window of its own stops a child, and its siblings restart without it."""
    window = Window(1, 30)
    await world.open([world.child("a"), world.child("p", window=window), world.child("c")], restarts=0)
    await world.crash("p")
    assert world.running == ["a", "p", "c"]
    world.forget()
    await world.crash("p")

    assert world.states == {"a": "running", "p": "quarantined", "c": "running"}
    assert world.log == ["-p", "-c", "-a", "+a", "+c"]
    assert world.reported("quarantined") == [("quarantined", "p")]

    world.forget()
    await world.restart_child("p")
    assert world.log == ["+p"]
    assert window.used(0) == 0


async def test_quarantine_one_for_one_and_escalate(autojump_clock: object, world: World) -> None:
    """With one_for_one siblings run on; ``exhausted="escalate"`` fails the supervisor instead."""
    children = [
        world.child("p", window=Window(0, 30)),
        world.child("q", window=Window(0, 30), exhausted="escalate"),
        world.child("c"),
    ]
    await world.open(children, strategy="one_for_one")
    await world.crash("p")
    assert world.states == {"p": "quarantined", "q": "running", "c": "running"}
    assert world.incarnation("c") == 1

    await world.crash("q")
    assert world.failure == "exhausted"


async def test_start_failure_quarantines_at_boot(autojump_clock: object, world: World) -> None:
    """With ``start_failure="quarantine"`` a child that cannot start is left out."""
    world.starts["p"].append("fail")
    await world.open([world.child("a"), world.child("p", start_failure="quarantine"), world.child("c")])

    assert world.states == {"a": "running", "p": "quarantined", "c": "running"}
    assert world.log == ["+a", "+p", "-p", "+c"]
    await world.restart_all()
    await world.advance(0)
    assert world.running == ["a", "p", "c"]


async def test_shared_window(autojump_clock: object) -> None:
    """A window shared by two supervisors is one budget for both."""
    window = Window(2, 60)
    starts = 0

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        nonlocal starts
        starts += 1
        task_status.started()
        raise ValueError("boom")

    inner = Child("inner", partial(run_supervisor, [Child("x", run)], name="inner", window=window))
    with pytest.raises(RestartsExhausted, match="inner > x: ValueError: boom"):
        async with open_supervised([inner], window=window):
            await trio.sleep_forever()

    assert starts == 3


async def test_own_window_is_charged_alone() -> None:
    """One restart too many is refused; a restart as old as the window still counts."""
    window = Window(2, 10)

    assert [window.charge(now) for now in (0, 1, 2)] == [True, True, False]
    assert window.charge(11) is False
    assert window.charge(23) is True


async def test_planned_restart_is_free(autojump_clock: object, world: World) -> None:
    """A planned restart stops and starts all in order, without charge or back-off."""
    await world.open(world.children("a b c"), restarts=0, strategy="one_for_one", backoff=Backoff())
    world.forget()
    await world.restart_all()
    await world.advance(0)

    assert world.log == ["-c", "-b", "-a", "+a", "+b", "+c"]
    assert world.reported("planned") == [("planned", None)]
    assert world.decider.window.used(0) == 0


async def test_outer_cancel_stops_in_order(autojump_clock: object) -> None:
    """A cancelled supervisor stops its children one by one in reverse, within the total."""
    log: list[tuple[str, float]] = []

    async def run(name: str) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(2, shield=True):
                await trio.sleep_forever()
            log.append((name, trio.current_time()))

    began = trio.current_time()
    with trio.move_on_after(1) as scope:
        async with open_supervised([Child(name, partial(run, name)) for name in "abc"]):
            await trio.sleep_forever()

    assert scope.cancelled_caught
    assert [(name, at - began) for name, at in log] == [("c", 3), ("b", 5), ("a", 7)]


async def test_nested_stop_keeps_the_outer_limit(autojump_clock: object) -> None:
    """A nested supervisor's stop takes no longer than the rest of its parent's stop."""
    began = 0.0
    cancelled: list[float] = []

    async def run() -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(trio.current_time() - began)
            with trio.move_on_after(6, shield=True):
                await trio.sleep_forever()

    inner = [Child(name, run, stop_timeout=6) for name in "abc"]
    child = Child("inner", partial(run_supervisor, inner, name="inner", shutdown_timeout=60), stop_timeout=8)
    takes_long = dict.fromkeys(
        ("nobody_is_stubborn", "stops_within_bound"), "each child takes 6 s, of 7 s for all"
    )
    async with open_supervised([child], shutdown_timeout=7, but=takes_long):
        began = trio.current_time()

    assert cancelled == [0, 6, 7]


async def test_fresh_contextvars(autojump_clock: object) -> None:
    """Each incarnation begins with the supervisor's context, without changes by any child."""
    var = contextvars.ContextVar("var", default="unset")
    var.set("outside")
    seen: list[str] = []

    async def run() -> None:
        seen.append(var.get())
        var.set("inside")
        await trio.sleep(0.01)  # both have set it before one of them crashes
        if len(seen) < 4:
            raise ValueError

    async with open_supervised([Child(n, run, restart="transient") for n in "ab"], backoff=AT_ONCE):
        await trio.sleep(1)

    assert set(seen) == {"outside"}
    assert len(seen) >= 4


async def test_failure_below_the_block_is_raised_bare(autojump_clock: object) -> None:
    """The block's error is raised as it is after the stop; beside a failure both are raised."""

    async def crash() -> None:
        await trio.sleep(1)
        raise ValueError

    with pytest.raises(LookupError):
        async with open_supervised([Child("a", trio.sleep_forever)]):
            raise LookupError
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - the block is what is under test
        async with open_supervised([Child("a", crash)], restarts=0):
            try:
                await trio.sleep_forever()
            finally:
                raise LookupError
    assert [type(error) for error in caught.value.exceptions] == [RestartsExhausted, LookupError]


async def test_listener_that_raises_changes_nothing(autojump_clock: object) -> None:
    """A listener's error is logged; a listener that makes a request gets its result."""
    holder: list[Supervisor] = []

    def listen(event: object) -> None:
        if holder:
            holder[0].hurry()
        raise ValueError("listener")

    with structlog.testing.capture_logs() as lines:
        async with open_supervised([Child("a", trio.sleep_forever)], on_event=listen) as supervised:
            holder.append(supervised.supervisor)
            await supervised.supervisor.restart_all()

    assert any(line["event"] == "a listener to supervision events failed" for line in lines)


async def test_boot_failure_keeps_its_cause(autojump_clock: object) -> None:
    """`StartFailed` names the child and carries its exception; the block is not entered."""

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        raise OSError("no port")

    with pytest.raises(StartFailed, match="no port") as caught:
        async with open_supervised([Child("web", run)]):
            pytest.fail("entered")

    assert caught.value.child == "web"
    assert isinstance(caught.value.__cause__, OSError)


async def test_listening_socket_outlives_incarnations(autojump_clock: object) -> None:
    """A socket opened above the supervisor refuses no connection during restarts."""
    listener = trio.socket.socket()
    await listener.bind(("127.0.0.1", 0))
    listener.listen()
    served = 0

    async def serve() -> None:
        nonlocal served
        connection, _ = await listener.accept()
        connection.close()
        served += 1
        raise ValueError("crash after each connection")

    with listener:
        async with open_supervised([Child("web", serve)], restarts=100, backoff=AT_ONCE):
            for _ in range(20):
                stream = await trio.open_tcp_stream(*listener.getsockname())
                await stream.receive_some(1)
                await stream.aclose()

    assert served == 20


async def test_crashed_workers_leave_no_errors_behind(autojump_clock: object) -> None:
    """A pool keeps no exception and no frame of temporary workers that crash or cannot start."""

    async def crash() -> None:
        raise ValueError

    async def no_start(*, task_status: trio.TaskStatus[None]) -> None:
        raise OSError("no start")

    async with open_supervised(strategy="one_for_one") as supervised:
        for n in range(5):
            await supervised.supervisor.start_child(Child(f"w{n}", crash, restart="temporary"))
            with pytest.raises(StartFailed) as caught:
                await supervised.supervisor.start_child(Child(f"v{n}", no_start))
            assert isinstance(caught.value.__cause__, OSError)
        await trio.testing.wait_all_tasks_blocked()

        assert supervised.supervisor._errors == {}
