"""A supervisor under test: its record, and what is found when something below it breaks a promise."""

from __future__ import annotations

import threading
from functools import partial

import attrs
import pytest
import structlog
import trio
from trio.testing import MockClock

from tangram.errors import RestartsExhausted, StartFailed
from tangram.supervision import Backoff, Child, SupervisionEvent, Supervisor, run_supervisor, runner
from tangram.testing import InvariantBroken, open_supervised

AT_ONCE = Backoff(initial=0)


async def crash_once(state: list[int]) -> None:
    state.append(1)
    if len(state) == 1:
        raise ValueError("boom")
    await trio.sleep_forever()


async def test_the_record_has_what_happened_at_every_depth(autojump_clock: MockClock) -> None:
    """Events of the supervisor and of those below it, in order, and the log; listeners of one's own hear
    too.
    """
    heard: list[str] = []
    inner = partial(run_supervisor, [Child("leaf", trio.sleep_forever)], name="inner")
    children = [Child("sick", partial(crash_once, [])), Child("inner", inner)]
    async with open_supervised(
        children, backoff=AT_ONCE, on_event=lambda event: heard.append(event.kind)
    ) as seen:
        await trio.testing.wait_all_tasks_blocked()

        assert seen.supervisor.statistics().children[0].incarnation == 2
    assert seen.told("crashed") == [("crashed", "sick")]
    assert ("started", "leaf") in seen.told("started")
    assert [event.kind for event in seen.events] == heard
    assert any(line["event"] == "child crashed" for line in seen.logs)
    assert seen.stop_seconds == 0


async def test_errors_come_out_as_they_are(autojump_clock: MockClock) -> None:
    """The block's own, a failed start and a supervisor that gives up: each as `open_supervisor` has it."""
    with pytest.raises(LookupError):
        async with open_supervised([Child("a", trio.sleep_forever)]):
            raise LookupError
    with trio.move_on_after(1) as scope:
        async with open_supervised([Child("a", trio.sleep_forever)]):
            await trio.sleep_forever()
    with pytest.raises(RestartsExhausted):
        async with open_supervised([Child("a", partial(crash_once, []))], restarts=0):
            await trio.sleep_forever()

    async def fail(*, task_status: trio.TaskStatus[None]) -> None:
        raise OSError("no port")

    with pytest.raises(StartFailed, match="no port"):
        async with open_supervised([Child("a", fail)]):
            pytest.fail("entered")

    assert scope.cancelled_caught


@pytest.mark.slow
async def test_what_a_child_leaves_behind_is_told_by_name(autojump_clock: MockClock) -> None:
    """A thread that goes on, and a task in a nursery of somebody else's, break nothing_left_alive."""
    over = threading.Event()

    async def leave_thread() -> None:
        threading.Thread(target=over.wait, name="left behind").start()
        await trio.sleep_forever()

    async def leave_task(elsewhere: trio.Nursery) -> None:
        elsewhere.start_soon(trio.sleep_forever, name="stray")
        await trio.sleep_forever()

    try:
        with pytest.raises(InvariantBroken, match=r"nothing_left_alive: 1 more threads .*left behind"):
            async with open_supervised([Child("a", leave_thread)]):
                pass
    finally:
        over.set()
    async with trio.open_nursery() as nursery:
        # Who starts a task in a nursery of its own choice hands its context on: the task is known by it.
        with pytest.raises(InvariantBroken, match=r"nothing_left_alive: 1 more tasks .*stray"):
            async with open_supervised([Child("a", partial(leave_task, nursery))]):
                await trio.testing.wait_all_tasks_blocked()
        async with open_supervised([Child("a", trio.sleep_forever)]):
            nursery.start_soon(trio.sleep_forever)  # the test's own, beside it
        nursery.cancel_scope.cancel()


async def test_a_stubborn_child_is_told_unless_it_is_on_purpose(autojump_clock: MockClock) -> None:
    """An invariant that a test breaks on purpose is switched off by name, with a reason; no other is."""

    async def stubborn() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(3)

    child = Child("a", stubborn, stop_timeout=1)
    with pytest.raises(InvariantBroken, match="nobody_is_stubborn: a went on"):
        async with open_supervised([child]):
            pass
    async with open_supervised([child], but={"nobody_is_stubborn": "it is the subject"}):
        pass
    with pytest.raises(ValueError, match="no invariant"):
        async with open_supervised([child], but={"nobody_is_late": "no such thing"}):
            pytest.fail("entered")


async def test_a_supervisor_that_breaks_order_is_told(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Children that start in another order than they stand in, or end so, break an invariant each, also
    where the supervisor fails with an error of its own.
    """
    tell, names = Supervisor._publish, {"a": "b", "b": "a", None: None}

    def swap(self: Supervisor, event: SupervisionEvent) -> None:
        tell(self, attrs.evolve(event, child=names[event.child]))

    monkeypatch.setattr(Supervisor, "_publish", swap)
    with pytest.raises(InvariantBroken) as caught:
        async with open_supervised([Child(name, trio.sleep_forever) for name in "ab"]):
            pass
    assert {one.invariant for one in caught.value.broken} == {"starts_in_order", "stops_in_reverse_order"}


async def test_a_crash_that_is_not_logged_is_told(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that gives up and keeps a crash to itself breaks an invariant; its error is the cause."""
    monkeypatch.setattr(runner, "log_event", lambda *_: structlog.get_logger().info("something"))
    with pytest.raises(InvariantBroken, match="each_crash_logged_once") as caught:
        async with open_supervised([Child("a", partial(crash_once, []))], restarts=0):
            await trio.sleep_forever()
    assert isinstance(caught.value.__cause__, RestartsExhausted)
