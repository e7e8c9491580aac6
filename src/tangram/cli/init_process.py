"""The duties of process 1: reap orphans, pass signals on, and end with the server.

The kernel makes process 1 the parent of every process whose own parent has ended, and keeps each of them as
a zombie until process 1 has read its exit status. A server cannot do that itself: it could not tell the
orphans from the children whose status a plugin still wants to read. So process 1 forks: the child runs the
server, and the parent has only these duties.

This module imports nothing of the server, so that the parent stays small.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection
from contextlib import suppress
from typing import Final

__all__ = ["run_below_init"]

_SYNCHRONOUS: Final = {
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGABRT,
    signal.SIGTRAP,
    signal.SIGSYS,
}
"""Signals that an error of the process itself causes; they are not waited for."""


def run_below_init() -> None:
    """Return in a process that may run the server: a child if this one is process 1.

    As process 1 the parent does not return; it ends with the exit status of the child.
    """
    if os.getpid() != 1:
        return
    waited = signal.valid_signals() - _SYNCHRONOUS - {signal.SIGKILL, signal.SIGSTOP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    server = os.fork()
    if server == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    status = 1
    try:
        status = _serve_as_init(server, waited)
    finally:
        os._exit(status)


def _serve_as_init(server: int, waited: Collection[int]) -> int:
    """Pass signals on and reap children until the server has ended; return its exit status."""
    while True:
        found = signal.sigwaitinfo(waited)
        if found.si_signo == signal.SIGCHLD:
            status = _reap(server)
            if status is not None:
                return status
        # A signal of the terminal (si_code > 0) goes to the whole group of processes, the server included.
        elif found.si_code <= 0:
            with suppress(ProcessLookupError):
                os.kill(server, found.si_signo)


def _reap(server: int) -> int | None:
    """Read the status of every ended child; return the server's exit status if it has ended."""
    ended: int | None = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        if pid == server:
            ended = _exit_status(os.waitstatus_to_exitcode(status))


def _exit_status(code: int) -> int:
    if code >= 0:
        return code
    with suppress(OSError, ValueError, AttributeError):  # standard error may be closed
        sys.stderr.write(f"tangram: the server was ended by {signal.Signals(-code).name}\n")
        sys.stderr.flush()
    return 128 - code
