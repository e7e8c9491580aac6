"""What must be put right in asyncio before plugins' code can run on an island. Once for the process.

``wait_for`` of Python 3.11 swallows a cancellation if what it waits for becomes ready in the same turn.
redis-py waits so for each command, and a service that publishes often would survive every other stop: a
second cancellation ends it, but only after the time that clean-ups are given. Python 3.12's way is put in
its place.

trio-asyncio answers ``asyncio.get_running_loop`` and its likes by functions of its own, which know the
islands. A module that took them ``from asyncio import ...`` before that holds the old ones, which know none:
anyio does, where something imported it early. It gets the new ones.
"""

from __future__ import annotations

import _asyncio
import asyncio
import sys
from collections.abc import Awaitable
from typing import TypeVar

__all__ = ["mend_asyncio", "wait_for"]

T = TypeVar("T")

_ANSWERED = ("get_running_loop", "_get_running_loop", "get_event_loop", "current_task")


async def wait_for(fut: Awaitable[T], timeout: float | None) -> T:
    """Wait for so many seconds at most.

    Raises:
        TimeoutError: what is waited for has been cancelled, because the time was up.
    """
    if timeout is not None and timeout <= 0:
        future = asyncio.ensure_future(fut)
        if future.done():
            return future.result()
        # One turn for the cancellation to be heard, and its outcome to be known.
        future.cancel()
        await asyncio.wait({future})
        try:
            return future.result()
        except asyncio.CancelledError as error:
            raise TimeoutError from error
    async with asyncio.timeout(timeout):
        return await fut


def mend_asyncio() -> None:
    """Both; to be called after trio-asyncio was imported, and cheap enough for each new island."""
    if sys.version_info < (3, 12):
        asyncio.wait_for = asyncio.tasks.wait_for = wait_for  # type: ignore[assignment]
    answered = [
        (name, old, new)
        for name in _ANSWERED
        if (old := getattr(_asyncio, name, None)) is not None and (new := getattr(asyncio, name)) is not old
    ]
    for module in tuple(sys.modules.values()):
        root = getattr(module, "__name__", "asyncio").partition(".")[0]
        if root in {"_asyncio", "asyncio", "trio_asyncio"}:
            continue
        for name, old, new in answered:
            if getattr(module, "__dict__", {}).get(name) is old:
                setattr(module, name, new)
