"""The route from the server under test to its Redis: direct, or through a proxy."""

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

    ``inner`` dials where the route is direct; a broker in memory replaces it.
    """

    def __init__(self, inner: Dial = dial_socket) -> None:
        self.inner = inner
        self._detours: dict[tuple[str, int] | str, tuple[str, int]] = {}
        self._streams: WeakSet[trio.abc.Stream] = WeakSet()

    async def dial(self, address: RedisAddress) -> trio.abc.Stream:
        """Return a connection to ``address``, along the current route."""
        detour = self._detours.get(address.path or (address.host, address.port))
        if detour is None:
            stream = await self.inner(address)
        else:
            # Not by `inner`: a broker in memory also listens on a real port.
            stream = await dial_socket(attrs.evolve(address, host=detour[0], port=detour[1], path=""))
        self._streams.add(stream)
        return stream

    def detour(self, *, to: tuple[str, int] | str, through: tuple[str, int]) -> None:
        """Lead later dials of ``to``, an address or a socket's path, to ``through``."""
        self._detours[to] = through

    def clear_detours(self) -> None:
        """Dial every address directly again."""
        self._detours.clear()

    def cut(self) -> None:
        """End every open connection as the network does: readers get the end of the stream."""
        for stream in list(self._streams):
            if isinstance(stream, PlainStream):
                stream.shut()
            elif isinstance(stream, PipeEnd):
                stream.cut()
