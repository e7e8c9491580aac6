"""Patches of asyncio and of extension modules that plugins on an island need.

``wait_for`` of Python 3.11 loses a cancellation if the awaited result becomes ready in the same turn.
redis-py uses it for each command, and a service that publishes often would survive every other stop: a
second cancellation ends it, but only after the time for clean-ups. The way of Python 3.12 takes its place.

trio-asyncio replaces ``asyncio.get_running_loop`` and its likes by functions that know the islands. A module
that took them by ``from asyncio import ...`` earlier (anyio, for one) holds the old functions. It gets the
new ones.

Rust extensions set up tracing once for the process, and raise an error the second time. Their services do so
first, so each would fail at every restart. This error is ignored, because tracing is already set up.

A pool of redis-py 8 that a plugin opened by ``Redis.from_url`` does not look whether Redis has closed a
connection, so that each pooled one fails once after a restart of Redis. It is connected again before its next
command.
"""

from __future__ import annotations

import _asyncio
import asyncio
import sys
from collections.abc import Awaitable, Callable
from functools import wraps
from types import BuiltinFunctionType
from typing import Any, Final, TypeVar

from tangram.compat.names import modules_of

__all__ = ["patch_asyncio", "patch_extensions", "patch_redis", "wait_for"]

T = TypeVar("T")

_ALREADY_SET_UP: Final = (
    "global default trace dispatcher has already been set",
    "logging system was already initialized",
)
"""The messages of Rust's crates ``tracing`` and ``log`` for a second set-up."""

_ANSWERED: Final = ("get_running_loop", "_get_running_loop", "get_event_loop", "current_task")


async def wait_for(fut: Awaitable[T], timeout: float | None) -> T:
    """Wait at most so many seconds, or without limit for ``None``.

    Raises:
        TimeoutError: the time was up, and the awaited task has been cancelled.
    """
    if timeout is not None and timeout <= 0:
        future = asyncio.ensure_future(fut)
        if future.done():
            return future.result()
        # The loop needs one turn to deliver the cancellation.
        future.cancel()
        await asyncio.wait({future})
        try:
            return future.result()
        except asyncio.CancelledError as error:
            raise TimeoutError from error
    async with asyncio.timeout(timeout):
        return await fut


def patch_asyncio() -> None:
    """Replace ``wait_for`` and stale references.

    trio-asyncio has to be imported before. The call is cheap enough for each new island.
    """
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


def patch_extensions(package: str) -> None:
    """Let the ``init_...`` functions of a plugin's extension modules be called more than once.

    Args:
        package: The top-level package of the plugin; its imported modules are patched.
    """
    for module in modules_of(package):
        for key, value in tuple(vars(module).items()):
            # The plugin's own modules may have taken it by ``from ._extension import init_...``.
            if key.startswith("init_") and isinstance(value, BuiltinFunctionType):
                setattr(module, key, _repeatable(value))


def patch_redis() -> None:
    """Let pools of ``redis.asyncio`` replace connections that Redis has closed.

    It does nothing until a plugin has imported them, and once it is done.
    """
    pool = getattr(sys.modules.get("redis.asyncio.connection"), "ConnectionPool", None)
    original = getattr(pool, "ensure_connection", None)
    if pool is None or original is None or hasattr(original, "__wrapped__"):
        return

    @wraps(original)
    async def ensure_connection(self: Any, connection: Any) -> None:
        reader: asyncio.StreamReader | None = getattr(connection, "_reader", None)
        if reader is not None and reader.at_eof():
            await connection.disconnect()
        await original(self, connection)

    pool.ensure_connection = ensure_connection


def _repeatable(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def set_up(*args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except Exception as error:
            if any(message in str(error) for message in _ALREADY_SET_UP):
                return None
            raise

    return set_up
