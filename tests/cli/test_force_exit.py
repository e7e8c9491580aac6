"""The forced end of a process whose stop takes too long."""

import io
import queue
import subprocess
import sys
import threading

import pytest
import trio
import trio.testing

from tangram.cli import force_exit
from tangram.cli.force_exit import ForceExit


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> "queue.Queue[int]":
    monkeypatch.setattr(force_exit, "MARGIN", 0.0)
    return queue.Queue()


@pytest.mark.parametrize(("asked_for", "status"), [(True, 0), (False, 70)])
async def test_it_ends_the_process_and_reports_each_task(
    ends: "queue.Queue[int]", capsys: pytest.CaptureFixture[str], asked_for: bool, status: int
) -> None:
    """Past the limit the process ends with its stop's status, and the report names each task."""
    resort = ForceExit(exit_process=ends.put)
    resort.watch()

    async def stubborn() -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stubborn)
        await trio.testing.wait_all_tasks_blocked()
        resort.arm(0.01, asked_for=asked_for)
        ended = await trio.to_thread.run_sync(lambda: ends.get(timeout=20))
        nursery.cancel_scope.cancel()

    assert ended == status
    assert "stubborn" in capsys.readouterr().err


async def test_it_does_nothing_when_the_stop_ends_in_time(ends: "queue.Queue[int]") -> None:
    """A stop within its limit leaves no thread and is not cut short."""
    resort = ForceExit(exit_process=ends.put)
    resort.watch()

    resort.arm(60, asked_for=True)
    resort.disarm()

    assert ends.empty()
    assert not [thread for thread in threading.enumerate() if thread.name == "tangram-force-exit"]


async def test_it_ends_the_process_although_standard_error_blocks(
    ends: "queue.Queue[int]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write to a full pipe whose reader has stopped never returns; the process ends anyway."""
    freed = threading.Event()

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            freed.wait()
            return len(text)

    monkeypatch.setattr(sys, "stderr", Full())
    monkeypatch.setattr(force_exit, "REPORT_TIME", 0.0)
    resort = ForceExit(exit_process=ends.put)
    resort.watch()

    resort.arm(0.01, asked_for=True)
    try:
        assert await trio.to_thread.run_sync(lambda: ends.get(timeout=20)) == 0
    finally:
        freed.set()


async def test_only_the_first_call_of_arm_counts(ends: "queue.Queue[int]") -> None:
    """A signal may arm it while a stop that was not requested begins."""
    resort = ForceExit(exit_process=ends.put)
    resort.watch()

    resort.arm(0.01, asked_for=False)
    resort.arm(60, asked_for=True)
    assert await trio.to_thread.run_sync(lambda: ends.get(timeout=20)) == 70
    assert ends.empty()


@pytest.mark.slow
async def test_it_ends_the_broker_too(ends: "queue.Queue[int]") -> None:
    """The embedded broker does not outlive the process."""
    child = subprocess.Popen(  # noqa: ASYNC220 - starting one takes no time to speak of
        [sys.executable, "-c", "import time; time.sleep(600)"]
    )
    resort = ForceExit(exit_process=ends.put)
    resort.watch_broker(child.pid)
    resort.watch()

    resort.arm(0.01, asked_for=True)
    await trio.to_thread.run_sync(lambda: ends.get(timeout=20))

    assert child.wait(timeout=20) == -9
