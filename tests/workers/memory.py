"""A parent in memory: workers without processes, under a virtual clock."""

from __future__ import annotations

import random
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from tangram.config import LoadedConfig
from tangram.errors import ConfigError, Fault, WorkerEnded
from tangram.http.listeners import HeldSocket
from tangram.workers.handover import Handover, Snapshot
from tangram.workers.parent import Parent, ParentBoot

__all__ = ["Machine", "MemoryWorker"]

START_SECONDS = 0.7
DRAIN_SECONDS = 0.2


@attrs.define(eq=False)
class MemoryWorker:
    """A worker as its parent sees it."""

    machine: Machine
    handover: Handover
    on_end: Callable[[], None]
    ended: trio.Event = attrs.field(factory=trio.Event)
    url: str = ""
    histories: bool = False
    beat_at: float = attrs.field(factory=trio.current_time)
    end: str = ""
    pid: int = 0
    ready: bool = False
    draining: bool = False
    heard: list[object] = attrs.field(factory=list)
    signals: list[signal.Signals] = attrs.field(factory=list)
    _ending: trio.Event = attrs.field(factory=trio.Event)
    _killed: trio.Event = attrs.field(factory=trio.Event)

    @property
    def name(self) -> str:
        return self.handover.name

    @property
    def text(self) -> str:
        return (self.handover.snapshot.text or b"").decode()

    def announce(self, broker: Mapping[str, Any] | None) -> None:
        self.heard.append(broker)

    def replace(self) -> None:
        self.heard.append("replaced")
        self.draining = True
        self._ending.set()

    def signal(self, number: signal.Signals) -> None:
        self.signals.append(number)
        if number == signal.SIGKILL:
            self._killed.set()
        if number in {signal.SIGTERM, signal.SIGKILL, signal.SIGABRT}:
            self.end = "exit status 0" if number == signal.SIGTERM else number.name
            self._ending.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        machine = self.machine
        self.pid = machine.next_pid()
        machine.started.append(self)
        try:
            with trio.move_on_after(START_SECONDS):
                await self._ending.wait()
                raise WorkerEnded(f"ended before it was ready: {self.end}")
            if "# faulty" in self.text:
                raise ConfigError([Fault("expected another word", "plugins.word")])
            if machine.broken_starts > 0:
                machine.broken_starts -= 1
                raise WorkerEnded("ended before it was ready: exit status 1")
            self.url, self.ready = "http://127.0.0.1:1/", True
            self.histories = "# history" in self.text
            task_status.started()
            await self._ending.wait()
            if self.draining and not machine.hangs:
                await trio.sleep(DRAIN_SECONDS)
            elif self.draining:
                await self._killed.wait()
        finally:
            self.ready = False
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await trio.sleep(0.01)
            self.ended.set()
            self.on_end()


class Machine:
    """The surroundings of a parent: a configuration file, and processes."""

    def __init__(self, folder: Path, *, workers: int = 2, seed: int = 0, redis: bool = True) -> None:
        self.folder = folder
        self.started: list[MemoryWorker] = []
        self.broken_starts = 0
        self.hangs = False
        self.environ: dict[str, str] = {}
        self.rng = random.Random(seed)
        self.url: str | None = None
        self.statuses: list[int] = []
        self.held: list[HeldSocket] = []
        self._pid = 100
        self._head = '[core]\nredis_url = "redis://127.0.0.1:1"\n' if redis else ""
        self.write(workers=workers)

    def write(self, *, workers: int = 2, more: str = "") -> None:
        state = f'state_dir = "{self.folder / "state"}"'
        self.text = f"{self._head}[server]\nworkers = {workers}\n{state}\n# {more}\n"

    def read(self) -> tuple[LoadedConfig, Snapshot]:
        snapshot = Snapshot(self.folder / "tangram.toml", self.text.encode(), {})
        return snapshot.load(), snapshot

    def next_pid(self) -> int:
        self._pid += 1
        return self._pid

    @property
    def ready(self) -> list[str]:
        """The names of the workers that take new connections."""
        return [one.name for one in self.started if one.ready and not one.draining]

    @property
    def running(self) -> list[str]:
        return [one.name for one in self.started if not one.ended.is_set()]

    def find(self, name: str) -> MemoryWorker:
        return next(one for one in self.started if one.name == name)

    def _process(
        self,
        handover: Handover,
        descriptors: Sequence[int],
        *,
        stop_seconds: float,
        on_end: Callable[[], None],
    ) -> MemoryWorker:
        assert stop_seconds > 0
        assert len(descriptors) == 2
        return MemoryWorker(self, handover, on_end)

    def _listen(self, _config: object, _environ: object) -> list[HeldSocket]:
        self.held = [HeldSocket(socket.socket(), "127.0.0.1", 1)]
        return self.held

    def parent(self, **more: Any) -> Parent:
        loaded, snapshot = self.read()
        boot = ParentBoot(
            loaded=loaded,
            snapshot=snapshot,
            reload=self.read,
            signals=False,
            environ=self.environ,
            listen=self._listen,
            process=self._process,
            rng=self.rng,
            **more,
        )
        return Parent(boot)

    @asynccontextmanager
    async def run(self, **more: Any) -> AsyncIterator[Parent]:
        """Run a parent; at the end of the block it is stopped, and has left no process."""
        parent = self.parent(**more)
        up = trio.Event()

        def on_first_ready(url: str) -> None:
            self.url = url
            up.set()

        parent.boot = attrs.evolve(parent.boot, on_first_ready=on_first_ready)

        async def run() -> None:
            self.statuses.append(await parent.run())
            up.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await up.wait()
            try:
                yield parent
            finally:
                parent.stop()
        assert self.running == []
