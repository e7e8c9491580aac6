"""Runs ``python -m tangram serve`` as a process of its own, and looks at it from outside.

Each server has a folder, a port and a broker of its own. Nothing here imports tangram: what is tested is what
was installed, or lies on the path.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import trio

from .prepare import PHOENIX, ROOT, find_phoenix

PLUGINS = Path(__file__).parent / "plugins"
T = TypeVar("T")

READY_WITHIN = 20.0  # seconds; a second is promised, but here many processes may share a slow machine
STOP_WITHIN = 15.0  # seconds; shutdown_timeout is 10.0 by default
CONTROL = re.compile(r"\x1b\[[0-9;]*m")


def free_port() -> int:
    """A port that nobody uses now; it stays the server's own over restarts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def write_plugin(folder: Path, name: str, source: str, *, entry_point: str = "plugin") -> None:
    """A plugin as if it were installed: its module, and the metadata by which its entry point is found."""
    (folder / f"{name}.py").write_text(source)
    write_metadata(folder, name, f"{name}:{entry_point}")


def write_metadata(folder: Path, name: str, value: str) -> None:
    metadata = folder / f"{name}-0.1.0.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text(f"[tangram.plugins]\n{name} = {value}\n")


def _install_examples(folder: Path) -> list[Path]:
    """What to put on the path, so that the examples are found where ``make`` has not installed them."""
    paths = []
    for project in (ROOT / "examples").glob("*/pyproject.toml"):
        (package,) = (project.parent / "src").glob("tangram_*")
        try:
            importlib.metadata.distribution(package.name)
        except importlib.metadata.PackageNotFoundError:
            write_metadata(folder, package.name, f"{package.name}:plugin")
            paths.append(package.parent)
    return paths


def _phoenix() -> str:
    paths = ", ".join(
        f"{json.dumps(version)} = {json.dumps(str(find_phoenix(version)))}" for version in PHOENIX
    )
    return f"phoenix = {{ {paths} }}"


@dataclass
class Home:
    """A folder that stands for a user's machine: its configuration, its state, its installed plugins."""

    folder: Path
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.site = self.folder / "site"
        self.site.mkdir(parents=True, exist_ok=True)
        write_metadata(self.site, "tangram_e2e", "tangram_e2e:plugin")
        self._path = [self.site, PLUGINS, ROOT / "src", *_install_examples(self.site)]
        self.config = self.folder / "tangram.toml"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environ(self) -> dict[str, str]:
        """Nothing of the developer's own: an empty environment, but for where Python and the programs are."""
        own = {
            name: str(self.folder / name.lower())
            for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
        }
        path = os.pathsep.join(str(item) for item in self._path)
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "PYTHONPATH": path,
            "PYTHONUNBUFFERED": "1",
            **own,
        }

    def configure(self, plugins: Sequence[str] = (), extra: str = "", core: str = "") -> None:
        """Write the configuration: *core* goes on in ``[core]``, *extra* stands after it."""
        self.config.write_text(
            f"[core]\nplugins = {json.dumps(list(plugins))}\n{core}\n"
            f'[server]\nhost = "127.0.0.1"\nport = {self.port}\n\n[broker]\nport = 0\n\n{extra}\n'
            f"[plugins.tangram_e2e]\n{_phoenix()}\n"
        )

    def command(self, *arguments: str) -> list[str]:
        serve = ("serve", "--config", str(self.config), "--log-format", "json")
        return [sys.executable, "-m", "tangram", *(arguments or serve)]


@dataclass
class Server:
    """One running process."""

    home: Home
    process: trio.Process
    out: list[str] = field(default_factory=list)
    """Lines of standard output, without colours."""
    err: list[str] = field(default_factory=list)
    """Lines of standard error, without colours."""
    _news: trio.Event = field(default_factory=trio.Event)

    @property
    def url(self) -> str:
        return self.home.url

    @property
    def lines(self) -> list[str]:
        return [*self.out, *self.err]

    @property
    def records(self) -> list[dict[str, Any]]:
        """The log as it is so far."""
        return [json.loads(line) for line in self.err if line.startswith("{")]

    def events(self, event: str, **values: object) -> list[dict[str, Any]]:
        """The records of one kind, with these values."""
        wanted = {"event": event, **values}
        return [record for record in self.records if wanted.items() <= record.items()]

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    async def wait_line(self, pattern: str, *, within: float = READY_WITHIN, times: int = 1) -> re.Match[str]:
        """The *times*-th line in which *pattern* is found; if the process ends before, its whole log."""
        wanted = re.compile(pattern)
        with trio.move_on_after(within):
            while True:
                found = [match for line in self.lines if (match := wanted.search(line))]
                if len(found) >= times:
                    return found[times - 1]
                if self.process.returncode is not None:
                    break
                await self._news.wait()
        raise AssertionError(
            f"{pattern!r} was not logged {times} times (exit {self.process.returncode}):\n{self.log}"
        )

    async def wait_ready(self, *, times: int = 1) -> str:
        """The URL that the log names."""
        line = (await self.wait_line("tangram ready", times=times)).string
        return str(json.loads(line)["url"]).rstrip("/")

    async def wait_end(self, *, within: float = STOP_WITHIN) -> int:
        with trio.move_on_after(within):
            return await self.process.wait()
        raise AssertionError(f"the server did not end within {within} s:\n{self.log}")

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.wait_end()

    def children(self) -> list[psutil.Process]:
        """All processes below it."""
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def broker(self) -> psutil.Process:
        (found,) = [it for it in self.children() if it.name() in {"valkey-server", "redis-server"}]
        return found

    async def get(self, path: str, **options: Any) -> Any:
        """The JSON of a GET that must succeed."""
        async with httpx.AsyncClient(base_url=self.url, timeout=10) as client:
            answer = await client.get(path, **options)
            answer.raise_for_status()
            return answer.json()

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.url, timeout=10) as client:
            return await client.request(method, path, **options)

    async def child(self, *names: str) -> Mapping[str, Any]:
        """One child of the tree, as ``/-/supervision`` tells it, by its path of names; "" stands for any."""
        return find_child((await self.get("/-/supervision"))["tree"], *names)


