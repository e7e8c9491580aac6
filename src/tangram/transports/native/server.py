"""The native engine: HTTP/1.1 and WebSockets on the root's sockets.

What is decided elsewhere: accepting, bounds and the stop (``engine``), what a head says (``head``), one connection
(``connection``), one request (``exchange``).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

import trio

from tangram.transports.engine import Address, ASGIApp, Connection, Engine, EngineSettings
from tangram.transports.listeners import HeldSocket
from tangram.transports.native.connection import HttpConnection
from tangram.transports.native.head import BadHead, Request

__all__ = ["NativeServer", "serve_native"]


async def serve_native(
    app: ASGIApp,
    listeners: Sequence[HeldSocket],
    settings: EngineSettings,
    *,
    grace: Callable[[], float],
    close_code: Callable[[], int] = lambda: 1012,
    task_status: trio.TaskStatus[Engine] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` until cancelled; then drain within ``grace()`` seconds and close the rest.

    ``close_code()`` is asked at the stop: WebSockets are told to go with it (1012 for a restart, 1001 for good).
    """
    server = NativeServer(app, settings)
    server.engine.close_code = close_code
    await server.engine.serve(listeners, grace=grace, task_status=task_status)


class NativeServer:
    """What all connections of one engine have in common."""

    def __init__(self, app: ASGIApp, settings: EngineSettings) -> None:
        self.app = app
        self.settings = settings
        self.engine = Engine(settings, self.handle, tick=self.tick)

    async def handle(
        self, client: socket.socket, address: Address, report: Callable[[Connection], None]
    ) -> None:
        """Carry one connection."""
        connection = HttpConnection(self, client, address)
        report(connection)
        await connection.run()

    def tick(self) -> None:
        """End every connection whose deadline has passed."""
        now = trio.current_time()
        late = [
            connection
            for connection in self.engine.connections
            if isinstance(connection, HttpConnection)
            and (connection.read_deadline <= now or connection.write_deadline <= now)
        ]
        for connection in late:
            connection.expire(now)

    async def upgrade(self, connection: HttpConnection, request: Request) -> None:
        """Turn a connection into a WebSocket."""
        raise BadHead(501, "no WebSockets here yet")
