"""Hypercorn, contained: the engine for TLS and HTTP/2.

1. Only the parts of Hypercorn that speak a protocol are used. Accepting, stopping, writing to sockets,
   starting applications and logging are ours, because in each of these places one client could end or hang
   the server (Hypercorn 0.18): see the guards. What is subclassed is private, and so the version is pinned.
2. The lifespan scope of ASGI is not used: what starts and ends with the server lives in the supervision tree.
3. Every wait for the client has a deadline, and every shield too.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import h11
import structlog
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol, H11WSConnection
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState
from hypercorn.utils import parse_socket_addr
from wsproto.events import Ping

from tangram.asgi import ASGIApp, Message, Scope
from tangram.errors import ConfigError, Fault
from tangram.http.engine import Connection, Engine, EngineSettings, PeerAddress, has_hung_up
from tangram.http.hypercorn.applications import Applications
from tangram.http.hypercorn.http2 import Protocol, say_goaway
from tangram.http.listeners import HeldSocket

if TYPE_CHECKING:
    from hypercorn.typing import AppWrapper

__all__ = ["make_ssl_context", "serve_hypercorn"]

log = structlog.get_logger("tangram.http")

MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes of a WebSocket message, unless told otherwise."""

WRITE_SLICE = 65536
"""Bytes that must be taken within one ``write_timeout``: a slow reader of a large file is not cut."""

NEVER = float("inf")

CLOSE_TIME = 1.0
"""Seconds for the last words of a connection (TLS close_notify, a disconnect to the application)."""

GOODBYE_TIME = 5.0
"""Seconds within which a WebSocket client must answer our close frame."""


