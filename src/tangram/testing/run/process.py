"""A server as users run it: ``python -m tangram serve``, observed from outside.

This module imports nothing of the server. It tests the package that is installed for `Home.python`, or
that lies on `Home.path`.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from tangram.testing.checks.census import descendants, start_time
from tangram.testing.fakes.ports import HOST, free_port, is_listening, listeners
from tangram.testing.run.nursery import open_unwrapped_nursery

if TYPE_CHECKING:
    import httpx

__all__ = ["ANY_PROCESS", "Home", "RunningProcess", "open_process", "open_process_as", "run_process"]

READY_SECONDS: Final = 60.0
"""Seconds for a start: one second is promised, but many processes may share a slow machine. The bound ends a
hang, and measures nothing.
"""

STOP_SECONDS: Final = 15.0
"""Seconds for a stop: ``[supervisor] shutdown_timeout`` is 10 s by default, and this is half of it again."""

ANSWER_SECONDS: Final = 60.0
"""Seconds for an answer to `RunningProcess.request`: a bound that ends a hang."""

KILL_SECONDS: Final = 10.0
"""Seconds for the end after SIGKILL, which is immediate unless the kernel holds the process."""

GONE_SECONDS: Final = 10.0
"""Seconds for descendants of an ended process, and for its port: a broker's guard ends a moment after its
process. A slow machine may take longer than a moment to run it.
"""

LAST_WORDS_SECONDS: Final = 5.0
"""Seconds for reading the last lines of a process that has ended: a descendant may keep its output open."""

LOOK_EVERY: Final = 0.02
"""Seconds between two polls of other processes."""

ANY_PROCESS: Final = ("stops_within_bound", "nothing_left_alive", "no_traceback", "no_secret_in_logs")
"""Invariants of every server process: it ends in time, leaves no process and no listener, and logs neither
a traceback of an uncaught exception nor a secret.
"""

_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")
_TRACEBACK: Final = "Traceback (most recent call last):"
_SECRET_LENGTH: Final = 16
"""Shorter contents of a state folder are no secrets."""


@dataclass
class Home:
    """A folder that stands for a user's machine: configuration, state, installed plugins.

    Example:
        home = Home(tmp_path)
        home.install("my_plugin", SOURCE)
        home.configure(["my_plugin"])
        async with open_process(home) as server:
            await server.wait_ready()
    """

    folder: Path
    port: int = field(default_factory=free_port)
    """The server's port, over all its restarts."""

    def __post_init__(self) -> None:
        self.site = self.folder / "site"
        self.site.mkdir(parents=True, exist_ok=True)
        self.config = self.folder / "tangram.toml"
        self.python: Path | str = sys.executable
        self.path: list[Path | str] = [self.site, *filter(None, sys.path)]
        """Places that its Python searches first."""

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``."""
        return f"http://{HOST}:{self.port}"

    @property
    def state(self) -> Path:
        """Return the folder in which the server keeps its secrets."""
        return self.folder / "xdg_state_home" / "tangram"

    @property
    def environ(self) -> dict[str, str]:
        """Return an environment without the developer's own settings.

        Only the places of Python and programs are kept.
        """
        own = {
            name: str(self.folder / name.lower())
            for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
        }
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.folder),
            "PYTHONPATH": os.pathsep.join(map(str, self.path)),
            "PYTHONUNBUFFERED": "1",
            **own,
        }

    def install(self, name: str, source: str, *, entry_point: str = "plugin") -> None:
        """Install a plugin as pip would: the module, and the metadata by which it is found.

        Args:
            name: of the module and the distribution.
            source: text of the module.
            entry_point: name of the plugin object in it.
        """
        (self.site / f"{name}.py").write_text(source)
        self.announce(name, f"{name}:{entry_point}")

    def announce(self, name: str, value: str, *, group: str = "tangram.plugins") -> None:
        """Write the metadata of a distribution ``name`` with one entry point."""
        metadata = self.site / f"{name}-0.1.0.dist-info"
        metadata.mkdir(parents=True, exist_ok=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
        (metadata / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")

    def configure(self, plugins: Sequence[str] = (), extra: str = "", core: str = "") -> None:
        """Write the configuration file.

        Args:
            plugins: names for ``[core] plugins``.
            extra: further tables, at the end of the file.
            core: further lines of ``[core]``.
        """
        self.config.write_text(
            f"[core]\nplugins = {json.dumps(list(plugins))}\n{core}\n"
            f'[server]\nhost = "{HOST}"\nport = {self.port}\n\n[broker]\nport = 0\n\n{extra}\n'
        )

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of ``python -m tangram ARGUMENTS``.

        Without arguments it serves the configuration and logs JSON.
        """
        serve = ("serve", "--config", str(self.config), "--log-format", "json")
        return [str(self.python), "-m", "tangram", *(arguments or serve)]

    def secrets(self) -> list[str]:
        """Return the contents of the state folder that the server must not log."""
        kept = [path for path in self.state.glob("*") if path.is_file()]
        found = [path.read_text(errors="replace").strip() for path in kept]
        return [text for text in found if len(text) >= _SECRET_LENGTH]


