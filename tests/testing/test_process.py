"""A server in a process: its output, and the checks at its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from tangram.testing import Home, InvariantBroken, open_process, run_process
from tangram.testing.checks.census import start_time
from tangram.testing.fakes.ports import is_listening
from tangram.testing.run.process import RunningProcess

pytestmark = pytest.mark.slow

PLUGIN = """
import tangram, trio
router = tangram.APIRouter(prefix="/probe")
plugin = tangram.Plugin(routers=[router])

@router.get("/")
async def probe() -> dict[str, str]:
    return {"hello": "there"}
"""


class Program(Home):
    """A home in which any program stands for the server."""

    def __init__(self, folder: Path, code: str) -> None:
        super().__init__(folder)
        self.code = code

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-u", "-c", self.code]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


async def test_a_server_starts_answers_and_stops(home: Home) -> None:
    """A plugin is installed, the server answers, logs records, and ends with 0."""
    home.install("my_probe", PLUGIN)
    home.configure(["my_probe"])
    async with open_process(home) as server:
        url = await server.wait_ready()
        answer = await server.get("/probe/")
        below = server.look_below()
        status = await server.stop()

    assert url == home.url
    assert answer == {"hello": "there"}
    assert "valkey-server" in below.values()
    assert status == 0
    assert server.events("tangram stopped", status=0)
    assert home.secrets()


async def test_a_server_that_does_not_start_logs_the_cause(home: Home) -> None:
    """A wrong configuration is one line, and the process has ended."""
    home.configure(extra="[supervisor]\nstrategy = 'nonsense'")
    server = await run_process(home)

    assert server.process.returncode not in {0, None}
    assert "nonsense" in server.log


async def run(home: Home, until: str = "up", **but: str) -> RunningProcess:
    async with open_process(home, but=but) as server:
        await server.wait_line(until)
        server.look_below()
    return server


async def test_a_process_that_ignores_sigterm_is_killed_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that goes on after SIGTERM breaks its bound."""
    monkeypatch.setattr("tangram.testing.run.process.STOP_SECONDS", 0.2)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(600)"
    with pytest.raises(InvariantBroken, match="stops_within_bound"):
        await run(Program(tmp_path, code))


async def test_a_process_that_survives_sigkill_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait is bounded where the kernel holds a process."""
    monkeypatch.setattr("tangram.testing.run.process.STOP_SECONDS", 0.2)
    monkeypatch.setattr("tangram.testing.run.process.KILL_SECONDS", 0.2)
    monkeypatch.setattr("tangram.testing.run.process.LAST_WORDS_SECONDS", 0.2)
    monkeypatch.setattr(trio.Process, "kill", lambda process: None)
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(600)"
    try:
        with trio.fail_after(60), pytest.raises(InvariantBroken, match=r"alive 0.2 s after SIGKILL"):
            async with open_process(Program(tmp_path, code)) as server:
                await server.wait_line("up")
    finally:
        server.send(signal.SIGKILL)
        await server.wait_end()


async def test_a_descendant_left_behind_is_reported_and_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named, unless the test excuses it, and killed in either case."""
    monkeypatch.setattr("tangram.testing.run.process.GONE_SECONDS", 0.2)
    code = "import subprocess, time; subprocess.Popen(['sleep', '600']); print('up'); time.sleep(600)"
    with pytest.raises(InvariantBroken, match=r"nothing_left_alive: .* \(process"):
        await run(Program(tmp_path, code))
    server = await run(Program(tmp_path, code), nothing_left_alive="on purpose")

    (pid,) = server.below
    with trio.fail_after(60):
        while start_time(pid):  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.01)


OUTLIVED = """
import ctypes, socket, subprocess, sys, time
child = '''
import ctypes, socket, sys, threading, time
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
threading.Thread(target=time.sleep, args=(600,)).start()
print("up", flush=True)
ctypes.CDLL(None).pthread_exit(None)
'''
subprocess.Popen([sys.executable, "-c", child, "PORT"])
time.sleep(600)
"""
"""A program whose child goes on without its first thread, and listens."""


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


async def test_a_process_without_its_first_thread_has_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is shown as a zombie while its other threads still hold its socket."""
    monkeypatch.setattr("tangram.testing.run.process.GONE_SECONDS", 0.2)
    home = Program(tmp_path, "")
    home.code = OUTLIVED.replace("PORT", str(home.port))
    with pytest.raises(InvariantBroken) as caught:  # noqa: PT012 - the block must raise as a whole
        async with open_process(home) as server:
            await server.wait_line("up")
            ((pid, _),) = server.look_below().items()
            with trio.fail_after(60):
                while not is_zombie(pid):  # noqa: ASYNC110 - nobody tells
                    await trio.sleep(0.01)
            assert start_time(pid)

    assert "descendants are alive" in str(caught.value)
    with trio.fail_after(60):
        while is_listening(home.port):  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.01)
    assert start_time(pid) is None


LISTENS = """
import socket, sys, time
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("up", flush=True)
time.sleep(600)
"""


def listen(port: int, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a process that listens."""
    command = [sys.executable, "-c", LISTENS, str(port)]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


