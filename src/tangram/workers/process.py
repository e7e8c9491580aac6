"""One worker process, as its parent sees it.

1. It is started, not forked: it imports what it runs, also newer code after an upgrade.
2. It cannot outlive the parent: it runs under the same guard as the embedded broker (``broker.process``).
3. It has a session of its own, so that Ctrl-C reaches the parent only, which then stops all in order.
4. The parent copies its standard error in whole lines, because large records of several processes would
   mix in a pipe.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

import structlog
import trio

from tangram.broker.process import describe_end, guarded, stop_guarded
from tangram.errors import OperatorError, WorkerEnded
from tangram.workers.handover import Handover, decode_lines, encode_line

__all__ = ["Worker", "WorkerProcess", "write_whole"]

log = structlog.get_logger("tangram.workers")

_CHUNK: Final = 65536
_LONGEST_LINE: Final = 1024 * 1024
"""Bytes after which an unfinished line is written."""
_DRAIN_SECONDS: Final = 1.0
"""Seconds to read the rest of the output, whose writing end a child of the worker may keep."""
_PRIVATE: Final = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS")
"""Variables that are for the parent alone."""


class Worker(Protocol):
    """One process of a worker, from its start to its end; tests have one in memory."""

    ended: trio.Event
    """Set at its end."""
    url: str
    """The server's URL, which it reports when it is ready."""
    histories: bool
    """Whether a topic has a history."""
    beat_at: float
    """The time of the last sign of life, or of the start."""

    @property
    def name(self) -> str:
        """Its name among the workers."""

    @property
    def pid(self) -> int:
        """The process id."""

    @property
    def end(self) -> str:
        """A description of its end."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run the process to its end; report the start when it is ready."""

    def announce(self, broker: Mapping[str, Any] | None) -> None:
        """Report the broker to the process."""

    def replace(self) -> None:
        """Let it stop, because its successor is ready."""

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""


class WorkerProcess:
    """A worker as a process.

    Args:
        handover: its parameters.
        descriptors: those that it inherits.
        stop_seconds: seconds between SIGTERM and SIGKILL.
        on_end: called when it has ended.
        write: takes whole lines of its standard error.
    """

    def __init__(
        self,
        handover: Handover,
        descriptors: Sequence[int],
        *,
        stop_seconds: float,
        on_end: Callable[[], None] = lambda: None,
        write: Callable[[bytes], None] | None = None,
    ) -> None:
        self.ended = trio.Event()
        self.url = ""
        self.histories = False
        self.beat_at = trio.current_time()
        self._handover = handover
        self._descriptors = descriptors
        self._stop_seconds = stop_seconds
        self._on_end = on_end
        self._write = write or write_whole
        self._process: trio.Process | None = None
        # The end of the process sets the deadlines of these shields.
        self._reading: list[trio.CancelScope] = []
        self._task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
        self._failure: tuple[str, int] | None = None
        self._outgoing, self._to_send = trio.open_memory_channel[bytes](float("inf"))

    @property
    def name(self) -> str:
        return self._handover.name

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    @property
    def end(self) -> str:
        status = None if self._process is None else self._process.returncode
        return "not started" if status is None else describe_end(status)

    def announce(self, broker: Mapping[str, Any] | None) -> None:
        self._post({"broker": broker})

    def replace(self) -> None:
        self._post({"replaced": True})

    def _post(self, message: Mapping[str, Any]) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # it has ended
            self._outgoing.send_nowait(encode_line(message))

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the process to its end; report the start when it is ready.

        When this is cancelled, the process has ended before it returns.

        Raises:
            OperatorError: it refuses to start because of a mistake of the operator.
            WorkerEnded: it ended before it was ready.
        """
        self._task_status = task_status
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as link:
            with theirs:
                process = self._process = await self._start(theirs)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, process.stderr, self._take_output)
                nursery.start_soon(self._read, link, self._take_messages)
                nursery.start_soon(self._send, link)
                try:
                    await process.wait()
                finally:
                    if not await stop_guarded(process, self._stop_seconds):
                        log.warning("worker killed because it did not stop in time", worker=self.name)
                    self.ended.set()
                    self._on_end()
                    # The last words: a child of the worker may keep the pipe open.
                    for scope in self._reading:
                        scope.deadline = trio.current_time() + _DRAIN_SECONDS
                    self._outgoing.close()
        if self._failure is not None:
            text, status = self._failure
            error = OperatorError(text)
            error.exit_status = status
            raise error
        if not self.url:
            raise WorkerEnded(
                f"worker {self.name} (process {self.pid}) ended before it was ready: {self.end}"
            )

    async def _start(self, connection: socket.socket) -> trio.Process:
        source = str(Path(__file__).parents[2])
        code = f"import sys; sys.path.insert(0, {source!r}); from tangram.cli.worker import main; main()"
        command = [sys.executable, "-P", "-c", code, str(connection.fileno())]
        descriptors = [*self._descriptors, connection.fileno()]
        return await trio.lowlevel.open_process(
            guarded(command, name="tangram-worker-guard", keep=descriptors),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=descriptors,
            env={name: value for name, value in os.environ.items() if name not in _PRIVATE},
            start_new_session=True,
        )

    async def _send(self, link: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await link.send_all(self._handover.to_line())
            async for line in self._to_send:
                await link.send_all(line)

    async def _read(self, stream: trio.abc.ReceiveStream | None, take: Callable[[bytes], bytes]) -> None:
        """Read until the end, also when cancelled: a process blocks without a reader."""
        assert stream is not None
        pending = b""
        # Bounded: `run` sets the deadline of these scopes once the process has ended.
        scope = trio.CancelScope(shield=True)
        self._reading.append(scope)
        with scope, suppress(trio.BrokenResourceError):
            while data := await stream.receive_some(_CHUNK):
                pending = take(pending + bytes(data))
        if pending:
            take(pending + b"\n")

    def _take_output(self, data: bytes) -> bytes:
        end = data.rfind(b"\n") + 1
        if not end and len(data) > _LONGEST_LINE:
            self._write(data + b"\n")
            return b""
        if end:
            self._write(data[:end])
        return data[end:]

    def _take_messages(self, data: bytes) -> bytes:
        messages, rest = decode_lines(data)
        for message in messages:
            self.beat_at = trio.current_time()
            if "failed" in message:
                self._failure = str(message["failed"]), int(message["status"])
            if "ready" in message and not self.url:
                self.url = str(message["ready"])
                self.histories = bool(message["histories"])
                self._task_status.started()
        return rest


def write_whole(data: bytes) -> None:
    """Write lines of a worker to standard error; lose them if that cannot be written to."""
    stream = sys.stderr
    with suppress(OSError, ValueError, AttributeError):
        stream.flush()
        descriptor = stream.fileno()
        while data:
            data = data[os.write(descriptor, data) :]
