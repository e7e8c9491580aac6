"""The native engine: HTTP/1.1 and WebSockets on the root's sockets.

Other modules decide the rest: accepting, bounds and the stop (``engine``), the meaning of a request's head
(``head``), one connection (``connection``), one request (``exchange``), channels (``channels``) and the
application's own WebSockets (``websocket``).
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from tangram import defaults
from tangram.asgi import ASGIApp, RawHeaders, Scope, enter_root
from tangram.gateway.channels import Channels
from tangram.gateway.pump import PumpStatistics
from tangram.http.access_log import log_access
from tangram.http.closing import Closing
from tangram.http.engine import Connection, Engine, EngineSettings, PeerAddress
from tangram.http.listeners import HeldSocket
from tangram.http.native.channels import channels_getter, serve_channel
from tangram.http.native.connection import HttpConnection
from tangram.http.native.handshake import prepare_upgrade
from tangram.http.native.head import RejectedRequest, RequestHead
from tangram.http.native.stream import ClientStream
from tangram.http.native.websocket import AppSocket
from tangram.readiness import Readiness, current_readiness

__all__ = ["NativeServer", "serve_native"]

CHANNELS_PATH: Final = "/websocket"
"""The path of the channels' WebSockets; every other path is the application's."""


async def serve_native(
    app: ASGIApp,
    listeners: Sequence[HeldSocket],
    settings: EngineSettings,
    *,
    grace: Callable[[], float],
    close_code: Callable[[], int] = lambda: 1012,
    channels: Callable[[], Channels | None] | Channels | None = None,
    forwarded: Callable[[Scope], Scope] | None = None,
    root_path: str = "",
    body_limit: Callable[[Scope], int] | None = None,
    error_headers: Callable[[Scope], RawHeaders] | None = None,
    is_proxy: Callable[[str], bool] = lambda _: False,
    compression: bool = False,
    ping_interval: float = defaults.PING_INTERVAL,
    max_message: int = defaults.MAX_MESSAGE,
    outer_nursery: trio.Nursery | None = None,
    keep_adopted: Callable[[], bool] = lambda: False,
    takes_waiting: Callable[[], bool] = lambda: False,
    closing: Closing | None = None,
    task_status: trio.TaskStatus[Engine] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` until cancelled; then drain its connections and close the rest.

    Args:
        app: the ASGI application.
        listeners: the root's listening sockets.
        settings: bounds and timeouts.
        grace: returns the seconds that connections have to finish after the cancellation.
        close_code: returns the close code of WebSockets at the stop: 1012 for a restart, 1001 for good.
        channels: serve ``/websocket`` in place of the application; a function is called at each upgrade.
        forwarded: returns the scope as a trusted proxy reports it, for channels and the log alone.
        root_path: ``[server] root_path``, for the path of the channels.
        body_limit: returns the bytes that a request's body may have, in place of ``settings.max_body``.
        error_headers: returns the header fields of the engine's own answer to a request with this scope.
        is_proxy: returns whether an address is a trusted proxy's; the bound for one address exempts it.
        compression: whether to agree on permessage-deflate.
        ping_interval: seconds of silence after which a WebSocket client is pinged.
        max_message: the largest WebSocket message to the application, in bytes.
        outer_nursery: outlives the incarnation; the channels' WebSockets live there.
        keep_adopted: returns whether WebSockets in ``outer_nursery`` are closed there after the stop.
        takes_waiting: returns whether connections in the kernel's queue are accepted at the stop.
        closing: the last requests and the close of WebSockets at the stop.
        task_status: reports the engine once it accepts.
    """
    engine = NativeServer(
        app,
        settings,
        channels=None if channels is None else channels_getter(channels),
        forwarded=forwarded,
        root_path=root_path,
        compression=compression,
        ping_interval=ping_interval,
        max_message=max_message,
    ).engine
    engine.close_code, engine.closing = close_code, closing or Closing()
    engine.body_limit, engine.error_headers, engine.takes_waiting = body_limit, error_headers, takes_waiting
    engine.forwarded, engine.is_proxy, engine.keep_adopted = forwarded, is_proxy, keep_adopted
    await engine.serve(listeners, grace=grace, outer_nursery=outer_nursery, task_status=task_status)


class NativeServer:
    """The state that all connections of one engine share: the ``Host`` of each."""

    def __init__(
        self,
        app: ASGIApp,
        settings: EngineSettings,
        *,
        channels: Callable[[], Channels | None] | None = None,
        forwarded: Callable[[Scope], Scope] | None = None,
        root_path: str = "",
        compression: bool = False,
        ping_interval: float = defaults.PING_INTERVAL,
        max_message: int = defaults.MAX_MESSAGE,
    ) -> None:
        self.app = app
        self.settings = settings
        self.channels = channels
        self.forwarded = forwarded
        self.root_path = root_path
        self.compression = compression
        self.ping_interval = ping_interval
        self.max_message = max_message
        self.pumps = PumpStatistics()
        self.readiness = current_readiness() or Readiness(self.spawn)
        self.engine = Engine(settings, self.handle, tick=self.tick)

    async def handle(
        self, client: socket.socket, address: PeerAddress, register: Callable[[Connection], None]
    ) -> None:
        """Serve one connection."""
        stream = ClientStream(client, address, self.settings.write_timeout)
        connection = HttpConnection(self, stream, self.upgrade)
        register(connection)
        await connection.run()

    def spawn(self, run: Callable[[], Awaitable[None]]) -> None:
        """Start a task that may outlive the incarnation, as adopted connections do."""
        assert self.engine.adopted_nursery is not None
        self.engine.adopted_nursery.start_soon(run)

    def tick(self) -> None:
        """Close every connection whose deadline has passed, and let WebSockets send pings."""
        now = trio.current_time()
        for connection in list(self.engine.connections):
            assert isinstance(connection, HttpConnection)
            connection.tick(now)

    async def upgrade(self, connection: HttpConnection, request: RequestHead) -> None:
        """Serve a connection as a WebSocket: hand it to the channels, or serve it to its end.

        Without an answer here a proxy asks another node.
        """
        if self.engine.leaves_upgrade(connection.stream.client[0]):
            return
        scope = _websocket_scope(connection.stream, request)
        if not self.settings.access_log:
            await self._upgrade(connection, request, scope)
            return
        status: int | None = None
        try:
            status = await self._upgrade(connection, request, scope)
        except RejectedRequest as error:
            status = error.status
            raise
        finally:
            log_access(self.engine, scope, status=status)

    async def _upgrade(self, connection: HttpConnection, request: RequestHead, scope: Scope) -> int:
        """Serve the WebSocket, and return the status of the handshake's answer."""
        enter_root(scope, self.root_path)
        if self.channels is not None and scope["path"] == CHANNELS_PATH:
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
            return 101
        upgrade = prepare_upgrade(request, max_message=self.max_message, compression=self.compression)
        scope["subprotocols"] = upgrade.subprotocols
        socket = AppSocket(
            self,
            connection.stream,
            upgrade,
            scope,
            max_message=self.max_message,
            ping_interval=self.ping_interval,
        )
        connection.upgraded = socket
        await socket.run()
        return socket.status


def _websocket_scope(stream: ClientStream, request: RequestHead) -> Scope:
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": request.path,
        "raw_path": request.raw_path,
        "query_string": request.query,
        "root_path": "",
        "headers": request.headers,
        "client": stream.client,
        "server": stream.server_address,
        "subprotocols": [],
        "extensions": {"websocket.http.response": {}},
    }
