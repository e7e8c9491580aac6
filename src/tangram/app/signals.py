"""The signals of a server process, in which plugins could replace the handlers.

1. INT and TERM request a stop, HUP a reload. INT and HUP that are ignored at the start stay ignored.
2. A plugin that sets a handler for one of them, or ignores it, would make the server unstoppable. So
   ``signal.signal`` refuses that, with the plugin's name in the log, and a task checks the handlers now and
   then, in case they were replaced by other means.
3. ALRM, USR1 and others end a process that has no handler for them. A plugin may set one; without one they
   are logged.
4. A forked child gets the default handlers, so that it ends at SIGTERM and does not run code of the server.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, Final

import structlog
import trio

from tangram.early_signals import replay
from tangram.plugins.registry import importing_plugin
from tangram.ticks import next_tick

__all__ = ["REPEAT_TIME", "SignalGuard", "open_signals"]

log = structlog.get_logger("tangram.app")

Owner = Callable[[str], "str | None"]
"""Returns the plugin to which a source file belongs."""

CHECK_INTERVAL: Final = 0.5
"""Seconds between two checks of the handlers. A check takes a few microseconds; a stop may be this late."""

REPEAT_TIME: Final = 0.5
"""Seconds in which a second SIGINT counts as the first: a terminal sends it to a group of processes, and
a program around the server may pass it on."""

REQUESTS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that the server handles."""

MAY_BE_IGNORED: Final = frozenset({signal.SIGINT, signal.SIGHUP})
"""The signals that stay ignored if they were ignored at the start."""

STRAY: Final = (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGUSR1, signal.SIGUSR2)
"""Signals whose default action ends the process, and that plugins may handle."""

_set_handler: Final = signal.signal
"""The function of the standard library, which a guard replaces."""

_active: SignalGuard | None = None
"""The guard of this process, for the code that runs after a fork."""


class SignalGuard:
    """Holds the handlers of a process's signals.

    Args:
        owner_of: returns the plugin to which a source file belongs.
        on_stop: called in the handler of INT and TERM, in the middle of any code.
        on_repeat: called in the handler of a second INT, likewise.
    """

    def __init__(self, owner_of: Owner, on_stop: Callable[[], None], on_repeat: Callable[[], None]) -> None:
        self._owner_of = owner_of
        self._on_stop = on_stop
        self._on_repeat = on_repeat
        self._held: dict[int, Any] = {}
        self._before: dict[int, Any] = {}
        self._stop_at: float | None = None
        self._send, self._receive = trio.open_memory_channel[signal.Signals](float("inf"))
        self._token = trio.lowlevel.current_trio_token()

    async def next_request(self) -> signal.Signals:
        """Wait for the next INT, TERM or HUP."""
        return await self._receive.receive()

    def open(self) -> None:
        """Set the handlers, and let ``signal.signal`` refuse to replace them."""
        global _active  # noqa: PLW0603 - signals belong to the process
        for number in REQUESTS:
            if number not in MAY_BE_IGNORED or signal.getsignal(number) is not signal.SIG_IGN:
                self._hold(number, self._on_request)
        # Python ignores PIPE; with the default action a client that disconnects would end the process.
        self._hold(signal.SIGPIPE, signal.SIG_IGN)
        # If CHLD is ignored the kernel reaps the broker, and its exit status is lost.
        self._hold(signal.SIGCHLD, signal.SIG_DFL)
        for number in STRAY:
            if signal.getsignal(number) is signal.SIG_DFL:
                self._before[number] = _set_handler(number, self._on_stray)
        _active = self
        signal.signal = self._guarded_signal  # type: ignore[assignment]  # the guard's purpose
        replay()

    def close(self) -> None:
        """Restore the handlers of before."""
        global _active  # noqa: PLW0603 - signals belong to the process
        signal.signal = _set_handler
        _active = None
        for number, handler in self._before.items():
            _set_handler(number, signal.SIG_DFL if handler is None else handler)

    def check(self) -> None:
        """Take back each handler that was replaced by other means than ``signal.signal``."""
        for number, handler in self._held.items():
            found = signal.getsignal(number)
            if found != handler and not (number == signal.SIGCHLD and found is not signal.SIG_IGN):
                _set_handler(number, handler)
                self._log_refusal(number, self._owner_of_handler(found), where=None)
        for number in STRAY:
            if signal.getsignal(number) is signal.SIG_DFL:
                _set_handler(number, self._on_stray)

    async def watch(self) -> None:
        """Check the handlers until cancelled."""
        while True:
            await trio.sleep_until(next_tick(trio.current_time(), CHECK_INTERVAL))
            self.check()

    def reset_in_child(self) -> None:
        """Give a forked child Python's own handlers."""
        signal.signal = _set_handler
        signal.set_wakeup_fd(-1)
        for number in self._before:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            _set_handler(number, signal.SIG_IGN if number == signal.SIGPIPE else default)

    def _hold(self, number: signal.Signals, handler: Any) -> None:
        self._held[number] = handler
        self._before[number] = _set_handler(number, handler)

    def _on_request(self, number: int, _frame: FrameType | None) -> None:
        # Runs in the middle of any code: it must neither block nor log.
        self._token.run_sync_soon(self._send.send_nowait, signal.Signals(number))
        if number == signal.SIGHUP:
            return
        now = time.monotonic()
        if self._stop_at is None:
            self._stop_at = now
            self._on_stop()
        elif number == signal.SIGINT and now - self._stop_at > REPEAT_TIME:
            self._on_repeat()

    def _on_stray(self, number: int, frame: FrameType | None) -> None:
        plugin, where = self._caller(frame)
        name = signal.Signals(number).name
        log.warning("signal without a handler ignored", signal=name, plugin=plugin, where=where)

    def _guarded_signal(self, number: int, handler: Any) -> Any:
        """Set a handler as ``signal.signal`` does, unless the signal belongs to the server."""
        held = self._held.get(number)
        harmless = number == signal.SIGCHLD and handler is not signal.SIG_IGN
        if held is None or harmless:
            if number in STRAY and handler is signal.SIG_DFL:
                handler = self._on_stray
            return _set_handler(number, handler)
        if handler != held:
            plugin, where = self._caller(sys._getframe(1))  # noqa: SLF001 - the documented way to see the caller
            self._log_refusal(number, plugin, where)
        return signal.getsignal(number)

    def _log_refusal(self, number: int, plugin: str | None, where: str | None) -> None:
        name = signal.Signals(number).name
        log.warning("signal handler of a plugin ignored", signal=name, plugin=plugin, where=where)

    def _caller(self, frame: FrameType | None) -> tuple[str | None, str | None]:
        """Return the innermost plugin among the callers with its line, or None with a line."""
        innermost = None if frame is None else _line(frame)
        for caller in _callers(frame):
            if (plugin := self._owner_of(caller.f_code.co_filename)) is not None:
                return plugin, _line(caller)
            if (plugin := importing_plugin(caller)) is not None:
                return plugin, innermost
        return None, innermost

    def _owner_of_handler(self, handler: object) -> str | None:
        code = getattr(getattr(handler, "__func__", handler), "__code__", None)
        return self._owner_of(code.co_filename) if isinstance(code, CodeType) else None


def _line(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


@contextmanager
def open_signals(guard: SignalGuard) -> Iterator[SignalGuard]:
    """Hold the handlers for the length of the block."""
    guard.open()
    try:
        yield guard
    finally:
        guard.close()


def _after_fork() -> None:
    if _active is not None:
        _active.reset_in_child()


os.register_at_fork(after_in_child=_after_fork)
