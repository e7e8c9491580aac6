"""The end of a process that does not end."""

import queue
import subprocess
import sys
import threading

import pytest
import trio
import trio.testing

from tangram.cli import lastresort
from tangram.cli.lastresort import LastResort


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> "queue.Queue[int]":
    monkeypatch.setattr(lastresort, "MARGIN", 0.0)
    return queue.Queue()


@pytest.mark.parametrize(("asked_for", "status"), [(True, 0), (False, 70)])
async def test_it_ends_the_process_and_says_who_stands_where(
    ends: "queue.Queue[int]", capsys: pytest.CaptureFixture[str], asked_for: bool, status: int
) -> None:
    """Past the bound the process ends with the status of its stop, and each task that runs is named."""
    resort = LastResort(exit_process=ends.put)

    async def stubborn() -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stubborn)
        await trio.testing.wait_all_tasks_blocked()
        resort.arm(0.01, asked_for=asked_for)
        ended = await trio.to_thread.run_sync(lambda: ends.get(timeout=10))
        nursery.cancel_scope.cancel()

    assert ended == status
    assert "stubborn" in capsys.readouterr().err


async def test_it_does_nothing_when_the_stop_ends_in_time(ends: "queue.Queue[int]") -> None:
    """A stop within its bound leaves no thread and no early end."""
    resort = LastResort(exit_process=ends.put)

    resort.arm(60, asked_for=True)
    resort.disarm()

    assert ends.empty()
    assert not [thread for thread in threading.enumerate() if thread.name == "tangram-last-resort"]


@pytest.mark.slow
async def test_it_ends_the_broker_too(ends: "queue.Queue[int]") -> None:
    """The embedded broker does not outlive the process."""
    child = subprocess.Popen(  # noqa: ASYNC220 - starting one takes no time to speak of
        [sys.executable, "-c", "import time; time.sleep(600)"]
    )
    resort = LastResort(exit_process=ends.put)
    resort.watch_broker(child.pid)

    resort.arm(0.01, asked_for=True)
    await trio.to_thread.run_sync(lambda: ends.get(timeout=10))

    assert child.wait(timeout=10) == -9
