"""Signals that come before the server handles signals, or after it.

1. At first SIGTERM ends the process with ``SystemExit``: nothing runs yet that has to be stopped in order.
2. An exception out of a signal handler can be lost, or turned into another one: a finalizer ignores it, and
   Python before 3.12 turns it into ``RuntimeError`` where an enumeration is made. So it is noted first.
3. In `deferred` the signals are only noted. An exception in the middle of Trio's own code would be an
   internal error of Trio, and one in the clean-up after the server would leave its record behind.
4. As soon as the server handles signals itself, it gets each noted one again.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

__all__ = ["deferred", "end_on_term", "is_stop_noted", "prepare_server", "replay"]

STOPS: Final = frozenset({signal.SIGINT, signal.SIGTERM})
"""The signals that request a stop."""

_noted: list[signal.Signals] = []


def end_on_term() -> None:
    """Let SIGTERM end this process with status 0, wherever it is."""
    signal.signal(signal.SIGTERM, _end)


def is_stop_noted() -> bool:
    """Return whether a stop was requested that no server has got."""
    return not STOPS.isdisjoint(_noted)


def prepare_server() -> None:
    """Let INT end the process as TERM does, and HUP only be noted; ignored ones stay ignored.

    By default HUP would end the process, and INT would raise ``KeyboardInterrupt``.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _note)


def replay() -> None:
    """Raise the noted signals again, once, in this process; call it when they are handled."""
    noted = _noted.copy()
    _noted.clear()
    for number in noted:
        signal.raise_signal(number)


@contextmanager
def deferred() -> Iterator[None]:
    """Note INT, TERM and HUP in the block instead of obeying them; ignored ones stay ignored."""
    before = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }
    for number in before:
        signal.signal(number, _note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _note(number: int, _frame: FrameType | None) -> None:
    _noted.append(signal.Signals(number))


def _end(number: int, frame: FrameType | None) -> NoReturn:
    _note(number, frame)
    sys.exit(0)
