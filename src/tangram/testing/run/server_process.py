"""A server in a process of its own, with one plugin: for faults after which a process ends.

Nothing but this process, and the broker that it starts, is ever touched.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from tangram.testing.fakes.ports import free_port

__all__ = ["ServerProcess", "open_server_process"]

READY_SECONDS = 30.0
"""For a start on a machine that is busy: a start takes about a second."""

KILL_SECONDS = 5.0
"""For a process to be gone after SIGKILL."""

PLUGIN = "tangram_chaos_plugin"
_CONTROL = re.compile(r"\x1b\[[0-9;]*m")


class ServerProcess:
    """``python -m tangram serve``, seen from outside."""

    def __init__(self, process: trio.Process, port: int, token: Path) -> None:
        self.host = "127.0.0.1"
        self.port = port
        self.lines: list[str] = []
        """What it has said so far, on both of its outputs."""
        self._process = process
        self._token = token
        self._broker: int | None = None
        self._news = trio.Event()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has said so far, as one text."""
        return "\n".join(self.lines)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def kill_broker(self) -> None:
        """SIGKILL to its broker."""
        assert self._broker is not None
        os.kill(self._broker, signal.SIGKILL)

    def broker_is_alive(self) -> bool:
        """Whether its broker still runs; a zombie does not."""
        try:
            state = Path(f"/proc/{self._broker}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state != "Z"

    async def wait_line(self, pattern: str, *, times: int = 1, seconds: float = READY_SECONDS) -> str:
        """The ``times``-th line in which the pattern is found.

        Raises:
            AssertionError: it did not come in time, or the process ended before; with all it said.
        """
        wanted = re.compile(pattern)
        with trio.move_on_after(seconds):
            while True:
                found = [line for line in self.lines if wanted.search(line)]
                if len(found) >= times:
                    return found[times - 1]
                if self._process.returncode is not None:
                    break
                await self._news.wait()
        raise AssertionError(f"{pattern!r} was not said {times} times within {seconds:g} s:\n{self.log}")

    async def wait_end(self, seconds: float) -> int:
        """Its exit status.

        Raises:
            AssertionError: it did not end in time; with all it said.
        """
        with trio.move_on_after(seconds):
            return await self._process.wait()
        raise AssertionError(f"the process did not end within {seconds:g} s:\n{self.log}")

    async def supervision(self) -> dict[str, Any]:
        """``/-/supervision``, as the operator sees it."""
        import httpx

        headers = {"authorization": f"Bearer {self._token.read_text().strip()}"}
        async with httpx.AsyncClient(timeout=10.0) as client:
            answer = await client.get(f"http://{self.host}:{self.port}/-/supervision", headers=headers)
        told: dict[str, Any] = answer.json()
        return told

    async def read(self) -> None:
        """Keep what it says, until its end."""
        assert self._process.stdout is not None
        rest = b""
        async for data in self._process.stdout:
            *lines, rest = (rest + bytes(data)).split(b"\n")
            self.lines += [_CONTROL.sub("", line.decode(errors="replace")) for line in lines]
            self._news.set()
            self._news = trio.Event()
        self._news.set()

    def find_broker(self) -> None:
        """Remember the process id of its broker."""
        found = re.search(r'"pid": ?(\d+)', self.log)
        assert found is not None, f"the broker's process was not told:\n{self.log}"
        self._broker = int(found.group(1))

    async def kill(self) -> None:
        """End it, whatever it does; its broker's guard ends the broker."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + KILL_SECONDS):
            if self._process.returncode is None:
                with suppress(ProcessLookupError):
                    self._process.kill()
            await self._process.wait()


def _install(folder: Path, source: str) -> None:
    """The plugin as if it were installed: its module, and the metadata by which it is found."""
    (folder / f"{PLUGIN}.py").write_text(source)
    metadata = folder / f"{PLUGIN}-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PLUGIN}\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[tangram.plugins]\n{PLUGIN} = {PLUGIN}:plugin\n")


def _environment(folder: Path) -> dict[str, str]:
    """Nothing of whoever tests but where Python and its packages are."""
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
    }


@asynccontextmanager
async def open_server_process(
    source: str, tables: Mapping[str, Mapping[str, Any]]
) -> AsyncIterator[ServerProcess]:
    """Serve the plugin whose module is ``source`` in a process of its own; it is ready when the block begins,
    and gone after it.

    Args:
        source: text of a module with a ``plugin``.
        tables: as in ``tangram.toml``; ports and folders are chosen here.
    """
    from tangram.testing.run.setup import toml

    with tempfile.TemporaryDirectory(prefix="tangram-chaos-") as name:
        folder, port = Path(name), free_port()
        _install(folder, source)
        own: dict[str, dict[str, Any]] = {
            "core": {"plugins": [PLUGIN]},
            "server": {"host": "127.0.0.1", "port": port, "state_dir": str(folder / "state")},
            "broker": {"port": 0},
        }
        for table, values in tables.items():
            own[table] = own.get(table, {}) | dict(values)
        config = folder / "tangram.toml"
        config.write_text(toml(own))
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "tangram", "serve", "--config", str(config), "--log-format", "json"],
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        server = ServerProcess(process, port, folder / "state" / "operator-token")
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.read)
                try:
                    await server.wait_line("tangram ready")
                    server.find_broker()
                    yield server
                finally:
                    await server.kill()
                    nursery.cancel_scope.deadline = trio.current_time() + KILL_SECONDS
        finally:
            if process.stdout is not None:
                await trio.aclose_forcefully(process.stdout)
