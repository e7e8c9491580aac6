"""The way from the server under test to its Redis: direct, or through a proxy while a fault lasts."""

from __future__ import annotations

from weakref import WeakSet

import attrs
import trio

from tangram.bus.resp import Dial, dial_socket
from tangram.bus.sockets import PlainStream
from tangram.redis_url import RedisAddress
from tangram.testing.fakes.memory_stream import PipeEnd

__all__ = ["RedisRoute"]


class RedisRoute:
    """Dials Redis for the bus and for subscribers: ``bus.resp.current_dial``.

    ``inner`` dials where the way is direct; a broker in memory puts its own there.
    """

    def __init__(self, inner: Dial = dial_socket) -> None:
        self.inner = inner
        self._ways: dict[tuple[str, int], tuple[str, int]] = {}
        self._streams: WeakSet[trio.abc.Stream] = WeakSet()

    async def dial(self, address: RedisAddress) -> trio.abc.Stream:
        """A connection to ``address``, on the way that is led now."""
        way = self._ways.get((address.host, address.port))
        if way is None:
            stream = await self.inner(address)
        else:
            # Not through `inner`: a broker in memory is reached at its real port, too.
            stream = await dial_socket(attrs.evolve(address, host=way[0], port=way[1]))
        self._streams.add(stream)
        return stream

    def detour(self, *, to: tuple[str, int], through: tuple[str, int]) -> None:
        """Who dials ``to`` from now on gets a connection to ``through``."""
        self._ways[to] = through

    def clear_detours(self) -> None:
        """No detours any more."""
        self._ways.clear()

    def cut(self) -> None:
        """End every connection that is open, as the network does: who reads hears the end of the stream."""
        for stream in list(self._streams):
            if isinstance(stream, PlainStream):
                stream.shut()
            elif isinstance(stream, PipeEnd):
                stream.cut()
