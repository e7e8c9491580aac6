"""A port on loopback that leads to the primary, for clients that plugins open.

Clients of other libraries know neither sentinels nor TLS options of this server, and some are compiled. They
get one plain URL that stays the same over failovers. Bytes pass in both directions as they are: each client
logs in itself, with the account in the URL.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, urlencode

import hiredis
import trio

from tangram.broker.ping import connect
from tangram.errors import BrokerUnavailable
from tangram.primary.locator import Locator
from tangram.redis_url import OPTIONS, RedisAddress

__all__ = ["Relay"]

HOST: Final = "127.0.0.1"

CHUNK: Final = 65536
"""Bytes of one read."""

DIAL_TIMEOUT: Final = 2.0
"""Seconds to find the primary and to connect; then the client's connection is closed, and it tries again."""

_LOST: Final = (
    OSError,
    UnicodeError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    hiredis.HiredisError,
    BrokerUnavailable,
)


class Relay:
    """Accepts connections on loopback and connects each one to the primary.

    Args:
        locator: finds the primary.
    """

    def __init__(self, locator: Locator) -> None:
        self._locator = locator
        self._primary: RedisAddress | None = None
        self._scopes: set[trio.CancelScope] = set()

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._scopes)

    def follow(self, primary: RedisAddress) -> None:
        """Connect clients to a primary that is being watched, without a question to the guides."""
        self._primary = primary

    def drop(self) -> None:
        """Close all connections: their clients connect again, to the primary of that moment."""
        self._primary = None
        for scope in self._scopes:
            scope.cancel()

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; report the URL for clients as started."""
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host=HOST)
            task_status.started(relay_url(self._locator.address, listeners[0].socket.getsockname()[1]))
            await trio.serve_listeners(self._serve, listeners, handler_nursery=nursery)

    async def _serve(self, client: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            primary: trio.abc.Stream | None = None
            try:
                with trio.fail_after(DIAL_TIMEOUT):
                    primary = await connect(self._primary or await self._locator.locate(connect))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_pass, client, primary, nursery.cancel_scope)
                    nursery.start_soon(_pass, primary, client, nursery.cancel_scope)
            except (*_LOST, trio.TooSlowError):
                pass  # the client sees a closed connection; the watch reports the outage
            finally:
                self._scopes.discard(scope)
                await _close(client, primary)


async def _pass(source: trio.abc.Stream, target: trio.abc.Stream, scope: trio.CancelScope) -> None:
    """Pass bytes on until one of both ends closes."""
    try:
        while data := await source.receive_some(CHUNK):
            await target.send_all(data)
    except _LOST:
        pass
    scope.cancel()


async def _close(*streams: trio.abc.Stream | None) -> None:
    # Shielded, so that the second stream is closed under a cancellation, too. No close waits.
    with trio.move_on_after(1.0, shield=True):
        for stream in streams:
            if stream is not None:
                await trio.aclose_forcefully(stream)


def relay_url(address: RedisAddress, port: int) -> str:
    """Return the URL of a relay: account, database, and the options except TLS."""
    login = ""
    if address.password is not None:
        login = f"{quote(address.username or '', safe='')}:{quote(address.password, safe='')}@"
    options = {name: value for name, value in address.options.items() if name in OPTIONS}
    query = f"?{urlencode(options)}" if options else ""
    return f"redis://{login}{HOST}:{port}/{address.db}{query}"
