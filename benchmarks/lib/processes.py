"""Processes of a benchmark: build, start, pin, measure and end them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
TICKS = os.sysconf("SC_CLK_TCK")

CPUS = sorted(os.sched_getaffinity(0))
SERVER_CPU = str(CPUS[0])
LOAD_CPUS = ",".join(map(str, CPUS[1:] or CPUS))
"""The measured server has a processor of its own if the machine has two, so that the scheduler does not move
it."""

GIVE_UP = 30.0
"""Seconds for a process to become ready or to end."""

NOT_COUNTED = ("valkey", "redis")
"""Names of broker processes, which are not measured if they are children of a server."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def build(name: str) -> Path:
    """Compile ``benchmarks/c/NAME.c``, unless a program of the same sources exists."""
    source = ROOT / "benchmarks" / "c" / f"{name}.c"
    texts = (path.read_bytes() for path in (source, source.with_name("common.h")))
    program = CACHE / "bench" / f"{name}-{sha256(b''.join(texts)).hexdigest()[:12]}"
    if not program.exists():
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            sys.exit("the benchmarks need a C compiler: install gcc or clang")
        program.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([compiler, "-O2", "-o", str(program), str(source)], check=True)
    return program


def pinned(command: Sequence[str], cpus: str) -> list[str]:
    taskset = shutil.which("taskset")
    return [taskset, "-c", cpus, *command] if taskset else list(command)


def make_environment(name: str, *packages: str) -> Path:
    """Create a virtual environment under .cache with *packages*, once; return its Python."""
    folder = CACHE / name
    python = folder / "bin" / "python"
    stamp = folder / ".installed"
    wanted = " ".join(packages)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing {wanted} into {folder.relative_to(ROOT)}", flush=True)
    try:
        _install(folder, python, packages)
    except subprocess.CalledProcessError as error:
        raise NotInstalled(f"{wanted} cannot be installed: {error}") from error
    stamp.write_text(wanted)
    return python


class NotInstalled(Exception):
    """A server to compare with cannot be installed: no network, or no such Python."""


def _install(folder: Path, python: Path, packages: Sequence[str]) -> None:
    # With the pip of this environment: some Pythons have no ensurepip.
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", *packages], check=True)


def keep_off() -> None:
    """Pin this process to the other processors, because its work is load."""
    os.sched_setaffinity(0, set(CPUS[1:]) or set(CPUS))


class Process:
    """A server process, ended with its context."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cpus: str = SERVER_CPU,
        environ: Mapping[str, str] | None = None,
        log: Path | None = None,
        pipes: bool = False,
    ) -> None:
        self.log = log
        self._command = pinned(command, cpus)
        self._environ = environ
        self._pipes = pipes
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        out = self.log.open("ab") if self.log is not None else None
        pipes = self._pipes
        process = subprocess.Popen(
            self._command,
            env=dict(self._environ) if self._environ is not None else None,
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else out or subprocess.DEVNULL,
            stderr=out or (None if pipes else subprocess.DEVNULL),
            text=True,
        )
        if out is not None:
            out.close()
        return process

    def restart(self, signal: int) -> None:
        """End the process by a signal, and start it again at once."""
        self._process.send_signal(signal)
        self._process.wait(GIVE_UP)
        self._process = self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def read_line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with status {self._process.wait(GIVE_UP)}")
        return line

    def read_json(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.read_line())
        return answer

    def write_line(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def end(self) -> None:
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(GIVE_UP)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(GIVE_UP)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


@contextmanager
def running(process: Process) -> Iterator[Process]:
    try:
        yield process
    finally:
        process.end()


def below(pid: int) -> list[int]:
    """Yield a process and all its descendants."""
    found = [pid]
    for it in found:
        with suppress(OSError):
            for task in Path(f"/proc/{it}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process and its descendants, without brokers."""
    total = 0.0
    for it in below(pid):
        with suppress(OSError):
            stat = Path(f"/proc/{it}/stat").read_text()
            name = stat[stat.index("(") + 1 : stat.rindex(")")]
            fields = stat.rpartition(")")[2].split()
            if not name.startswith(NOT_COUNTED):
                # The clock counts nanoseconds, those of ended threads, too. Children that were waited for are
                # counted in ticks of 10 ms.
                total += time.clock_gettime(_cpu_clock(it)) + sum(map(int, fields[13:15])) / TICKS
    return total


def _cpu_clock(pid: int) -> int:
    """Return the id of a process's CPU clock, as ``clock_getcpuclockid`` makes it on Linux."""
    return ~pid << 3 | 2


def memory_bytes(pid: int) -> int:
    """Return the proportional set size of a process and its descendants, without brokers."""
    total = 0
    for it in below(pid):
        with suppress(OSError):
            if Path(f"/proc/{it}/comm").read_text().startswith(NOT_COUNTED):
                continue
            for line in Path(f"/proc/{it}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def busy_share(seconds: float = 1.0) -> float:
    """Return the share of all processors that is in use now, from 0 to 1."""

    def look() -> tuple[int, int]:
        fields = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]))
        return sum(fields), fields[3] + fields[4]

    total, idle = look()
    time.sleep(seconds)
    total_now, idle_now = look()
    return 1 - (idle_now - idle) / max(total_now - total, 1)


def wait_quiet(pid: int, *, at_most: float = 4.0) -> None:
    """Return once the server is idle, or after *at_most* seconds."""
    until = time.monotonic() + at_most
    before = cpu_seconds(pid)
    while time.monotonic() < until:
        time.sleep(0.15)
        now = cpu_seconds(pid)
        if now - before <= 0.02:
            return
        before = now


def wait_for_port(port: int, process: Process) -> None:
    until = time.monotonic() + GIVE_UP
    while time.monotonic() < until:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if not process.running:
            break
        time.sleep(0.02)
    told = process.log.read_text()[-2000:] if process.log is not None else ""
    sys.exit(f"no server came up on port {port}\n{told}")


class Valkey(Process):
    """A broker for one server."""

    def __init__(self, folder: Path) -> None:
        from tangram.broker.embedded import find_server, server_arguments

        self.port = free_port()
        self.socket = folder / f"valkey-{self.port}.sock"
        super().__init__(
            [*server_arguments(find_server(), self.port), "--unixsocket", str(self.socket)],
            cpus=LOAD_CPUS,
            log=folder / f"valkey-{self.port}.log",
        )
        wait_for_port(self.port, self)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"
