"""Servers in processes of their own, with the plugin and tools of the end-to-end tests.

The tools are the examples, phoenix.js, and psutil for the processes below a server. The test process imports
nothing of the server, so that the installed distribution, or the one on the path, is tested.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import trio

from tangram.testing import free_port
from tangram.testing.checks.census import start_time
from tangram.testing.run import process
from tests.e2e.prepare import PHOENIX, ROOT, find_phoenix

__all__ = [
    "Home",
    "Server",
    "find_child",
    "free_port",
    "is_alive",
    "open_process",
    "open_server",
    "run_tangram",
    "wait_gone",
    "wait_until",
    "write_metadata",
    "write_plugin",
]

PLUGINS = Path(__file__).parent / "plugins"
T = TypeVar("T")

READY_WITHIN = process.READY_SECONDS

LONG = 60.0
"""Seconds after which a wait for a process has failed. They end a hang, on a machine that is busy with other
tests.
"""


def write_plugin(folder: Path, name: str, source: str, *, entry_point: str = "plugin") -> None:
    """Write a plugin as if it were installed: its module and its entry point metadata."""
    (folder / f"{name}.py").write_text(source)
    write_metadata(folder, name, f"{name}:{entry_point}")


def write_metadata(folder: Path, name: str, value: str) -> None:
    metadata = folder / f"{name}-0.1.0.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text(f"[tangram.plugins]\n{name} = {value}\n")


def _install_examples(folder: Path) -> list[Path]:
    """Return the folder that makes the examples importable if ``make`` has not installed them."""
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
class Home(process.Home):
    """A user's machine with our plugin for these tests, and the examples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        write_metadata(self.site, "tangram_e2e", "tangram_e2e:plugin")
        self.path = [self.site, PLUGINS, ROOT / "src", *_install_examples(self.site)]

    def configure(self, plugins: Sequence[str] = (), extra: str = "", core: str = "") -> None:
        super().configure(plugins, f"{extra}\n[plugins.tangram_e2e]\n{_phoenix()}\n", core)


@dataclass
class Server(process.RunningProcess):
    """One running process."""

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send one HTTP request; reads below ``/-/`` carry the operator's token, for the details."""
        token = self.home.state / "operator-token"
        if path.startswith("/-/") and method == "GET" and token.exists():
            options = {"headers": {"authorization": f"Bearer {token.read_text().strip()}"}, **options}
        return await super().request(method, path, **options)

    def children(self) -> list[psutil.Process]:
        """All processes below it."""
        self.look_below()
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def broker(self) -> psutil.Process:
        (found,) = [it for it in self.children() if it.name() in {"valkey-server", "redis-server"}]
        return found

    async def child(self, *names: str) -> Mapping[str, Any]:
        """Return one child of ``/-/supervision`` by its path of names; "" matches any name."""
        return find_child((await self.get("/-/supervision"))["tree"], *names)


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process still runs; a zombie without a thread does not."""
    return process.is_running() and start_time(process.pid) is not None


async def wait_gone(processes: Sequence[psutil.Process], *, within: float = process.GONE_SECONDS) -> None:
    """Wait until none of the processes runs; a guard ends a moment after its broker."""

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


@asynccontextmanager
async def open_process(
    home: process.Home,
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    but: Mapping[str, str] | None = None,
) -> AsyncIterator[Server]:
    """Start a process; at the end of the block it and all its descendants are killed."""
    async with process.open_process_as(Server, home, *arguments, environ=environ, but=but) as server:
        yield server


@asynccontextmanager
async def open_server(
    home: process.Home,
    *plugins: str,
    extra: str = "",
    core: str = "",
    environ: Mapping[str, str] | None = None,
    but: Mapping[str, str] | None = None,
) -> AsyncIterator[Server]:
    """A server with *plugins* enabled, and ready."""
    home.configure(plugins, extra, core)
    async with open_process(home, environ=environ, but=but) as server:
        url = await server.wait_ready()
        assert url == home.url
        yield server


async def run_tangram(home: Home, *arguments: str, within: float = READY_WITHIN) -> Server:
    """Run a server to its end, for configurations that must not start."""
    async with open_process(home, *arguments) as server:
        await server.wait_end(within=within)
    return server


async def wait_until(look: Callable[[], Awaitable[T]], *, within: float = LONG, every: float = 0.02) -> T:
    """Poll *look* until it returns a true value; a refused or lost connection counts as false."""
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
