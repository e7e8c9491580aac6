"""A planned stop waits for the requests in hand, and nothing else does."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tangram.app.draining import with_drain
from tangram.http.forward.in_flight import InFlight


async def plugin(*, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    await trio.sleep_forever()


async def stop(in_flight: InFlight, *, planned: bool, request: float) -> float:
    """Stop a plugin while one request is answered; return the seconds that took."""
    run = with_drain(plugin, "p", in_flight, planned=lambda: planned, seconds=2.0)
    async with trio.open_nursery() as outer:

        async def answer() -> None:
            with in_flight.answering("p"):
                await trio.sleep(request)

        outer.start_soon(answer)
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: run(task_status=task_status))
            assert in_flight.takes("p")
            began = trio.current_time()
            nursery.cancel_scope.cancel()
        seconds = trio.current_time() - began
        outer.cancel_scope.cancel()
    return seconds


@pytest.mark.parametrize(
    ("planned", "request_", "expected"), [(True, 0.5, 0.5), (True, 60.0, 2.0), (False, 0.5, 0.0)]
)
async def test_a_stop_waits_for_requests_if_it_is_planned(
    autojump_clock: MockClock, planned: bool, request_: float, expected: float
) -> None:
    """A planned one waits, at most its time; another one does not."""
    assert await stop(InFlight(), planned=planned, request=request_) == pytest.approx(expected)


async def test_a_draining_plugin_takes_no_request_until_it_starts_again(autojump_clock: MockClock) -> None:
    """New requests wait for the node that runs the plugin next."""
    in_flight = InFlight()
    await stop(in_flight, planned=True, request=0.1)
    assert not in_flight.takes("p")
    assert in_flight.takes("another")

    async with trio.open_nursery() as nursery:
        run = with_drain(plugin, "p", in_flight, planned=lambda: False, seconds=2.0)
        await nursery.start(lambda task_status: run(task_status=task_status))
        assert in_flight.takes("p")
        nursery.cancel_scope.cancel()


async def test_a_crash_is_raised_at_once_and_alone() -> None:
    """The supervisor sees the exception of the plugin, without a group around it."""

    async def crashing(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await trio.lowlevel.checkpoint()
        raise ValueError("crash")

    in_flight = InFlight()
    run = with_drain(crashing, "p", in_flight, planned=lambda: True, seconds=2.0)
    with in_flight.answering("p"), pytest.raises(ValueError, match="crash"):
        await run(task_status=trio.TASK_STATUS_IGNORED)