async def end_before_a_listener(home: Home, environ: Mapping[str, str]) -> None:
    """Run a server to its end, and let another process listen at its port before the checks."""
    with ExitStack() as held:
        async with open_process(home) as server:
            await server.wait_end()
            other = held.enter_context(listen(home.port, environ))
            held.callback(other.kill)


async def test_a_listener_of_another_server_is_no_leak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has another home. A process of the same home, or of none, counts as the server's own."""
    monkeypatch.setattr("tangram.testing.run.process.GONE_SECONDS", 0.2)
    home = Program(tmp_path / "home", "print('up')")
    await end_before_a_listener(home, Home(tmp_path / "other").environ)

    for environ in (home.environ, {}):
        with pytest.raises(InvariantBroken, match="is still listened on"):
            await end_before_a_listener(home, environ)


async def test_a_port_left_open_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that outlives the process is a leak; an older one is not."""
    monkeypatch.setattr("tangram.testing.run.process.GONE_SECONDS", 0.2)
    home = Program(tmp_path, "import time; print('up'); time.sleep(600)")
    with socket.socket() as other:
        with pytest.raises(InvariantBroken, match=rf"is still listened on \(by {os.getpid()}\)"):  # noqa: PT012 - the block must raise as a whole
            async with open_process(home) as server:
                await server.wait_line("up")
                other.bind(("127.0.0.1", home.port))
                other.listen()
        await run(home)


def wait_unread_end(pid: int) -> None:
    """Wait for the end of a process while the loop reads nothing."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


async def test_the_last_words_of_an_ended_process_are_read(tmp_path: Path) -> None:
    """They are found although the process ended before they were read."""
    home = Program(tmp_path, "import sys; print('up'); sys.exit('last word')")
    async with open_process(home) as server:
        wait_unread_end(server.process.pid)
        await server.wait_line("last word")
    async with open_process(home) as server:
        wait_unread_end(server.process.pid)
        assert await server.wait_end() == 1
        assert "last word" in server.log


async def test_a_descendant_that_keeps_the_output_delays_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait for the last words is bounded."""
    monkeypatch.setattr("tangram.testing.run.process.LAST_WORDS_SECONDS", 0.2)
    monkeypatch.setattr("tangram.testing.run.process.GONE_SECONDS", 0.2)
    code = "import subprocess, time; subprocess.Popen(['sleep', '600']); print('up'); time.sleep(600)"
    async with open_process(Program(tmp_path, code), but={"nothing_left_alive": "on purpose"}) as server:
        await server.wait_line("up")
        assert await server.stop(signal.SIGKILL) == -signal.SIGKILL
        with pytest.raises(AssertionError, match="was not logged 1 times"):
            await server.wait_line("down")


async def test_a_traceback_and_a_secret_are_reported(tmp_path: Path) -> None:
    """They are found in either output, and the secret is not shown again."""
    secret = "x1y2z3" * 4
    home = Program(tmp_path, f"print('up'); print('token {secret}'); raise ValueError('mine')")
    home.state.mkdir(parents=True)
    (home.state / "operator-token").write_text(secret + "\n")
    with pytest.raises(InvariantBroken) as caught:
        await run(home, "mine")

    assert {one.invariant for one in caught.value.broken} == {"no_traceback", "no_secret_in_logs"}
    assert secret not in str(caught.value)
    await run(home, "mine", no_traceback="on purpose", no_secret_in_logs="on purpose")


async def test_an_error_of_the_block_is_raised_without_a_group(tmp_path: Path) -> None:
    """An unknown name of a check is refused before anything starts."""
    home = Program(tmp_path, "import time; print('up'); time.sleep(600)")
    with pytest.raises(LookupError):
        async with open_process(home):
            raise LookupError
    with pytest.raises(ValueError, match="no invariant"):
        await run(home, no_nonsense="there is none")


async def test_stop_sends_a_signal_and_returns_the_status(home: Home) -> None:
    """`stop` sends the given signal."""
    home.configure()
    async with open_process(home) as server:
        await server.wait_ready()
        status = await server.stop(signal.SIGKILL)

    assert status == -9


def test_nothing_of_the_server_is_imported() -> None:
    """A test of an installed server imports a few modules of the kit, and no server."""
    code = "import sys, tangram.testing.run.process; print(*sorted(m for m in sys.modules if 'tangram' in m))"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )

    names = ("checks", "checks.census", "fakes", "fakes.ports", "run", "run.nursery", "run.process")
    kit = {f"tangram.testing.{name}" for name in names}
    package = {"tangram", "tangram.server_factory", "tangram.testing", "tangram.version"}
    assert set(ended.stdout.split()) - package == kit
