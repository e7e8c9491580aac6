"""The task status that stands between a task and its nursery."""

import pytest
import trio

from tangram.task_status import RelayedStatus


async def test_a_start_is_remembered_shown_and_passed_on() -> None:
    """The callback sees the value before the waiting task does."""
    order: list[object] = []

    async def child(*, task_status: trio.TaskStatus[int]) -> None:
        status = RelayedStatus(task_status, on_started=order.append)
        order.append(status.called)
        status.started(7)
        order.append(status.called)

    async with trio.open_nursery() as nursery:
        order.append(await nursery.start(child))

    assert order == [False, 7, True, 7]


def test_a_second_start_is_an_error_unless_it_is_expected() -> None:
    """As with Trio's own status; a repeatable one ignores later calls."""
    values: list[object] = []
    strict = RelayedStatus[int](on_started=values.append)
    strict.started(1)
    with pytest.raises(RuntimeError, match="twice"):
        strict.started(2)
    lenient = RelayedStatus[int](on_started=values.append, repeatable=True)
    lenient.started(3)
    lenient.started(4)

    assert values == [1, 3]
