"""The place of one worker, a child of the parent, whose process may be replaced.

1. The child's incarnation ends with the process, and the supervisor decides about the restart.
2. A replacement is not a restart: both processes belong to the same incarnation. The old one is asked to
   stop when the new one is ready. If the new one does not start, the old one goes on.
3. Each process that was started has ended when `WorkerPlace.run` returns.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import structlog
import trio

from tangram.errors import OperatorError, StartTimeout, SupervisionError, TangramError, WorkerEnded
from tangram.groups import unwrap_single
from tangram.workers.process import Worker

__all__ = ["WorkerPlace"]

C = TypeVar("C")
log = structlog.get_logger("tangram.workers")


class _Replacement(Generic[C]):
    def __init__(self, config: C) -> None:
        self.config = config
        self.over = trio.Event()
        self.error: TangramError | None = None


class WorkerPlace(Generic[C]):
    """One place.

    Args:
        number: its number, from 1.
        config: the configuration of its next process.
        make: makes a process that has a configuration.
        limits: returns the seconds for a start, and for the stop of a replaced process.
        on_ready: called with each process that is ready.
    """

    def __init__(
        self,
        number: int,
        config: C,
        make: Callable[[int, C], Worker],
        *,
        limits: Callable[[], tuple[float, float]],
        on_ready: Callable[[Worker], None],
    ) -> None:
        self.number = number
        self.config = config
        """The configuration of its next process."""
        self.current: Worker | None = None
        """The process that serves."""
        self.processes: dict[str, Worker] = {}
        """The processes that have not ended, by name."""
        self._make = make
        self._limits = limits
        self._on_ready = on_ready
        self._request: _Replacement[C] | None = None
        self._retired = self._stopping = False
        self._changed = trio.Event()

    @property
    def child(self) -> str:
        """The name of the child."""
        return f"worker:{self.number}"

    def announce(self, broker: Mapping[str, Any] | None) -> None:
        """Report the broker to every process."""
        for process in self.processes.values():
            process.announce(broker)

    def signal(self, number: signal.Signals) -> None:
        """Send every process a signal."""
        for process in self.processes.values():
            process.signal(number)

    def stop(self) -> None:
        """Let every process stop; the end of the place is no crash any more."""
        self._stopping = True
        self.signal(signal.SIGTERM)

    async def run(self, *, task_status: trio.TaskStatus[str]) -> None:
        """Run the process, and its successors, until one ends by itself, or the place is given up.

        Raises:
            OperatorError: the first process refuses to start because of a mistake of the operator.
            WorkerEnded: the process has ended.
        """
        try:
            async with trio.open_nursery() as nursery:
                self.current = await self._start(nursery, self.config)
                task_status.started(self.current.url)
                await self._serve(nursery)
        except BaseExceptionGroup as group:
            raise unwrap_single(group) from None
        finally:
            self.current = None
            self._notify()
            if self._request is not None:
                self._request.error = WorkerEnded(f"worker {self.number} ended during its replacement")
                self._request.over.set()
                self._request = None

    async def _serve(self, nursery: trio.Nursery) -> None:
        while True:
            current = self.current
            assert current is not None
            if current.ended.is_set() and self._stopping:
                return
            if current.ended.is_set():
                raise WorkerEnded(f"worker {current.name} (process {current.pid}) ended: {current.end}")
            if self._retired:
                await self._dismiss(current)
                return
            if self._request is not None:
                await self._obey(nursery, self._request, current)
                continue
            await self._changed.wait()

    async def _obey(self, nursery: trio.Nursery, request: _Replacement[C], current: Worker) -> None:
        start_seconds, _ = self._limits()
        try:
            with trio.move_on_after(start_seconds) as limit:
                self.current = await self._start(nursery, request.config)
            if limit.cancelled_caught:
                raise StartTimeout(f"it was not ready within {start_seconds:g} s")
        except (OperatorError, SupervisionError) as error:
            request.error = error
        else:
            self.config = request.config
            await self._dismiss(current)
        self._request = None
        request.over.set()

    async def _dismiss(self, process: Worker) -> None:
        """Let a process stop, as one whose clients come back to the others."""
        _, stop_seconds = self._limits()
        process.replace()
        with trio.move_on_after(stop_seconds):
            await process.ended.wait()
        if not process.ended.is_set():
            log.warning("worker killed because it did not stop in time", worker=process.name)
            process.signal(signal.SIGKILL)

    async def _start(self, nursery: trio.Nursery, config: C) -> Worker:
        """Start a process, and wait until it is ready."""
        process = self._make(self.number, config)
        self.processes[process.name] = process
        try:
            await nursery.start(self._run_process, process)
        except BaseExceptionGroup as group:
            raise unwrap_single(group) from None
        log.info("worker ready", worker=process.name, pid=process.pid)
        self._on_ready(process)
        return process

    async def _run_process(self, process: Worker, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            await process.run(task_status=task_status)
        finally:
            self.processes.pop(process.name, None)
            self._notify()

    async def wait_changed(self) -> None:
        """Wait until a process has ended, or a request has come."""
        await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def retire(self) -> None:
        """Let the process stop without a successor; the child then has finished."""
        self._retired = True
        self._notify()

    async def replace(self, config: C) -> None:
        """Replace the process by a new one with another configuration, once that is ready.

        Raises:
            OperatorError: the new process refuses to start because of a mistake of the operator.
            SupervisionError: it did not start; or the place has no process that could be replaced.
        """
        if self.current is None or self._request is not None:
            raise WorkerEnded(f"worker {self.number} is not running")
        request = self._request = _Replacement(config)
        self._notify()
        await request.over.wait()
        if request.error is not None:
            raise request.error
