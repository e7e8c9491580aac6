"""The record of a running server, from which the next start reports how it ended.

1. The file is in the state folder while the server runs, and is locked. A stop in order removes it. A file
   that is not locked belongs to a process that was ended by a signal, by ``os._exit``, or with the machine.
2. ``faulthandler`` writes the stacks of a fatal signal into the file, and ``os._exit`` its caller. The file
   also lists the plugins with their sources, so that the report can name the plugin.
3. No step of this may keep a server from starting: without a folder there is no record.
"""

from __future__ import annotations

import faulthandler
import fcntl
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import attrs

__all__ = ["ExitRecord", "LastExit", "last_exits"]

FOLDER: Final = "running"
"""The folder of the records, in the state folder."""

FRAMES_KEPT: Final = 8
"""The innermost frames of a stack that are reported."""

SIGNALS: Final = {
    "Segmentation fault": signal.SIGSEGV,
    "Floating point exception": signal.SIGFPE,
    "Aborted": signal.SIGABRT,
    "Bus error": signal.SIGBUS,
    "Illegal instruction": signal.SIGILL,
}
"""The signals by the names that ``faulthandler`` writes."""

_FATAL: Final = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)
_STACK: Final = re.compile(r"^Current thread .*\n((?:  .*\n?)*)", re.MULTILINE)
_FRAME: Final = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in (?P<function>.+)$', re.MULTILINE)

_os_exit: Final = os._exit
"""The function of the standard library, which a record replaces."""


@attrs.frozen
class LastExit:
    """The end of an earlier process."""

    pid: int
    cause: str
    """``signal 11 in plugin demo, thread poll``."""
    where: str | None = None
    """The line of the plugin, or the innermost line."""
    traceback: tuple[str, ...] = ()
    """The innermost frames, innermost last."""
    traced: bool = True
    """Whether the process left a trace; SIGKILL and a lack of memory leave none."""

    def fields(self) -> dict[str, Any]:
        """Return the values for a log record; those that are not known are left out."""
        values = {
            "cause": self.cause,
            "pid": self.pid,
            "where": self.where,
            "traceback": list(self.traceback),
        }
        return {name: value for name, value in values.items() if value}


class ExitRecord:
    """The record of this process.

    Args:
        state_dir: the state folder; None where there is none, and stacks go to standard error.
    """

    def __init__(self, state_dir: Path | None) -> None:
        self._pid = os.getpid()
        self._path: Path | None = None
        self._descriptor = -1
        if state_dir is not None:
            with suppress(OSError):
                self._create(state_dir / FOLDER)

    def _create(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{self._pid}-{os.urandom(4).hex()}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)
        # A POSIX lock: a forked child does not inherit it.
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._path = path
        self._write({"pid": self._pid, "started": time.time()})

    def open(self) -> None:
        """Let ``faulthandler`` and ``os._exit`` write into the record from now on."""
        global _active  # noqa: PLW0603 - both belong to the process
        _active = self
        if self._path is None:
            _enable_on_stderr()
        else:
            faulthandler.enable(self._descriptor)
        os._exit = self._noted_exit

    def close(self) -> None:
        """Remove the record, because the process ends in order."""
        global _active  # noqa: PLW0603 - both belong to the process
        _active = None
        os._exit = _os_exit
        if self._path is None:
            return
        _enable_on_stderr()
        with suppress(OSError):
            self._path.unlink()
        with suppress(OSError):  # a plugin may have closed it
            os.close(self._descriptor)
        self._path = None

    def note_import(self, plugin: str) -> None:
        """Write down that a plugin is imported now: its sources are not known yet."""
        self._write({"importing": plugin})

    def note_plugins(self, sources: Mapping[str, Path | None]) -> None:
        """Write down where the sources of each plugin are."""
        known = {name: str(source) for name, source in sources.items() if source is not None}
        self._write({"importing": None, "plugins": known})

    def force_exit(self, status: int) -> NoReturn:
        """End the process, and note that its stop was forced."""
        self._write({"status": status, "forced": True})
        _os_exit(status)

    def _noted_exit(self, status: int) -> NoReturn:
        if os.getpid() == self._pid:  # else this is a forked child
            thread = threading.current_thread().name
            frames = list(_frames_of(sys._getframe(1)))  # noqa: SLF001 - the documented way to see the caller
            self._write({"status": status, "thread": thread, "frames": frames})
        _os_exit(status)

    def _write(self, values: Mapping[str, Any]) -> None:
        if self._path is not None:
            with suppress(OSError):
                os.write(self._descriptor, json.dumps(values).encode() + b"\n")


