"""The append-only file of the embedded broker: kept, damaged, set aside, and done without."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest
import trio

from tangram.broker import EmbeddedBroker
from tangram.broker.persistence import FOLDER, Persistence
from tangram.bus import Bus
from tangram.config.model import BrokerConfig
from tangram.errors import BrokerUnavailable
from tangram.history import History, Rules
from tangram.history.replay import parse_replay, read_call
from tangram.history.rules import Rule

pytestmark = pytest.mark.slow

NEXT_SYNC = 1.1
"""Seconds after which a broker with ``appendfsync everysec`` has asked the disk to write."""
PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
WAIT_FOR_THREADS = 0x40000000
"""The flag ``__WALL`` of ``waitpid``."""


@contextmanager
def stopped_writer(pid: int) -> Iterator[None]:
    """Stop the thread of a broker that waits for the disk, until the broker has ended."""
    tasks = Path(f"/proc/{pid}/task")
    thread = next(
        int(task.name) for task in tasks.iterdir() if (task / "comm").read_text().startswith("bio_aof")
    )
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
        if ptrace(request, thread, None, None):
            raise OSError(ctypes.get_errno(), f"cannot stop thread {thread} of the broker")
    os.waitpid(thread, WAIT_FOR_THREADS)
    yield
    os.waitpid(thread, WAIT_FOR_THREADS)  # the process remains until the end of its thread is taken note of


async def run_once(
    folder: Path, publish: int, *, keeps: bool = True, stuck: bool = False
) -> tuple[int, str | None, str]:
    """Run a broker, publish, and kill it; return the messages kept from before, identity and epoch.

    With ``stuck`` the disk takes for ever to write the bytes that the broker has given to the system.
    """
    broker = EmbeddedBroker(BrokerConfig(port=0), folder=folder)
    broker.keeps = keeps
    rules = Rules([Rule("*", History())], identity=lambda: broker.identity)
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[str]) -> None:
            with pytest.raises(BrokerUnavailable, match="SIGKILL"):
                await broker.run(task_status=task_status)
            nursery.cancel_scope.cancel()

        await nursery.start(run)
        bus: Bus = await nursery.start(Bus(broker.server_url, history=rules).run)
        history = rules.find("t")
        assert history is not None
        before = parse_replay(await bus.call(read_call(rules, "t", history, None)))
        pid = broker.statistics().pid
        assert pid is not None
        with stopped_writer(pid) if stuck else nullcontext():
            for number in range(publish):
                await bus.publish("to:t:n", str(number))
                if stuck and number == 0:
                    await trio.sleep(NEXT_SYNC)
            identity = broker.identity
            os.kill(pid, signal.SIGKILL)
        await trio.sleep_forever()
    return len(before.events), identity, before.position.epoch


async def test_a_killed_broker_loses_nothing(tmp_path: Path) -> None:
    """Every acknowledged message is there at the next start, in the same epoch."""
    _, first, epoch = await run_once(tmp_path, 50)
    kept, second, same = await run_once(tmp_path, 0)

    assert kept == 50
    assert first == second is not None
    assert epoch == same


async def test_a_killed_broker_loses_nothing_beside_a_slow_disk(tmp_path: Path) -> None:
    """Acknowledged messages outlive the broker, also those that the disk has not written yet."""
    await run_once(tmp_path, 20, stuck=True)
    kept, _, _ = await run_once(tmp_path, 0)

    assert kept == 20


async def test_without_history_the_old_file_is_removed(tmp_path: Path) -> None:
    """A broker without histories keeps nothing on the disk."""
    await run_once(tmp_path, 1)
    kept, identity, _ = await run_once(tmp_path, 1, keeps=False)

    assert kept == 0
    assert identity is None
    assert not (tmp_path / FOLDER).exists()


def last_file(folder: Path) -> Path:
    return max((folder / FOLDER).glob("*.incr.aof"))


def cut(folder: Path) -> None:
    file = last_file(folder)
    file.write_bytes(file.read_bytes()[:-10])


def spoil(folder: Path) -> None:
    file = last_file(folder)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + b"garbage\r\n" + data[len(data) // 2 :])


def spoil_list(folder: Path) -> None:
    next((folder / FOLDER).glob("*.manifest")).write_text("nonsense\n")


def replace_by_file(folder: Path) -> None:
    (folder / FOLDER).rename(folder / "away")
    (folder / FOLDER).write_text("a file")


@pytest.mark.parametrize("damage", [cut, spoil, spoil_list, replace_by_file])
async def test_a_damaged_file_never_prevents_a_start(
    tmp_path: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is repaired or set aside, the log says so, and no old epoch is continued."""
    _, first, epoch = await run_once(tmp_path, 20)
    damage(tmp_path)
    capsys.readouterr()
    _, second, other = await run_once(tmp_path, 1)
    kept, third, same = await run_once(tmp_path, 0)

    assert "append-only file" in capsys.readouterr().out
    assert first != second
    assert epoch != other
    assert (kept, second, other) == (1, third, same)


