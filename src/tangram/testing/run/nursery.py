"""A nursery that raises an exception of the block without a group."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

__all__ = ["open_unwrapped_nursery"]


@asynccontextmanager
async def open_unwrapped_nursery() -> AsyncIterator[trio.Nursery]:
    """Open a nursery around a block and raise the block's exception as it is.

    A Trio nursery wraps every exception in a group. The author of a test did not open this nursery, so an
    exception of the block alone leaves it unwrapped. Exceptions of background tasks keep the group.
    """
    error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as raised:
                error = raised
                raise
    except BaseExceptionGroup as group:
        if error is None or group.exceptions != (error,):
            raise
    if error is not None:
        raise error
