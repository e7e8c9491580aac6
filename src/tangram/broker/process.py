"""One server process: started so that it cannot outlive us, drained always, ended in two steps.

The process is a session of its own, so that Ctrl-C in a terminal reaches us alone and the broker ends after
everything that uses it. That it never becomes an orphan is held by a pipe of which we have the only writing
end: a small shell process waits for it and kills the server when the pipe ends without a word, which is what
the kernel makes of our death, SIGKILL included. The shell is forked first and the server takes over the
shell's own place (``exec``), so there is no moment at which the server runs without its guard, and its
process id is the one that we started. A parent-death signal instead would need code between fork and exec,
and a thread that lives as long as the server.
"""

import os
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import trio

__all__ = ["BrokerProcess", "guarded", "parse_log_line", "start_server"]

_GUARD = """
exec 3<&0 </dev/null
(trap '' HUP INT TERM; exec >/dev/null 2>&1; read -r word <&3 || kill -9 $$) &
exec 3<&-
exec "$@"
"""
_CHUNK = 16384
# A line without an end must not grow without one: crash reports have lines of some hundred characters.
_LONGEST_LINE = 4096
_KEPT_LINES = 20
# SIGKILL ends a process at once unless the kernel holds it; then nothing of ours can hurry it.
_KILL_TIMEOUT = 5.0
# The pipe is empty a moment after its last writer is gone.
_DRAIN_TIMEOUT = 1.0
_REAP_POLL = 0.002
_LEVELS = {".": "debug", "-": "debug", "*": "info", "#": "warning"}


def parse_log_line(line: str) -> tuple[str, str]:
    """Level and text of one line of the server's: ``8:M 23 Nov 2026 01:07:22.123 * Ready`` gives info and
    ``Ready``.

    What does not look like that is a crash report, or comes from the loader: a warning as it stands.
    """
    head, _, rest = line.partition(" ")
    words = rest.split(" ", 5)
    if head[:-2].isdecimal() and head[-2:-1] == ":" and len(words) == 6 and words[4] in _LEVELS:
        return _LEVELS[words[4]], words[5]
    return "warning", line


class BrokerProcess:
    """A server of ours; ``run_output`` must run beside it, and ``stop`` must be called, whatever happens."""

    def __init__(self, process: trio.Process, on_line: Callable[[str], None]) -> None:
        self._process = process
        self._on_line = on_line
        # Its deadline is set by `stop`.
        self._output_scope = trio.CancelScope(shield=True)
        self.last_lines = deque[str](maxlen=_KEPT_LINES)
        """What it said last, for the error that tells why it ended."""

    @property
    def pid(self) -> int:
        """Of the server itself; the guard is another process."""
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    async def wait_ended(self) -> str:
        """How it ended, in words."""
        status = await self._process.wait()
        return describe_end(status)

    async def run_output(self) -> None:
        """Hand over each line until the last. Shielded, since a server whose output nobody reads stands
        still; ``stop`` sets the deadline.
        """
        stdout = self._process.stdout
        assert stdout is not None
        async with stdout:
            pending = await self._read_lines(stdout)
        self._tell(pending)

    async def _read_lines(self, stdout: trio.abc.ReceiveStream) -> bytes:
        pending = b""
        with self._output_scope:
            while data := await stdout.receive_some(_CHUNK):
                *lines, pending = (pending + bytes(data)).split(b"\n")
                for line in lines:
                    self._tell(line)
                if len(pending) > _LONGEST_LINE:
                    self._tell(pending)
                    pending = b""
        return pending

    def _tell(self, data: bytes) -> None:
        line = data[:_LONGEST_LINE].decode(errors="replace").strip()
        if line:
            self.last_lines.append(line)
            self._on_line(line)

    async def stop(self, patience: float) -> bool:
        """SIGTERM, ``patience`` seconds, SIGKILL. True if it went by itself. Safe under cancellation, and
        twice.
        """
        gentle = False
        with trio.CancelScope(shield=True, deadline=trio.current_time() + patience + _KILL_TIMEOUT):
            gentle = await self._end(patience)
            await self._dismiss_guard()
        self._output_scope.deadline = trio.current_time() + _DRAIN_TIMEOUT
        return gentle

    async def _end(self, patience: float) -> bool:
        self._process.terminate()
        with trio.move_on_after(patience):
            await self._process.wait()
            return True
        self._process.kill()
        await self._process.wait()
        return False

    async def _dismiss_guard(self) -> None:
        """A word before the pipe ends: the process id may be somebody else's by now."""
        stdin = self._process.stdin
        assert stdin is not None
        if not self.running:
            # Broken: somebody ended the guard; closed: this is the second stop.
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await stdin.send_all(b"done\n")
        await stdin.aclose()
        # As process 1 of a container we inherit the guard: it is in the server's process group.
        with suppress(ChildProcessError):
            while os.waitpid(-self.pid, os.WNOHANG)[0] == 0:  # noqa: ASYNC110, ASYNC222 (WNOHANG)
                await trio.sleep(_REAP_POLL)


def describe_end(status: int) -> str:
    """``exit status 1``, ``SIGKILL``."""
    import signal

    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def guarded(argv: Sequence[str]) -> list[str]:
    """The command that runs ``argv`` under its guard, which wants a pipe as its standard input and a line in
    it before that ends.
    """
    return ["/bin/sh", "-c", _GUARD, "tangram-broker-guard", *argv]


async def start_server(argv: Sequence[str], on_line: Callable[[str], None]) -> BrokerProcess:
    """Start ``argv`` under its guard. ``OSError`` where there is no shell."""
    process = await trio.lowlevel.open_process(
        guarded(argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        # Ours holds secrets that are no business of the broker's, and /proc would show them.
        env={"PATH": "/usr/bin:/bin"},
        start_new_session=True,
    )
    return BrokerProcess(process, on_line)
