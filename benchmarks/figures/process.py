"""A server as a process of its own, with a plugin for one measurement."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from benchmarks.figures.common import ROOT

from tangram.testing import free_port

__all__ = ["ServerProcess", "open_process"]


class ServerProcess:
    """A process of ``python -m tangram serve``, and its log."""

    def __init__(self, process: trio.Process, port: int) -> None:
        self.process = process
        self.port = port
        self.log = b""
        self.times: list[tuple[float, bytes]] = []
        self._news = trio.Event()

    async def read(self) -> None:
        """Read the log, each chunk with its time."""
        assert self.process.stderr is not None
        async for chunk in self.process.stderr:
            self.times.append((time.monotonic(), bytes(chunk)))
            self.log += chunk
            self._news.set()
            self._news = trio.Event()

    async def wait_log(self, text: bytes, *, within: float = 20.0) -> None:
        """Wait until ``text`` was logged."""
        with trio.fail_after(within):
            while text not in self.log:
                await self._news.wait()

    async def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[float, int]:
        """End the process; return the seconds that it took, and the exit status."""
        began = time.monotonic()
        self.process.send_signal(number)
        with trio.fail_after(60):
            status = await self.process.wait()
        return time.monotonic() - began, status


@asynccontextmanager
async def open_process(source: str, config: str = "") -> AsyncIterator[ServerProcess]:
    """Start a server with one plugin, ``bench``, whose module is ``source``; wait until ready."""
    with tempfile.TemporaryDirectory(prefix="tangram-bench-") as name:
        folder = Path(name)
        (folder / "tangram_bench.py").write_text(source)
        metadata = folder / "tangram_bench-0.1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tangram_bench\nVersion: 0.1.0\n")
        (metadata / "entry_points.txt").write_text("[tangram.plugins]\nbench = tangram_bench:plugin\n")
        port = free_port()
        (folder / "tangram.toml").write_text(
            f'[core]\nplugins = ["bench"]\n[server]\nport = {port}\nstate_dir = "{folder}/state"\n'
            f"[broker]\nport = 0\n{config}\n"
        )
        process = await trio.lowlevel.open_process(
            [
                sys.executable,
                "-m",
                "tangram",
                "serve",
                "--config",
                str(folder / "tangram.toml"),
                "--log-format",
                "json",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "src")]), "HOME": name},
        )
        server = ServerProcess(process, port)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.read)
            try:
                await server.wait_log(b"tangram ready")
                yield server
            finally:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
            nursery.cancel_scope.cancel()
