"""What must be put right in asyncio, and in plugins, before plugins' code can run on an island, and again.

``wait_for`` of Python 3.11 swallows a cancellation if what it waits for becomes ready in the same turn.
redis-py waits so for each command, and a service that publishes often would survive every other stop: a
second cancellation ends it, but only after the time that clean-ups are given. Python 3.12's way is put in
its place.

trio-asyncio answers ``asyncio.get_running_loop`` and its likes by functions of its own, which know the
islands. A module that took them ``from asyncio import ...`` before that holds the old ones, which know none:
anyio does, where something imported it early. It gets the new ones.

Rust extensions set up their tracing once for the process, and say so by an error the second time. Their
services do that first, so each would fail at every restart. What is set up already is as it was asked for.
"""

from __future__ import annotations

import _asyncio
import asyncio
import sys
from collections.abc import Awaitable, Callable
from functools import wraps
from types import BuiltinFunctionType
from typing import Any, TypeVar

__all__ = ["mend_asyncio", "mend_extensions", "wait_for"]

T = TypeVar("T")

_SET_UP = (
    "global default trace dispatcher has already been set",
    "logging system was already initialized",
)
"""How Rust's crates ``tracing`` and ``log`` say that the process has what was asked for."""

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


def mend_extensions(package: str) -> None:
    """Let the ``init_...`` functions of a plugin's extension modules be called at each start of its services.

    ``package`` is the top-level package of the plugin; what of it has been imported is mended.
    """
    for name, module in tuple(sys.modules.items()):
        if name.partition(".")[0] != package:
            continue
        for key, value in tuple(vars(module).items()):
            # The plugin's own modules may have taken it by ``from ._extension import init_...``.
            if key.startswith("init_") and isinstance(value, BuiltinFunctionType):
                setattr(module, key, _again(value))


def _again(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def set_up(*args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except Exception as error:
            if any(said in str(error) for said in _SET_UP):
                return None
            raise

    return set_up
