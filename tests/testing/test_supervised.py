"""A supervisor under test: its record, and the broken promises that are found."""

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


async def test_the_record_has_events_of_every_depth(autojump_clock: MockClock) -> None:
    """Events of nested supervisors are in order, with the log; other listeners get them too."""
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


async def test_errors_are_raised_without_a_change(autojump_clock: MockClock) -> None:
    """The block's error, a failed start and a supervisor that gives up are raised as usual."""
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
async def test_a_leak_of_a_child_is_reported_by_name(autojump_clock: MockClock) -> None:
    """A running thread, and a task in a foreign nursery, break nothing_left_alive."""
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
        # A task in a foreign nursery is recognised by the context that it inherits.
        with pytest.raises(InvariantBroken, match=r"nothing_left_alive: 1 more tasks .*stray"):
            async with open_supervised([Child("a", partial(leave_task, nursery))]):
                await trio.testing.wait_all_tasks_blocked()
        async with open_supervised([Child("a", trio.sleep_forever)]):
            nursery.start_soon(trio.sleep_forever)  # the test's own, beside it
        nursery.cancel_scope.cancel()


async def test_a_stubborn_child_is_reported_unless_excused(autojump_clock: MockClock) -> None:
    """``but`` excuses one invariant by name with a reason, and no other."""

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


async def test_a_wrong_order_breaks_an_invariant(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong orders of start and stop are found, also where the supervisor fails itself."""
    tell, names = Supervisor._publish, {"a": "b", "b": "a", None: None}

    def swap(self: Supervisor, event: SupervisionEvent) -> None:
        tell(self, attrs.evolve(event, child=names[event.child]))

    monkeypatch.setattr(Supervisor, "_publish", swap)
    with pytest.raises(InvariantBroken) as caught:
        async with open_supervised([Child(name, trio.sleep_forever) for name in "ab"]):
            pass
    assert {one.invariant for one in caught.value.broken} == {"starts_in_order", "stops_in_reverse_order"}


async def test_a_crash_without_a_log_record_is_found(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor that gives up without a record breaks an invariant; its error is the cause."""
    monkeypatch.setattr(runner, "log_event", lambda *_: structlog.get_logger().info("something"))
    with pytest.raises(InvariantBroken, match="each_crash_logged_once") as caught:
        async with open_supervised([Child("a", partial(crash_once, []))], restarts=0):
            await trio.sleep_forever()
    assert isinstance(caught.value.__cause__, RestartsExhausted)
