"""One server process, which cannot outlive this process, and whose output is read.

The process has a session of its own. So Ctrl-C in a terminal reaches this process only, and the broker ends
after all of its users.

A pipe whose only writing end is in this process prevents an orphan. A small shell process, the guard, waits
for the pipe, and kills the server if the pipe ends without a line. The kernel closes the pipe when this
process dies, also after SIGKILL. The shell is forked first, and the server then replaces the shell itself
(``exec``). So the server never runs without its guard, and its process id is the one that was started. A
parent-death signal instead would need code between fork and exec, and a thread that lives as long as the
server.
"""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import trio

from tangram.errors import OperatorError

__all__ = ["BrokerProcess", "describe_end", "guarded", "parse_log_line", "start_server", "stop_guarded"]

_GUARD: Final = """
exec 3<&0 </dev/null
(trap '' HUP INT TERM; exec >/dev/null 2>&1; read -r word <&3 || kill -9 $$) &
exec 3<&-
exec "$@"
"""
_GUARDS_OWN: Final = range(3, 10)
"""Descriptors of which the guard needs one: not every shell knows larger ones."""
_CHUNK: Final = 16384
_LONGEST_LINE: Final = 4096
"""Bytes after which a line is cut; crash reports have lines of some hundred characters."""
_KEPT_LINES: Final = 20
_KILL_TIMEOUT: Final = 5.0
"""Seconds to wait after SIGKILL. It works at once unless the kernel holds the process."""
_DRAIN_TIMEOUT: Final = 1.0
"""Seconds to read the rest of the output; the pipe is empty a moment after its last writer has ended."""
_REAP_POLL: Final = 0.002
_LEVELS: Final = {".": "debug", "-": "debug", "*": "info", "#": "warning"}


def parse_log_line(line: str) -> tuple[str, str]:
    """Return level and text of one line of the server's output.

    ``8:M 23 Nov 2026 01:07:22.123 * Ready`` gives ``info`` and ``Ready``. Any other line is a crash report
    or a message of the loader, and is a warning.
    """
    head, _, rest = line.partition(" ")
    words = rest.split(" ", 5)
    if head[:-2].isdecimal() and head[-2:-1] == ":" and len(words) == 6 and words[4] in _LEVELS:
        return _LEVELS[words[4]], words[5]
    return "warning", line


class BrokerProcess:
    """A running server. ``run_output`` must run meanwhile; ``stop`` must be called once."""

    def __init__(self, process: trio.Process, on_line: Callable[[str], None]) -> None:
        self._process = process
        self._on_line = on_line
        # ``stop`` sets the deadline of this shield.
        self._output_scope = trio.CancelScope(shield=True)
        self.last_lines = deque[str](maxlen=_KEPT_LINES)
        """The last lines of its output, for the error that gives the reason of its end."""

    @property
    def pid(self) -> int:
        """The process id of the server; the guard is another process."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    async def wait_ended(self) -> str:
        """Wait for the end of the process, and return its description, for example ``SIGKILL``."""
        status = await self._process.wait()
        return describe_end(status)

    async def run_output(self) -> None:
        """Pass each line to ``on_line``, until the last.

        This is shielded, because a server blocks if its output is not read; ``stop`` sets the deadline.
        """
        stdout = self._process.stdout
        assert stdout is not None
        async with stdout:
            pending = await self._read_lines(stdout)
        self._take_line(pending)

    async def _read_lines(self, stdout: trio.abc.ReceiveStream) -> bytes:
        pending = b""
        with self._output_scope:
            while data := await stdout.receive_some(_CHUNK):
                *lines, pending = (pending + bytes(data)).split(b"\n")
                for line in lines:
                    self._take_line(line)
                if len(pending) > _LONGEST_LINE:
                    self._take_line(pending)
                    pending = b""
        return pending

    def _take_line(self, data: bytes) -> None:
        line = data[:_LONGEST_LINE].decode(errors="replace").strip()
        if line:
            self.last_lines.append(line)
            self._on_line(line)

    async def stop(self, timeout: float) -> bool:
        """Send SIGTERM, and SIGKILL after ``timeout`` seconds; return whether SIGTERM was enough.

        It may be called under cancellation, and twice.
        """
        gentle = await stop_guarded(self._process, timeout)
        self._output_scope.deadline = trio.current_time() + _DRAIN_TIMEOUT
        return gentle


async def stop_guarded(process: trio.Process, timeout: float) -> bool:
    """End a process that runs under a guard: SIGTERM, and SIGKILL after ``timeout`` seconds.

    It may be called under cancellation, and twice.

    Returns:
        Whether SIGTERM was enough.
    """
    gentle = False
    with trio.CancelScope(shield=True, deadline=trio.current_time() + timeout + _KILL_TIMEOUT):
        gentle = await _end(process, timeout)
        await _dismiss_guard(process)
    return gentle


async def _end(process: trio.Process, timeout: float) -> bool:
    process.terminate()
    with trio.move_on_after(timeout):
        await process.wait()
        return True
    process.kill()
    await process.wait()
    return False


async def _dismiss_guard(process: trio.Process) -> None:
    """End the guard with a line, so that it does not kill a process that has got the same id."""
    stdin = process.stdin
    assert stdin is not None
    if process.poll() is not None:
        # Broken: the guard has ended; closed: this is the second stop.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await stdin.send_all(b"done\n")
    await stdin.aclose()
    # As process 1 of a container this process inherits the guard, which is in the server's process group.
    with suppress(ChildProcessError):
        while os.waitpid(-process.pid, os.WNOHANG)[0] == 0:  # noqa: ASYNC110, ASYNC222 - WNOHANG does not block
            await trio.sleep(_REAP_POLL)


def describe_end(status: int) -> str:
    """Return the description of an exit status, for example ``exit status 1`` or ``SIGKILL``."""
    import signal

    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def guarded(
    argv: Sequence[str], *, name: str = "tangram-broker-guard", keep: Sequence[int] = ()
) -> list[str]:
    """Return the command that runs ``argv`` under a guard.

    Its standard input must be a pipe. The guard kills the server if the pipe ends before a line was written.

    Args:
        argv: the command line.
        name: the guard's in a list of processes.
        keep: descriptors that ``argv`` inherits. Sockets of systemd begin at 3.

    Raises:
        OperatorError: they leave none for the guard.
    """
    own = next((one for one in _GUARDS_OWN if one not in keep), None)
    if own is None:
        raise OperatorError(f"{len(keep)} descriptors are inherited: use at most 6 sockets of systemd")
    script = _GUARD.replace("exec 3<", f"exec {own}<").replace("<&3", f"<&{own}")
    return ["/bin/sh", "-c", script, name, *argv]


async def start_server(
    argv: Sequence[str], on_line: Callable[[str], None], *, cwd: str = "/"
) -> BrokerProcess:
    """Start a server under its guard.

    Args:
        argv: the command line.
        on_line: called with each line of the output.
        cwd: the working folder of the server.

    Raises:
        OSError: there is no shell, or no such folder.
    """
    process = await trio.lowlevel.open_process(
        guarded(argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        # The environment of this process may hold secrets, which the broker does not need.
        env={"PATH": "/usr/bin:/bin"},
        start_new_session=True,
    )
    return BrokerProcess(process, on_line)
