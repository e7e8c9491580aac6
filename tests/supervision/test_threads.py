from __future__ import annotations

import threading
import types

import pytest
import structlog.testing
import trio

from tangram.supervision import run_sync_in_thread, thread_statistics


async def test_returns_and_raises() -> None:
    """A synchronous function's value and its error are passed on unchanged."""
    assert await run_sync_in_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await run_sync_in_thread(divmod, 7, 0)
    assert thread_statistics().running == 0


async def test_obedient_thread_is_awaited() -> None:
    """A thread that calls ``check_cancelled`` ends with its service and is not abandoned."""
    ended = threading.Event()
    began = trio.Event()
    token = trio.lowlevel.current_trio_token()
    before = thread_statistics().abandoned

    def work() -> None:
        token.run_sync_soon(began.set)
        try:
            while True:
                trio.from_thread.check_cancelled()
                ended.wait(0.001)
        finally:
            ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_sync_in_thread, work)
        await began.wait()
        assert thread_statistics().running == 1
        nursery.cancel_scope.cancel()

    assert ended.is_set()
    assert thread_statistics().abandoned == before


async def test_ghost_is_counted_and_warned_of() -> None:
    """A thread that does not end is abandoned, counted and shown; a second start warns."""
    free = threading.Event()
    before = thread_statistics().abandoned

    async def start() -> None:
        began = trio.Event()
        token = trio.lowlevel.current_trio_token()
        ghost.append(lambda: token.run_sync_soon(began.set))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: run_sync_in_thread(work, name="stubborn", stop_timeout=0.01))
            await began.wait()
            nursery.cancel_scope.cancel()

    ghost: list[object] = []

    def work() -> None:
        ghost[-1]()  # type: ignore[operator]
        free.wait()

    with structlog.testing.capture_logs() as lines:
        await start()
        statistics = thread_statistics()
        await start()
    free.set()

    assert statistics.abandoned == before + 1
    assert [seen.name for seen in statistics.ghosts] == ["stubborn"]
    assert any("work" in line for line in statistics.ghosts[0].where)
    events = [line["event"] for line in lines]
    assert events.count("a thread that does not end was abandoned") == 2
    assert events.count("a synchronous service is started beside its own thread that never ended") == 1


async def test_a_thread_that_is_late_to_begin_is_a_ghost_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that has not begun when its service is stopped is counted if it does not end.

    It does not call the function when it begins later.
    """
    free, begins, ended = threading.Event(), threading.Event(), threading.Event()
    called: list[bool] = []
    before = thread_statistics().abandoned

    def begin() -> int:
        begins.set()
        free.wait(10)
        ended.set()
        return threading.get_ident()

    monkeypatch.setattr("tangram.supervision.threads.threading", types.SimpleNamespace(get_ident=begin))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: run_sync_in_thread(lambda: called.append(True), name="late", stop_timeout=0.01)
        )
        await trio.to_thread.run_sync(begins.wait)
        nursery.cancel_scope.cancel()
    statistics = thread_statistics()
    free.set()
    with trio.fail_after(10):
        await trio.to_thread.run_sync(ended.wait)
        while thread_statistics().ghosts:  # noqa: ASYNC110 - a thread's own end has no event of Trio's
            await trio.sleep(0.001)

    assert statistics.abandoned == before + 1
    assert [ghost.name for ghost in statistics.ghosts] == ["late"]
    assert called == []


async def test_a_service_that_is_stopped_before_its_thread_is_made_leaves_nothing() -> None:
    """There is no thread, and no statistics count one."""
    before = thread_statistics()
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.cancel()
        nursery.start_soon(lambda: run_sync_in_thread(threading.Event().wait))

    assert thread_statistics() == before
