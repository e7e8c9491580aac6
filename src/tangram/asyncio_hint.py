"""Explain the errors of asyncio's functions in code that runs on Trio.

``await asyncio.sleep(1)`` raises "no running event loop" there, or Trio's TypeError about a yielded object.
Neither names the line of the plugin or the function to use.
"""

from __future__ import annotations

import traceback
from pathlib import PurePath
from typing import Final

__all__ = ["asyncio_hint"]

_INSTEAD: Final = {
    "sleep": "trio.sleep",
    "wait_for": "trio.fail_after",
    "timeout": "trio.fail_after",
    "gather": "trio.open_nursery",
    "wait": "trio.open_nursery",
    "create_task": "nursery.start_soon of trio.open_nursery",
    "ensure_future": "nursery.start_soon of trio.open_nursery",
    "to_thread": "trio.to_thread.run_sync",
    "get_running_loop": "trio.lowlevel, or a function of Trio",
    "open_connection": "trio.open_tcp_stream",
    "start_server": "trio.serve_tcp",
    "create_subprocess_exec": "trio.run_process",
    "create_subprocess_shell": "trio.run_process",
}
"""The counterparts of asyncio's functions on Trio."""

_MESSAGES: Final = ("no running event loop", "unrecognized yield message", "no current event loop")
"""Parts of the messages of RuntimeError (asyncio) and TypeError (Trio)."""


def asyncio_hint(error: BaseException) -> str | None:
    """Return the function to use instead, if ``error`` comes from asyncio in a task of Trio.

    The text names the function, the file and the line that called it, and its counterpart.
    """
    if not isinstance(error, RuntimeError | TypeError) or not any(part in str(error) for part in _MESSAGES):
        return None
    frames = traceback.extract_tb(error.__traceback__)
    caller, called = None, ""
    for frame in frames:
        parts = PurePath(frame.filename).parts
        if "asyncio" in parts[:-1]:
            called = frame.name
            break
        if "trio" not in parts[:-1]:
            caller = frame
    if caller is None:
        return None
    if not called:
        # A function in C has no frame: its name is in the line that called it.
        called = next((name for name in _INSTEAD if f"asyncio.{name}(" in (caller.line or "")), "")
    what = f"asyncio.{called}" if called else "a function of asyncio"
    instead = _INSTEAD.get(called, "its counterpart in trio")
    return f"{what} does not work on Trio: use {instead} ({caller.filename}:{caller.lineno})"
