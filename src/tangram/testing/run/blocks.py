"""A nursery around a test's block that does not wrap what the block raises."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

__all__ = ["open_block"]


@asynccontextmanager
async def open_block() -> AsyncIterator[trio.Nursery]:
    """The nursery is the kit's: an exception of the block alone comes out as it is, not in a group."""
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
