"""Exceptions at the seam between a server under test and its broker: a dial that is refused, a write or a
read that finds the connection broken. What the bus sees of a broker is no more than this.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Literal

import trio

from tangram.bus.resp import Dial
from tangram.redis_url import RedisAddress

__all__ = ["OPERATIONS", "FaultyDial", "Operation"]

Operation = Literal["dial", "send", "receive"]

OPERATIONS: tuple[Operation, ...] = ("dial", "send", "receive")
"""Where an exception can come from."""


class FaultyDial:
    """Dials as ``inner`` does; before each operation it asks whether that is to fail."""

    def __init__(self, inner: Dial) -> None:
        self._inner = inner
        self.fails: Callable[[Operation], bool] | None = None
        """Asked for each operation; None, and nothing stands between."""

    async def dial(self, address: RedisAddress) -> trio.abc.Stream:
        """A connection whose operations are asked about.

        Raises:
            ConnectionRefusedError: this one was to fail.
        """
        if self.fails is None:
            return await self._inner(address)
        if self.fails("dial"):
            await trio.lowlevel.checkpoint()
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        return _FaultyStream(await self._inner(address), self.fails)


class _FaultyStream(trio.abc.Stream):
    """A stream that breaks when it is told to; what lies behind it stays as it is."""

    def __init__(self, inner: trio.abc.Stream, fails: Callable[[Operation], bool]) -> None:
        self._inner = inner
        self._fails = fails

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._fails("send"):
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError("broken by a test before a write")
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._fails("receive"):
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError("broken by a test before a read")
        return await self._inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._inner.aclose()
