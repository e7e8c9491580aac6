"""The Hypercorn engine: TLS and HTTP/2 on the root's sockets.

1. Only the protocol parts of Hypercorn are used. Accepting, stopping, writing to sockets, starting
   applications and logging are replaced, because in each of these places one client could end or hang the
   server (Hypercorn 0.18). The subclassed classes are private, so the version of Hypercorn is pinned.
2. ASGI's lifespan is not used: start-up and tear-down live in the supervision tree.
3. Every wait for the client has a deadline, and every shield too.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, cast

import structlog
import trio
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext

from tangram import defaults
from tangram.asgi import ASGIApp, Message, RawHeaders, Scope
from tangram.errors import ConfigError, Fault
from tangram.http.access_log import log_access
from tangram.http.closing import Closing
from tangram.http.engine import Connection, Engine, EngineSettings, PeerAddress
from tangram.http.hypercorn.connection import HypercornConnection
from tangram.http.listeners import HeldSocket

__all__ = ["HypercornServer", "make_ssl_context", "serve_hypercorn"]

log = structlog.get_logger("tangram.http")

NEVER: Final = float("inf")


async def serve_hypercorn(
    app: ASGIApp,
    listeners: Sequence[HeldSocket],
    settings: EngineSettings,
    *,
    grace: Callable[[], float],
    close_code: Callable[[], int] = lambda: 1012,
    takes_waiting: Callable[[], bool] = lambda: False,
    closing: Closing | None = None,
    certfile: str | os.PathLike[str] | None = None,
    keyfile: str | os.PathLike[str] | None = None,
    max_message: int = defaults.MAX_MESSAGE,
    ping_interval: float = NEVER,
    body_limit: Callable[[Scope], int] | None = None,
    error_headers: Callable[[Scope], RawHeaders] | None = None,
    is_proxy: Callable[[str], bool] = lambda _: False,
    forwarded: Callable[[Scope], Scope] | None = None,
    task_status: trio.TaskStatus[Engine] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` until cancelled; then drain for ``grace()`` seconds and close the rest.

    Args:
        app: The ASGI application.
        listeners: The held sockets; the engine accepts on duplicates and closes only those.
        settings: The settings of ``[server]``.
        grace: Returns the seconds of the drain; called at the stop.
        close_code: Returns the close code for WebSockets; called at the stop.
        takes_waiting: Returns whether connections in the kernel's queue are accepted at the stop.
        closing: The last requests and the close of WebSockets at the stop.
        certfile: The certificate chain (PEM). It turns TLS on, with HTTP/2 by ALPN.
        keyfile: The private key (PEM), if it is not in ``certfile``.
        max_message: Bytes of a WebSocket message.
        ping_interval: Seconds between pings to each WebSocket client; missing pongs are ignored.
        body_limit: Returns the largest body of a request in bytes, in place of ``settings.max_body``.
        error_headers: Returns the header fields of an answer that the engine gives to this request itself.
        is_proxy: Returns whether an address is a trusted proxy's, with any number of connections.
        forwarded: Returns the scope with the client that a trusted proxy reports; used for the log alone.
        task_status: Started with the engine once it accepts.

    Raises:
        ConfigError: The certificate or the key cannot be used.
    """
    tls = make_ssl_context(certfile, keyfile) if certfile else None
    engine = HypercornServer(app, settings, tls, max_message, ping_interval).engine
    engine.close_code = close_code
    engine.takes_waiting = takes_waiting
    engine.body_limit = body_limit
    engine.error_headers = error_headers
    engine.is_proxy = is_proxy
    engine.forwarded = forwarded
    engine.closing = closing or Closing()
    await engine.serve(listeners, grace=grace, task_status=task_status)


def make_ssl_context(
    certfile: str | os.PathLike[str], keyfile: str | os.PathLike[str] | None
) -> ssl.SSLContext:
    """Make a server context for TLS 1.2 and later that offers HTTP/2 first.

    Raises:
        ConfigError: The certificate or the key cannot be used.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        context.load_cert_chain(certfile, keyfile)
    except (OSError, ssl.SSLError) as error:
        files = f"{str(certfile)!r} with the key {str(keyfile or certfile)!r}"
        fault = Fault(f"cannot use the certificate {files}: {error}", "server.tls_cert")
        raise ConfigError([fault], about="TLS") from error
    return context


class _Log:
    """Hypercorn's logger on structlog."""

    def __init__(self, engine: Engine, config: Config) -> None:
        self.engine = engine
        self.wanted = bool(config.accesslog)

    async def access(self, request: Scope, response: Message | None, request_time: float) -> None:
        if self.wanted:
            status = response["status"] if response else None
            log_access(self.engine, request, status=status, seconds=request_time)

    async def exception(self, message: str, *_args: Any, **_kwargs: Any) -> None:
        log.error("hypercorn failed", message=message, exc_info=True)  # noqa: LOG014 - in a handler

    async def _ignore(self, *_args: Any, **_kwargs: Any) -> None:
        """Drop Hypercorn's other records."""

    critical = error = warning = info = debug = log = _ignore


class HypercornServer:
    """The application, settings and engine that all connections share."""

    def __init__(
        self,
        app: ASGIApp,
        settings: EngineSettings,
        tls: ssl.SSLContext | None,
        max_message: int,
        ping_interval: float,
    ) -> None:
        self.app = app
        self.ping_interval = ping_interval
        self.settings = settings
        self.tls = tls
        self.engine = Engine(settings, self.handle, secure=tls is not None, tick=self.tick)
        self.context = WorkerContext(None)
        self.config = Config()
        self.config.logger_class = cast("Any", partial(_Log, self.engine))
        self.config.accesslog = "-" if settings.access_log else None
        self.config.include_server_header = False
        self.config.h11_max_incomplete_size = settings.max_header_bytes
        self.config.h2_max_header_list_size = settings.max_header_bytes
        self.config.keep_alive_timeout = cast("Any", settings.idle_timeout)
        self.config.keep_alive_max_requests = sys.maxsize
        self.config.ssl_handshake_timeout = cast("Any", settings.header_timeout)
        self.config.websocket_max_message_size = max_message

    async def handle(
        self, client: socket.socket, _address: PeerAddress, report: Callable[[Connection], None]
    ) -> None:
        """Serve one connection until it ends."""
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
        secured: Any = stream
        if self.tls is not None:
            secured = trio.SSLStream(stream, self.tls, server_side=True, https_compatible=True)
        connection = HypercornConnection(self, secured, client)
        report(connection)
        await connection.run()

    def tick(self) -> None:
        """Detect clients that left while unread, end late messages, and send pings."""
        now = trio.current_time()
        self.engine.pending.expire()
        for connection in list(self.engine.connections):
            cast("HypercornConnection", connection).detect_hang_up()
            cast("HypercornConnection", connection).ping(now)

    def drain(self) -> None:
        """Send ``connection: close`` with each response from now on."""
        self.config.keep_alive_max_requests = 0

    def close_idle(self) -> None:
        """Close connections that are idle, and others once they become idle."""
        cast("Any", self.context.terminated)._event.set()  # noqa: SLF001 - its own set() is async