async def serve_hypercorn(
    app: ASGIApp,
    listeners: Sequence[HeldSocket],
    settings: EngineSettings,
    *,
    grace: Callable[[], float],
    close_code: Callable[[], int] = lambda: 1012,
    certfile: str | os.PathLike[str] | None = None,
    keyfile: str | os.PathLike[str] | None = None,
    max_message: int = MAX_MESSAGE,
    ping_interval: float = NEVER,
    body_limit: Callable[[Scope], int] | None = None,
    task_status: trio.TaskStatus[Engine] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` by Hypercorn until cancelled; then drain within ``grace()`` seconds and close the rest.

    ``certfile`` and ``keyfile`` (PEM) turn TLS on, with HTTP/2 by ALPN. ``close_code()`` is asked at the
    stop: WebSockets are told to go with it. ``ping_interval``: seconds between pings to each WebSocket
    client; whether it answers them is not looked at. ``body_limit(scope)``: the largest body of a request in
    bytes, in place of ``settings.max_body``. Raises ConfigError when the certificate cannot be used.
    """
    tls = make_ssl_context(certfile, keyfile) if certfile else None
    shared = _Shared(app, settings, tls, max_message, ping_interval)
    engine = shared.engine
    engine.close_code = close_code
    engine.body_limit = body_limit
    await engine.serve(listeners, grace=grace, task_status=task_status)


def make_ssl_context(
    certfile: str | os.PathLike[str], keyfile: str | os.PathLike[str] | None
) -> ssl.SSLContext:
    """TLS 1.2 and later, HTTP/2 offered first. Raises ConfigError for files that cannot be used."""
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
    """Hypercorn's logger, in our words. Its access line is written only when asked for."""

    def __init__(self, config: Config) -> None:
        self.wanted = bool(config.accesslog)

    async def access(self, request: Scope, response: Message | None, request_time: float) -> None:
        if self.wanted:
            log.info(
                "request",
                method=request.get("method", "GET"),
                path=request["path"],
                status=response["status"] if response else None,
                seconds=round(request_time, 6),
                client=(request.get("client") or (None,))[0],
            )

    async def exception(self, message: str, *_args: Any, **_kwargs: Any) -> None:
        log.error("hypercorn failed", what=message, exc_info=True)  # noqa: LOG014  # called from a handler

    async def _ignore(self, *_args: Any, **_kwargs: Any) -> None:
        """Hypercorn's chatter about itself."""

    critical = error = warning = info = debug = log = _ignore


class _Shared:
    """What all connections of one engine have in common."""

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
        self.config.logger_class = cast("Any", _Log)
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
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
        secured: Any = stream
        if self.tls is not None:
            secured = trio.SSLStream(stream, self.tls, server_side=True, https_compatible=True)
        connection = _HypercornConnection(self, secured, client)
        report(connection)
        await connection.run()

    def tick(self) -> None:
        """Look for clients that have gone while nobody reads from them, and ping WebSockets."""
        now = trio.current_time()
        for connection in list(self.engine.connections):
            cast("_HypercornConnection", connection).look()
            cast("_HypercornConnection", connection).ping(now)

    def drain(self) -> None:
        """From now on each answer carries ``connection: close``."""
        self.config.keep_alive_max_requests = 0

    def close_idle(self) -> None:
        """From now on a connection that is or falls idle ends."""
        cast("Any", self.context.terminated)._event.set()  # noqa: SLF001  # its own set() is async


class _HypercornConnection(TCPServer):
    """One connection. Every method that Hypercorn's own server could be hung or ended by is replaced."""

    protocol: Protocol

    def __init__(self, shared: _Shared, stream: Any, raw: socket.socket) -> None:
        app = cast("AppWrapper", shared.app)
        super().__init__(app, shared.config, shared.context, LifespanState({}), stream)
        self.shared = shared
        self.settings = shared.settings
        self.engine = shared.engine
        self.raw = raw
        self.scope = trio.CancelScope()
        self.read_scope = trio.CancelScope()
        self.reading = True
        self._spoilt = False
        self._pinged = trio.current_time()
        self.group = Applications(self.engine, self)

    # What the engine asks of it.

    def drain(self) -> None:
        self.shared.drain()

    def close_idle(self) -> None:
        self.shared.close_idle()

    def start_close(self, code: int) -> None:
        for stream in self._websockets():
            nursery = self.group.nursery
            if nursery is not None and stream.state is ASGIWebsocketState.CONNECTED:
                nursery.start_soon(self._close_websocket, stream, code)

    def look(self) -> None:
        """Behind a pipelined request Hypercorn reads no more, and never sees that the client has gone."""
        protocol = getattr(self, "protocol", None)
        inner = protocol.protocol if protocol is not None else None
        if isinstance(inner, H11Protocol) and not inner.can_read.is_set() and has_hung_up(self.raw):
            self.group.hang_up()

    def ping(self, now: float) -> None:
        """Ping each WebSocket once in the interval. Hypercorn's own pings are a task each, which a closed
        WebSocket leaves behind for up to an interval: HTTP/2 clients could pile them up.
        """
        nursery = self.group.nursery
        if now - self._pinged < self.shared.ping_interval or nursery is None:
            return
        if self.scope.cancel_called or nursery.cancel_scope.cancel_called:
            return  # it is ending, and may take no new task any more
        self._pinged = now
        for stream in self._websockets():
            if stream.state is ASGIWebsocketState.CONNECTED and not stream.closed:
                nursery.start_soon(stream._send_wsproto_event, Ping())  # noqa: SLF001  # it has no public one

    def abort(self) -> None:
        self._drop()
        self.scope.cancel()

    def _drop(self) -> None:
        """Close the socket under everybody: the reader ends, and so the applications are told."""
        self.read_scope.cancel()
        if self.raw.fileno() >= 0:
            trio.lowlevel.notify_closing(self.raw)
            self.raw.close()

    # One connection's life.

    async def run(self) -> None:
        with self.scope:
            try:
                alpn = await self._handshake()
                client = parse_socket_addr(self.raw.family, self.raw.getpeername())
                server = parse_socket_addr(self.raw.family, self.raw.getsockname())
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                return  # gone, or no TLS, before it said anything
            try:
                async with self.group:
                    self._task_group = self.group
                    self.protocol = Protocol(
                        cast("AppWrapper", self.shared.app),
                        self.config,
                        self.context,
                        cast("Any", self.group),
                        ConnectionState(self.state),
                        self.shared.tls is not None,
                        client,
                        server,
                        self.protocol_send,
                        alpn,
                    )
                    await self.protocol.initiate()
                    await self.idle_task.restart(cast("Any", self.group), self._idle_timeout)
                    await self._read_data()
            finally:
                await self._close()

    async def _handshake(self) -> str:
        if self.shared.tls is None:
            return "http/1.1"
        with trio.fail_after(self.settings.header_timeout):
            await self.stream.do_handshake()
        return self.stream.selected_alpn_protocol() or "http/1.1"

    async def _read_data(self) -> None:
        # Cancelled when the socket is closed: a pipelined request makes Hypercorn's reader wait for the end
        # of a response, also of one that has just broken off.
        with self.read_scope:
            while True:
                try:
                    with trio.fail_after(self._patience()):
                        data = await self.stream.receive_some(MAX_RECV)
                except (trio.ClosedResourceError, trio.BrokenResourceError, trio.TooSlowError):
                    break
                try:
                    await self.protocol.handle(RawData(bytes(data)))
                except h11.LocalProtocolError:
                    # A frame came before its handshake was answered: Hypercorn says 400 to that while the
                    # application is about to answer, too. Nobody can say anything here any more.
                    self._spoilt = True
                    break
                if data == b"":
                    break
        self.reading = False
        await self.idle_task.stop()
        await self.protocol.handle(Closed())
        self.group.hang_up()
        self.application_ended()

    def application_ended(self) -> None:
        # What Hypercorn may still have running here are timers, and nothing is left for them to do.
        if not self.reading and not self.group.running:
            self.scope.cancel()

    def is_open(self) -> bool:
        return self.raw.fileno() >= 0

    def is_spoilt(self) -> bool:
        return self._spoilt

    def has_answered(self) -> bool:
        connection = getattr(self.protocol.protocol, "connection", None)
        if not isinstance(connection, H11WSConnection):
            return False
        return connection.h11_connection.our_state not in {h11.IDLE, h11.SEND_RESPONSE}

    async def close(self) -> None:
        await self._close()

    def _patience(self) -> float:
        """Seconds to wait for the next bytes: bounded while a request's head is half here."""
        inner = self.protocol.protocol
        if (
            isinstance(inner, H11Protocol)
            and inner.stream is None
            and isinstance(inner.connection, h11.Connection)
        ):
            if not inner.connection.trailing_data[0]:
                self._head_since = None
            else:
                now = trio.current_time()
                self._head_since = now if self._head_since is None else self._head_since
                return max(0.0, self._head_since + self.settings.header_timeout - now)
        return float("inf")

    _head_since: float | None = None

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self._write(event.data)
        elif isinstance(event, Closed):
            await self._close()
            await self.protocol.handle(Closed())
        elif isinstance(event, Updated):
            if event.idle:
                await self.idle_task.restart(cast("Any", self.group), self._idle_timeout)
            else:
                await self.idle_task.stop()

    async def _write(self, data: bytes) -> None:
        # Hypercorn writes under a shield without a deadline: one client that does not read hangs every stop.
        async with self.send_lock:
            view = memoryview(data)
            try:
                for start in range(0, len(view), WRITE_SLICE):
                    with trio.move_on_after(self.settings.write_timeout) as slice_scope:
                        await self.stream.send_all(view[start : start + WRITE_SLICE])
                    if slice_scope.cancelled_caught:
                        self.stalled()
                        return
                    self.group.progress()
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                # Busy: it is being closed in this very moment; other writers wait for the lock.
                self._drop()

    def stalled(self) -> None:
        self.engine.stalled += 1
        self.abort()

    def overrun(self) -> None:
        self.engine.rejected += 1
        self.abort()

    async def _close(self) -> None:
        with (
            trio.move_on_after(CLOSE_TIME),
            contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError),
        ):
            if self.shared.tls is None:
                with contextlib.suppress(trio.BusyResourceError):
                    await self.stream.send_eof()
            else:
                with contextlib.suppress(trio.BusyResourceError):
                    await self.stream.aclose()
        self._drop()

    async def _idle_timeout(self) -> None:
        with trio.move_on_after(self.settings.idle_timeout):
            await self.context.terminated.wait()
        await say_goaway(self.protocol.protocol)
        with trio.move_on_after(CLOSE_TIME):
            await self.protocol.handle(Closed())
        await self._close()

    # WebSockets at a stop: Hypercorn itself would just close the socket (1006 at the browser).

    def _websockets(self) -> list[WSStream]:
        protocol = getattr(self, "protocol", None)
        inner = protocol.protocol if protocol is not None else None
        if isinstance(inner, H2Protocol):
            streams = list(inner.streams.values())
        else:
            streams = [inner.stream] if isinstance(inner, H11Protocol) and inner.stream is not None else []
        return [stream for stream in streams if isinstance(stream, WSStream)]

    async def _close_websocket(self, stream: WSStream, code: int) -> None:
        # A write that waits for a client which does not read must not keep this good-bye for ever.
        with trio.move_on_after(GOODBYE_TIME):
            await stream.app_send(cast("Any", {"type": "websocket.close", "code": code, "reason": ""}))
            while not stream.closed:  # noqa: ASYNC110  # Hypercorn has a flag only
                await trio.sleep(0.05)
        if not stream.closed:
            self.abort()
