"""A network between a node and its Redis that a benchmark cuts and mends."""

from __future__ import annotations

from contextlib import suppress
from typing import Self

import trio

__all__ = ["Cable"]


class Cable:
    """Passes connections on to a port on this machine; while it is cut, nothing passes and nothing is lost.

    So ends of a connection notice a cut by their own deadlines alone, as in a network whose packets are
    dropped, and bytes that were sent during the cut arrive after it.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._whole = trio.Event()
        self._whole.set()

    @classmethod
    async def lay(cls, target: int, nursery: trio.Nursery) -> Self:
        """Serve in a nursery until it is cancelled."""
        cable = cls(target)
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        cable.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, cable._serve, [listener])
        return cable

    def cut(self) -> None:
        """Pass nothing on, of new connections as well."""
        self._whole = trio.Event()

    def mend(self) -> None:
        """Pass on the bytes that waited."""
        self._whole.set()

    async def _serve(self, client: trio.SocketStream) -> None:
        await self._whole.wait()
        with suppress(OSError):
            server = await trio.open_tcp_stream("127.0.0.1", self._target)
            async with server, trio.open_nursery() as nursery:
                nursery.start_soon(self._pass, client, server, nursery.cancel_scope)
                nursery.start_soon(self._pass, server, client, nursery.cancel_scope)

    async def _pass(
        self, source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(65536):
                await self._whole.wait()
                await target.send_all(data)
        await self._whole.wait()  # the end of a connection does not pass a cut network, either
        scope.cancel()
