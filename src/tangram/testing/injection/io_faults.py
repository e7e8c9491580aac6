"""Exceptions between a server under test and its broker: in dials, writes and reads.

The bus sees no more of a broker than this.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final, Literal

import trio

from tangram.bus.resp import Dial
from tangram.redis_url import RedisAddress

__all__ = ["OPERATIONS", "FaultyDial", "Operation"]

Operation = Literal["dial", "send", "receive"]

OPERATIONS: Final[tuple[Operation, ...]] = ("dial", "send", "receive")
"""Operations that can raise."""


class FaultyDial:
    """Dials like ``inner``, and asks before each operation whether it must fail."""

    def __init__(self, inner: Dial) -> None:
        self._inner = inner
        self.fails: Callable[[Operation], bool] | None = None
        """Called for each operation; None to let everything pass directly."""

    async def dial(self, address: RedisAddress) -> trio.abc.Stream:
        """Return a connection whose operations may fail.

        Raises:
            ConnectionRefusedError: this dial must fail.
        """
        if self.fails is None:
            return await self._inner(address)
        if self.fails("dial"):
            await trio.lowlevel.checkpoint()
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        return _FaultyStream(await self._inner(address), self.fails)


class _FaultyStream(trio.abc.Stream):
    """A stream that breaks on request; the stream behind it stays as it is."""

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