def is_alive(process: psutil.Process) -> bool:
    """Whether it still does anything; one that ended and that nobody has asked about yet does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def wait_gone(processes: Sequence[psutil.Process], *, within: float = 2.0) -> None:
    """Until none of them is alive: a guard ends a moment after what it guards."""

    async def gone() -> bool:
        return not any(map(is_alive, processes))

    await wait_until(gone, within=within)


def find_child(supervisor: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """The first child called *names[-1]* below ones called as those before it."""
    found = list(_find(supervisor, list(names)))
    assert found, f"no child {names} in {json.dumps(supervisor, indent=1)[:4000]}"
    return found[0]


def _find(supervisor: Mapping[str, Any], names: list[str]) -> list[Mapping[str, Any]]:
    found = []
    for child in supervisor.get("children", ()):
        rest = names[1:] if child["name"] == names[0] else names
        if not rest:
            found.append(child)
        for nested in child.get("nested") or ():
            found += _find(nested, rest or names)
    return found


async def _read_lines(stream: trio.abc.ReceiveStream, lines: list[str], server: Server) -> None:
    rest = b""
    async for chunk in stream:
        *whole, rest = (rest + chunk).split(b"\n")
        lines.extend(CONTROL.sub("", line.decode(errors="replace")) for line in whole)
        server._news.set()
        server._news = trio.Event()
    server._news.set()
    server._news = trio.Event()


@asynccontextmanager
async def open_process(
    home: Home, *arguments: str, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Server]:
    """The process, not waited for; whatever happens, it and all below it are gone afterwards."""
    process = await trio.lowlevel.open_process(
        home.command(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**home.environ, **(environ or {})},
        cwd=home.folder,
        start_new_session=True,
    )
    server = Server(home, process)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read_lines, process.stdout, server.out, server)
            nursery.start_soon(_read_lines, process.stderr, server.err, server)
            try:
                yield server
            finally:
                with trio.CancelScope(shield=True):
                    await _end(process)
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The nursery is the harness's: a test that failed shows its own error, not the wrapping.
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from None


async def _end(process: trio.Process) -> None:
    below = psutil.Process(process.pid).children(recursive=True) if process.returncode is None else []
    if process.returncode is None:
        process.terminate()
        with trio.move_on_after(STOP_WITHIN):
            await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
    for left in below:
        if left.is_running():
            left.kill()


@asynccontextmanager
async def open_server(
    home: Home, *plugins: str, extra: str = "", core: str = "", environ: Mapping[str, str] | None = None
) -> AsyncIterator[Server]:
    """A server with *plugins* enabled, and ready."""
    home.configure(plugins, extra, core)
    async with open_process(home, environ=environ) as server:
        url = await server.wait_ready()
        assert url == home.url
        yield server


async def run_tangram(home: Home, *arguments: str, within: float = READY_WITHIN) -> Server:
    """Run it to its end, for what must not start at all."""
    async with open_process(home, *arguments) as server:
        await server.wait_end(within=within)
        await trio.sleep(0.05)  # the last lines are read after the end is known
        return server


async def wait_until(look: Callable[[], Awaitable[T]], *, within: float = 10.0, every: float = 0.02) -> T:
    """What *look* answers once that is true; a connection that is refused or lost counts as not yet."""
    last: object = None
    with trio.move_on_after(within):
        while True:
            try:
                if answer := await look():
                    return answer
                last = answer
            except (httpx.TransportError, httpx.HTTPStatusError, AssertionError) as error:
                last = error
            await trio.sleep(every)
    raise AssertionError(f"{look} was not true within {within} s; last: {last!r}")
