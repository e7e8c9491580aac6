"""The native engine: HTTP/1.1 and WebSockets on the root's sockets.

What is decided elsewhere: accepting, bounds and the stop (``engine``), what a head says (``head``), one
connection (``connection``), one request (``exchange``), channels (``channels``) and the application's
WebSockets (``websocket``).
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from tangram.asgi import ASGIApp, Scope
from tangram.gateway.channels import Channels
from tangram.gateway.pump import PumpStatistics
from tangram.http.engine import Connection, Engine, EngineSettings, PeerAddress
from tangram.http.listeners import HeldSocket
from tangram.http.native.channels import channels_getter, serve_channel
from tangram.http.native.connection import HttpConnection
from tangram.http.native.handshake import prepare_upgrade
from tangram.http.native.head import RequestHead
from tangram.http.native.websocket import AppSocket

__all__ = ["NativeServer", "serve_native"]

CHANNELS_PATH: Final = "/websocket"
"""Where channels are; every other path is the application's."""

MAX_MESSAGE: Final = 16 * 1024 * 1024
"""Bytes of a WebSocket message to the application, unless told otherwise."""

PING_INTERVAL: Final = 30.0
"""Seconds of silence after which a WebSocket client is pinged."""


async def serve_native(
    app: ASGIApp,
    listeners: Sequence[HeldSocket],
    settings: EngineSettings,
    *,
    grace: Callable[[], float],
    close_code: Callable[[], int] = lambda: 1012,
    channels: Callable[[], Channels | None] | Channels | None = None,
    forwarded: Callable[[Scope], Scope] | None = None,
    compression: bool = False,
    ping_interval: float = PING_INTERVAL,
    max_message: int = MAX_MESSAGE,
    outer_nursery: trio.Nursery | None = None,
    keep_adopted: Callable[[], bool] = lambda: False,
    task_status: trio.TaskStatus[Engine] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` until cancelled; then drain within ``grace()`` seconds and close the rest.

    ``close_code()`` is asked at the stop: WebSockets are told to go with it (1012 for a restart, 1001 for
    good). ``channels`` takes the WebSockets of ``/websocket`` without asking the application; it may be a
    function, asked at each upgrade (None: 503). Without it they are the application's. ``forwarded`` puts
    the client's address and the scheme that a trusted proxy tells into a scope of these; the application
    does that for its own. Channels' WebSockets live in ``outer_nursery`` if given, and if ``keep_adopted()``
    is true at the stop, they are closed there, after this function has returned.
    """
    server = NativeServer(
        app,
        settings,
        channels=None if channels is None else channels_getter(channels),
        forwarded=forwarded,
        compression=compression,
        ping_interval=ping_interval,
        max_message=max_message,
    )
    server.engine.close_code = close_code
    server.engine.keep_adopted = keep_adopted
    await server.engine.serve(listeners, grace=grace, outer_nursery=outer_nursery, task_status=task_status)


class NativeServer:
    """What all connections of one engine have in common."""

    def __init__(
        self,
        app: ASGIApp,
        settings: EngineSettings,
        *,
        channels: Callable[[], Channels | None] | None = None,
        forwarded: Callable[[Scope], Scope] | None = None,
        compression: bool = False,
        ping_interval: float = PING_INTERVAL,
        max_message: int = MAX_MESSAGE,
    ) -> None:
        self.app = app
        self.settings = settings
        self.channels = channels
        self.forwarded = forwarded
        self.compression = compression
        self.ping_interval = ping_interval
        self.max_message = max_message
        self.pumps = PumpStatistics()
        self.engine = Engine(settings, self.handle, tick=self.tick)

    async def handle(
        self, client: socket.socket, address: PeerAddress, report: Callable[[Connection], None]
    ) -> None:
        """Carry one connection."""
        connection = HttpConnection(self, client, address)
        report(connection)
        await connection.run()

    def spawn(self, run: Callable[[], Awaitable[None]]) -> None:
        """Start a task beside adopted connections."""
        assert self.engine.sockets is not None
        self.engine.sockets.start_soon(run)

    def tick(self) -> None:
        """End every connection whose deadline has passed, and let WebSockets ping."""
        now = trio.current_time()
        for connection in list(self.engine.connections):
            assert isinstance(connection, HttpConnection)
            if connection.read_deadline <= now or connection.write_deadline <= now:
                connection.expire(now)
            elif connection.upgraded is not None:
                connection.upgraded.tick(now)

    async def upgrade(self, connection: HttpConnection, request: RequestHead) -> None:
        """Turn a connection into a WebSocket, until that ends."""
        scope: Scope = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "ws",
            "path": request.path,
            "raw_path": request.raw_path,
            "query_string": request.query,
            "root_path": "",
            "headers": request.headers,
            "client": connection.client,
            "server": connection.server_address,
            "subprotocols": [],
            "extensions": {"websocket.http.response": {}},
        }
        if self.channels is not None and request.path == CHANNELS_PATH:
            if self.forwarded is not None:
                scope = self.forwarded(scope)
            await serve_channel(
                connection,
                request,
                scope,
                self.channels(),
                compression=self.compression,
                ping_interval=self.ping_interval,
            )
            return
        upgrade = prepare_upgrade(request, max_message=self.max_message, compression=self.compression)
        scope["subprotocols"] = upgrade.subprotocols
        await AppSocket(connection, upgrade, scope, ping_interval=self.ping_interval).run()