async def test_a_folder_that_cannot_be_written_is_done_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The broker then keeps everything in memory, and the log says so."""
    kept, identity, _ = await run_once(tmp_path, 0)
    persistence = Persistence(tmp_path / "missing")
    persistence.check()

    assert (kept, identity is None) == (0, False)
    assert persistence.identity is None
    assert persistence.arguments() == ["--appendonly", "no"]
    assert "histories are kept in memory only" in capsys.readouterr().out


def test_a_full_disk_turns_the_file_off(tmp_path: Path) -> None:
    """A write error in the child's output ends the file, so that publications go on in memory."""
    persistence = Persistence(tmp_path)
    persistence.check()
    before = persistence.identity

    assert not persistence.heard("Background AOF rewrite finished")
    assert persistence.heard("Error writing to the AOF file: No space left on device")
    assert persistence.identity is None
    assert Persistence(tmp_path).identity != before


def test_the_disk_writes_a_file_only_when_it_has_grown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that has not grown costs nothing, and a new one of the broker is written as well."""
    written: list[str] = []

    def write(file: int) -> None:
        written.append(Path(f"/proc/self/fd/{file}").readlink().name)

    monkeypatch.setattr("tangram.broker.persistence._write_to_disk", write)
    (tmp_path / FOLDER).mkdir()
    first, second = (tmp_path / FOLDER / f"appendonly.aof.{number}.incr.aof" for number in (1, 2))
    persistence = Persistence(tmp_path)
    steps: list[Callable[[], object]] = [
        partial(first.write_bytes, b"x"),
        list,
        partial(first.write_bytes, b"xx"),
        first.unlink,
        partial(second.write_bytes, b"x"),
    ]
    found = []
    for step in steps:
        step()
        written.clear()
        persistence.sync()
        found.append(list(written))

    assert found == [[first.name], [], [first.name], [], [second.name]]


@pytest.mark.parametrize("fault", [errno.ENOENT, errno.EMFILE])
def test_a_file_that_cannot_be_opened_for_a_moment_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    """A process without a free descriptor loses no history by that; the next look writes the file."""
    written: list[int] = []
    monkeypatch.setattr("tangram.broker.persistence._write_to_disk", written.append)
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "appendonly.aof.1.incr.aof").write_bytes(b"x")
    persistence = Persistence(tmp_path)

    def refuse(*_arguments: object) -> int:
        raise OSError(fault, os.strerror(fault))

    with monkeypatch.context() as inner:
        inner.setattr("tangram.broker.persistence.os.open", refuse)
        persistence.sync()
    assert written == []
    persistence.sync()
    assert len(written) == 1


async def test_a_disk_that_does_not_write_turns_the_file_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker goes on in memory, and old epochs end, because the disk may lack messages."""

    def write(_file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("tangram.broker.persistence._write_to_disk", write)
    monkeypatch.setattr("tangram.broker.persistence.SYNC_INTERVAL", 0.001)
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "appendonly.aof.1.incr.aof").write_bytes(b"x")
    kept = Persistence(tmp_path)
    failed = trio.Event()
    before = kept.identity
    with trio.fail_after(60):
        await kept.run_syncs(failed.set)

    assert failed.is_set()
    assert kept.identity is None
    assert Persistence(tmp_path).identity != before