_active: ExitRecord | None = None
"""The record of this process, for the code that runs after a fork."""


def _enable_on_stderr() -> None:
    with suppress(OSError, ValueError, AttributeError, RuntimeError):  # standard error may be closed
        faulthandler.enable()


def _after_fork() -> None:
    # The fatal signal of a child is not the end of the server.
    if _active is not None:
        os._exit = _os_exit
        _enable_on_stderr()


os.register_at_fork(after_in_child=_after_fork)


def last_exits(state_dir: Path) -> Iterator[LastExit]:
    """Yield the end of each process that left its record, and remove the record."""
    with suppress(OSError):
        for path in sorted((state_dir / FOLDER).iterdir()):
            with suppress(OSError), path.open("r+", errors="replace") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if the process runs
                text = file.read()
                path.unlink()
                yield _parse(text)


def _parse(text: str) -> LastExit:
    values: dict[str, Any] = {}
    for line in text.splitlines():
        if line.startswith("{"):
            with suppress(ValueError):
                values |= json.loads(line)
    pid = int(values.get("pid", 0))
    fatal = _FATAL.search(text)
    if fatal is not None:
        number = SIGNALS.get(fatal[1])
        what = fatal[1] if number is None else f"signal {int(number)}"
        return _of_frames(what, None, _frames_in(text), values)
    if values.get("forced"):
        return LastExit(pid, f"status {values['status']}, because a stop was forced")
    if "status" in values:
        frames = [(file, line, function) for file, line, function in values["frames"]]
        return _of_frames(f"status {values['status']} by os._exit", values["thread"], frames, values)
    cause = "killed without a trace (SIGKILL, a lack of memory, or the end of the machine)"
    return LastExit(pid, cause, traced=False)


def _frames_in(text: str) -> list[tuple[str, int, str]]:
    stack = _STACK.search(text)
    lines = stack[1] if stack is not None else ""
    return [(one["file"], int(one["line"]), one["function"]) for one in _FRAME.finditer(lines)]


def _of_frames(
    what: str, thread: str | None, frames: Sequence[tuple[str, int, str]], values: Mapping[str, Any]
) -> LastExit:
    """Describe an end by the stack of its thread, innermost frame first."""
    plugins = values.get("plugins", {})
    owned = [(owner, frame) for frame in frames if (owner := _owner_of(frame[0], plugins)) is not None]
    if thread is None:
        # The event loop runs in the main thread. Another thread is known by its function in the plugin.
        outermost = owned[-1][1][2] if owned else "unknown"
        thread = "MainThread" if any(file == _SERVING for file, _, _ in frames) else outermost
    lines = [f"{file}:{line} in {function}" for file, line, function in frames]
    if owned:
        owner, (file, line, function) = owned[0]
        where: str | None = f"{file}:{line} in {function}"
        what = f"{what} in plugin {owner}"
    else:
        where = lines[0] if lines else None
        importing = values.get("importing")
        what = f"{what} in plugin {importing}, while it was imported" if importing else what
    return LastExit(
        int(values.get("pid", 0)), f"{what}, thread {thread}", where, tuple(lines[:FRAMES_KEPT][::-1])
    )


_SERVING: Final = str(Path(__file__).with_name("serving.py"))


def _owner_of(file: str, plugins: Mapping[str, str]) -> str | None:
    owners = [
        name
        for name, source in plugins.items()
        if file == source or file.startswith(f"{source.rstrip('/')}/")
    ]
    return max(owners, key=lambda name: len(plugins[name]), default=None)


def _frames_of(frame: FrameType | None) -> Iterator[tuple[str, int, str]]:
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname
        frame = frame.f_back