@dataclass
class RunningProcess:
    """One process of a server, running or ended; made by `open_process`."""

    home: Home
    process: trio.Process
    out: list[str] = field(default_factory=list)
    """Lines of standard output, without colours."""
    err: list[str] = field(default_factory=list)
    """Lines of standard error, without colours."""
    below: dict[int, str] = field(default_factory=dict)
    """Every descendant process seen so far, and its name."""
    born: dict[int, str] = field(default_factory=dict)
    """Start time of each of them: an id may be reused, and a name changes soon after the start."""
    _news: trio.Event = field(default_factory=trio.Event)
    _unread: int = 2
    """Outputs whose end has not been read."""

    @property
    def url(self) -> str:
        """Return the URL of the server."""
        return self.home.url

    @property
    def lines(self) -> list[str]:
        """Return every line of both outputs so far."""
        return [*self.out, *self.err]

    @property
    def log(self) -> str:
        """Return both outputs so far as one text."""
        return "\n".join(self.lines)

    @property
    def records(self) -> list[dict[str, Any]]:
        """Return the log records so far, of a process that logs JSON."""
        return [json.loads(line) for line in self.err if line.startswith("{")]

    def events(self, event: str, **values: object) -> list[dict[str, Any]]:
        """Return the log records of one event that have these values."""
        wanted = {"event": event, **values}
        return [record for record in self.records if wanted.items() <= record.items()]

    async def wait_line(
        self, pattern: str, *, within: float = READY_SECONDS, times: int = 1
    ) -> re.Match[str]:
        """Wait for the ``times``-th line that matches ``pattern``, and return the match.

        Raises:
            AssertionError: it did not come within ``within`` seconds, or the process ended; with all
                output.
        """
        wanted = re.compile(pattern)
        with trio.move_on_after(within):
            while True:
                ended = self.process.returncode is not None
                if ended:
                    await self._wait_last_words()
                found = [match for line in self.lines if (match := wanted.search(line))]
                if len(found) >= times:
                    return found[times - 1]
                if ended:
                    break
                await self._news.wait()
        raise AssertionError(
            f"{pattern!r} was not logged {times} times (exit {self.process.returncode}):\n{self.log}"
        )

    async def wait_ready(self, *, times: int = 1) -> str:
        """Wait until the server is ready for the ``times``-th time; return the URL in its log."""
        line = (await self.wait_line("tangram ready", times=times)).string
        self.look_below()
        return str(json.loads(line)["url"]).rstrip("/")

    async def wait_end(self, *, within: float = STOP_SECONDS) -> int:
        """Wait for the end of the process, read its output to the end, and return its exit status.

        Raises:
            AssertionError: it did not end within ``within`` seconds; with all output.
        """
        with trio.move_on_after(within):
            await self.process.wait()
        if self.process.returncode is None:
            raise AssertionError(f"the server did not end within {within} s:\n{self.log}")
        await self._wait_last_words()
        return self.process.returncode

    async def _wait_last_words(self) -> None:
        """Wait until the output of the ended process is read: it may end before its output is."""
        with trio.move_on_after(LAST_WORDS_SECONDS):
            while self._unread:
                await self._news.wait()

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal, unless it has ended."""
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the process a signal, wait for its end, and return its exit status."""
        self.look_below()
        self.send(number)
        return await self.wait_end()

    def look_below(self) -> dict[int, str]:
        """Return the descendant processes of now, by id, with their names; remember them."""
        now = dict(descendants(self.process.pid)) if self.process.returncode is None else {}
        self.below.update(now)
        self.born |= {pid: when for pid in now if pid not in self.born and (when := start_time(pid))}
        return now

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send one HTTP request and return the response."""
        import httpx

        async with httpx.AsyncClient(base_url=self.url, timeout=ANSWER_SECONDS) as client:
            return await client.request(method, path, **options)

    async def get(self, path: str, **options: Any) -> Any:
        """Return the JSON of a GET request that must succeed."""
        answer = await self.request("GET", path, **options)
        answer.raise_for_status()
        return answer.json()

    async def read(self, stream: trio.abc.ReceiveStream, lines: list[str]) -> None:
        """Keep the lines of one output; `open_process` runs this."""
        rest = b""
        async for chunk in stream:
            *whole, rest = (rest + bytes(chunk)).split(b"\n")
            lines.extend(_COLOURS.sub("", line.decode(errors="replace")) for line in whole)
            self._notify()
        if rest:
            lines.append(_COLOURS.sub("", rest.decode(errors="replace")))
        self._unread -= 1
        self._notify()

    def _notify(self) -> None:
        self._news.set()
        self._news = trio.Event()


P = TypeVar("P", bound=RunningProcess)


@asynccontextmanager
async def open_process(
    home: Home,
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    but: Mapping[str, str] | None = None,
) -> AsyncIterator[RunningProcess]:
    """Run ``python -m tangram ARGUMENTS`` for the block, and check it at its end.

    The start is not waited for. Where it still runs at the end of the block it gets SIGTERM, and later
    SIGKILL. In every case it and all descendants that were seen are gone afterwards.

    Args:
        home: its configuration and its folders.
        arguments: of ``python -m tangram``; without any it serves.
        environ: added to ``home.environ``.
        but: names of `ANY_PROCESS` that this test breaks on purpose, each with the reason.

    Raises:
        InvariantBroken: the block ended well, but the process broke one of `ANY_PROCESS`.
        ValueError: ``but`` has another name.
    """
    async with open_process_as(RunningProcess, home, *arguments, environ=environ, but=but) as server:
        yield server


async def run_process(home: Home, *arguments: str, within: float = READY_SECONDS) -> RunningProcess:
    """Run the process to its end, for a server that must not start.

    Raises:
        AssertionError: it did not end within ``within`` seconds.
        InvariantBroken: as of `open_process`.
    """
    async with open_process(home, *arguments) as server:
        await server.wait_end(within=within)
    return server


@asynccontextmanager
async def open_process_as(
    kind: Callable[[Home, trio.Process], P],
    home: Home,
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    but: Mapping[str, str] | None = None,
) -> AsyncIterator[P]:
    """Run `open_process` with a subclass of `RunningProcess`."""
    without = but or {}
    if unknown := without.keys() - set(ANY_PROCESS):
        raise ValueError(f"no invariant {sorted(unknown)!r}: expected some of {', '.join(ANY_PROCESS)}")
    taken = is_listening(home.port)
    environment = {**home.environ, **(environ or {})}
    lives_in = f"HOME={environment.get('HOME', '')}"
    process = await trio.lowlevel.open_process(
        home.command(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=home.folder,
        start_new_session=True,
    )
    server = kind(home, process)
    broken: list[tuple[str, str]] = []
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with open_unwrapped_nursery() as nursery:
            nursery.start_soon(server.read, process.stdout, server.out)
            nursery.start_soon(server.read, process.stderr, server.err)
            try:
                yield server
            finally:
                # Each step has a deadline of its own, after which the process is killed.
                most = STOP_SECONDS + KILL_SECONDS + 2 * GONE_SECONDS + LAST_WORDS_SECONDS
                with trio.CancelScope(shield=True, deadline=trio.current_time() + most):
                    broken += await _end(server)
                    if not taken and (left := await _left_listener(home.port, lives_in)):
                        broken.append(("nothing_left_alive", left))
                nursery.cancel_scope.deadline = trio.current_time() + LAST_WORDS_SECONDS
    finally:
        # A cancelled block leaves both pipes unread; the descriptors must not outlive it.
        with trio.move_on_after(LAST_WORDS_SECONDS, shield=True):
            await process.stdout.aclose()
            await process.stderr.aclose()
    broken += _forbidden_output(server)
    _judge([one for one in broken if one[0] not in without])


async def _end(server: RunningProcess) -> list[tuple[str, str]]:
    """End the process and its descendants; return the invariants that it broke."""
    broken: list[tuple[str, str]] = []
    process = server.process
    server.look_below()
    if process.returncode is None:
        process.terminate()
        with trio.move_on_after(STOP_SECONDS):
            await process.wait()
    if process.returncode is None:
        broken.append(("stops_within_bound", f"it did not end within {STOP_SECONDS:g} s of SIGTERM"))
        process.kill()
        with trio.move_on_after(KILL_SECONDS):
            await process.wait()
    if process.returncode is None:
        broken.append(("nothing_left_alive", f"it is alive {KILL_SECONDS:g} s after SIGKILL"))
    if left := await _survivors(server.born):
        names = ", ".join(f"{server.below[pid]} (process {pid})" for pid in left)
        broken.append(("nothing_left_alive", f"it has ended, but descendants are alive: {names}"))
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return broken


async def _survivors(seen: Mapping[int, str]) -> list[int]:
    """Return the processes that go on although they were given time to end."""
    with trio.move_on_after(GONE_SECONDS):
        while any(start_time(pid) == when for pid, when in seen.items()):  # noqa: ASYNC110 - no event for processes of others
            await trio.sleep(LOOK_EVERY)
    return [pid for pid, when in seen.items() if start_time(pid) == when]


async def _left_listener(port: int, lives_in: str) -> str:
    """Return a description of a listener that was given time to end, or an empty string."""
    holders: set[int] = set()
    with trio.move_on_after(GONE_SECONDS):
        while is_listening(port):
            sockets = listeners(port).values()
            holders = set().union(*sockets)
            if sockets and all(pids and all(_is_foreign(pid, lives_in) for pid in pids) for pids in sockets):
                return ""
            await trio.sleep(LOOK_EVERY)
        return ""
    processes = ", ".join(map(str, sorted(holders))) or "no process that can be seen"
    return f"its port {port} is still listened on (by {processes})"


def _is_foreign(pid: int, lives_in: str) -> bool:
    """Return whether a process has another home than a server, and is not this process.

    Such a process belongs to another test, which was given the port when this server had freed it. Each
    process that cannot be read, or has no home, counts as the server's own.
    """
    with suppress(OSError):
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        homes = {os.fsdecode(entry) for entry in entries if entry.startswith(b"HOME=")}
        return pid != os.getpid() and bool(homes) and lives_in not in homes
    return False


def _forbidden_output(server: RunningProcess) -> Iterator[tuple[str, str]]:
    """Yield output that a server must not print.

    Tracebacks inside records of the log are allowed: their errors were caught.
    """
    for number, line in enumerate(server.lines):
        if line.startswith(_TRACEBACK):
            rest = "\n".join(server.lines[number:])
            yield "no_traceback", f"it printed a traceback:\n{rest}"
            break
    for secret in server.home.secrets():
        for line in server.lines:
            if secret in line:
                yield "no_secret_in_logs", f"it printed a secret: {line.replace(secret, '...')}"


def _judge(broken: list[tuple[str, str]]) -> None:
    if broken:
        # Imported here, because it imports parts of the server.
        invariants = importlib.import_module("tangram.testing.checks.invariants")
        raise invariants.InvariantBroken([invariants.Broken(*one) for one in broken])
