"""One connection behind Hypercorn: reading, writing, timeouts and the end.

The class extends Hypercorn's ``TCPServer``, which is private, so the version of Hypercorn is pinned.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol, H11WSConnection
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState
from hypercorn.utils import parse_socket_addr

from tangram.asgi import ASGIApp
from tangram.http.engine import Engine, EngineSettings, has_hung_up
from tangram.http.hypercorn.applications import Applications
from tangram.http.hypercorn.http2 import GuardedProtocol, may_send, reset_stream, send_goaway
from tangram.http.hypercorn.pieces import FramePieces, http2_frame
from tangram.http.hypercorn.websocket import close_websocket, connected_websockets, ping_websocket

if TYPE_CHECKING:
    from hypercorn.typing import AppWrapper

__all__ = ["ConnectionHost", "HypercornConnection"]

WRITE_SLICE: Final = 65536
"""Bytes that the client must read within one ``write_timeout``: a slow reader of a large file is not cut."""

STEP_FRAMES: Final = 16
"""Frames of HTTP/2 that are handled in one step: one that opens a stream takes 0.3 ms."""

CLOSE_TIME: Final = 1.0
"""Seconds for the end of a connection: TLS close_notify, and the disconnect event of the application."""

LINGER_TIME: Final = 2.0
"""Seconds for which an unread body is still read, and dropped, after the last answer."""

LINGER_BYTES: Final = 1024 * 1024
"""Bytes read and dropped after the last answer: a refused body that is larger ends in a reset."""

CLOSE_HANDSHAKE_TIME: Final = 5.0
"""Seconds within which a WebSocket client must answer the server's close frame."""


class ConnectionHost(Protocol):
    """The server, as one connection sees it."""

    app: ASGIApp
    settings: EngineSettings
    engine: Engine
    config: Config
    context: WorkerContext
    tls: ssl.SSLContext | None
    ping_interval: float

    def drain(self) -> None:
        """Send ``connection: close`` with each response from now on."""

    def close_idle(self) -> None:
        """Close connections that are idle, and others once they become idle."""


class HypercornConnection(TCPServer):
    """One connection, without the methods by which a client could hang or end Hypercorn."""

    protocol: GuardedProtocol

    def __init__(self, host: ConnectionHost, stream: Any, raw: socket.socket) -> None:
        app = cast("AppWrapper", host.app)
        super().__init__(app, host.config, host.context, LifespanState({}), stream)
        self.host = host
        self.settings = host.settings
        self.engine = host.engine
        self.raw = raw
        self.scope = trio.CancelScope()
        self.read_scope = trio.CancelScope()
        self.reading = True
        self._conflict = False
        self._lingering = False
        self._dropped = 0
        self._read_all = trio.Event()
        self._pinged = trio.current_time()
        self._address = ""
        self._turns = self.engine.turns.client(lambda: self._address)
        self._pieces: FramePieces | None = None
        self._heavy = False
        self.group = Applications(self.engine, self)

    # The interface of the engine.

    def drain(self) -> None:
        self.host.drain()

    def close_idle(self) -> None:
        self.host.close_idle()

    def start_close(self, code: int) -> bool:
        nursery = self.group.nursery
        if nursery is not None:
            for stream in self._websockets():
                nursery.start_soon(self._close_websocket, stream, code)
        return False  # a request may become a WebSocket; those that are closing are no longer connected

    def detect_hang_up(self) -> None:
        """Detect a client that has gone while Hypercorn does not read.

        Hypercorn stops reading after a pipelined request.
        """
        protocol = getattr(self, "protocol", None)
        inner = protocol.protocol if protocol is not None else None
        if isinstance(inner, H11Protocol) and not inner.can_read.is_set() and has_hung_up(self.raw):
            self.group.disconnect()

    def ping(self, now: float) -> None:
        """Ping each WebSocket once in each interval.

        Hypercorn's own pings are not used: each is a task that outlives its WebSocket by up to an interval,
        so HTTP/2 clients could accumulate them.
        """
        nursery = self.group.nursery
        if now - self._pinged < self.host.ping_interval or nursery is None:
            return
        if self.scope.cancel_called or nursery.cancel_scope.cancel_called:
            return  # the connection is ending and takes no new tasks
        self._pinged = now
        for stream in self._websockets():
            if not stream.closed:
                nursery.start_soon(ping_websocket, stream)

    def has_requested(self) -> bool:
        """Return whether the client has sent at least one request."""
        return self.group.started > 0

    def abort(self) -> None:
        self._drop()
        self.group.cancel_sends()
        self.scope.cancel()

    def _drop(self) -> None:
        """Close the socket at once; the reader ends and reports the disconnect."""
        self.read_scope.cancel()
        if self.raw.fileno() >= 0:
            trio.lowlevel.notify_closing(self.raw)
            self.raw.close()

    # The task of the connection.

    async def run(self) -> None:
        with self.scope:
            try:
                alpn = await self._handshake()
                client = parse_socket_addr(self.raw.family, self.raw.getpeername())
                self._address = str(client[0]) if client else ""
                server = parse_socket_addr(self.raw.family, self.raw.getsockname())
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
                return  # the client has gone, or the TLS handshake failed
            try:
                async with self.group:
                    self._task_group = self.group
                    self.protocol = GuardedProtocol(
                        cast("AppWrapper", self.host.app),
                        self.config,
                        self.context,
                        cast("Any", self.group),
                        ConnectionState(self.state),
                        self.host.tls is not None,
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
        if self.host.tls is None:
            return "http/1.1"
        with trio.fail_after(self.settings.header_timeout):
            await self.stream.do_handshake()
        return self.stream.selected_alpn_protocol() or "http/1.1"

    async def _read_data(self) -> None:
        # The scope is cancelled when the socket is closed: a pipelined request makes Hypercorn's reader wait
        # for the end of the response, also when that has just failed.
        with self.read_scope:
            while True:
                try:
                    with trio.fail_after(self._read_timeout()):
                        data = await self.stream.receive_some(MAX_RECV)
                except trio.TooSlowError:
                    self._log("request took too long")
                    break
                except (trio.ClosedResourceError, trio.BrokenResourceError):
                    break
                if self._lingering:
                    self._dropped += len(data)
                    if not data or self._dropped > LINGER_BYTES:
                        break
                    continue
                try:
                    await self._handle(bytes(data))
                except h11.LocalProtocolError:
                    # A frame came before its handshake was answered: Hypercorn has sent 400 while the
                    # application is about to answer, too. No further response can be sent.
                    self._conflict = True
                    break
                if data == b"":
                    break
        self.reading = False
        self._read_all.set()
        await self.idle_task.stop()
        await self.protocol.handle(Closed())
        self.group.disconnect()
        self.application_ended()

    async def _handle(self, data: bytes) -> None:
        """Handle the bytes of one read: those of HTTP/2 in pieces, in turns with other clients.

        The next read of a client that sends so much waits for a turn, too.
        """
        if self._pieces is None:
            if not (isinstance(self.protocol.protocol, H2Protocol) or data.startswith(b"PRI * HTTP/2")):
                await self.protocol.handle(RawData(data))
                return
            self._pieces = FramePieces(http2_frame, STEP_FRAMES, MAX_RECV)
        heavy, count = self._heavy, 0
        for piece in self._pieces.cut(data):
            if heavy or count:
                await self._turns.wait()
            if not self.is_open():
                return
            count += 1
            await self.protocol.handle(RawData(piece))
        self._heavy = count > 1

    def application_ended(self) -> None:
        # Only timers of Hypercorn may still run here, and nothing is left for them to do.
        if not self.reading and not self.group.running:
            self.scope.cancel()

    def is_open(self) -> bool:
        return self.raw.fileno() >= 0

    def has_conflict(self) -> bool:
        return self._conflict

    def has_unread_body(self) -> bool:
        connection = getattr(self.protocol.protocol, "connection", None)
        return isinstance(connection, h11.Connection) and connection.their_state is h11.SEND_BODY

    def has_answered(self) -> bool:
        connection = getattr(self.protocol.protocol, "connection", None)
        if not isinstance(connection, H11WSConnection):
            return False
        return connection.h11_connection.our_state not in {h11.IDLE, h11.SEND_RESPONSE}

    async def close(self) -> None:
        await self._close()

    def _read_timeout(self) -> float:
        """Return the seconds to wait for bytes: bounded while the head of a request is incomplete."""
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
        # Hypercorn writes in a shield without a deadline, so one client that does not read would hang every
        # stop.
        async with self.send_lock:
            view = memoryview(data)
            try:
                for start in range(0, len(view), WRITE_SLICE):
                    with trio.move_on_after(self.settings.write_timeout) as slice_scope:
                        await self.stream.send_all(view[start : start + WRITE_SLICE])
                    if slice_scope.cancelled_caught:
                        self.stalled()
                        return
                    inner = self.protocol.protocol
                    self.group.progress(partial(may_send, inner))
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                # Busy means that the stream is being closed: other writers wait for the lock.
                self._drop()

    def stalled(self, stream_id: int | None = None) -> None:
        self.engine.stalled += 1
        self._log("client does not read or send in time")
        inner, nursery = self.protocol.protocol, self.group.nursery
        if (
            stream_id is not None
            and isinstance(inner, H2Protocol)
            and len(inner.streams) > 1
            and nursery is not None
            and not nursery.cancel_scope.cancel_called
        ):
            nursery.start_soon(reset_stream, inner, stream_id)
        else:
            self.abort()

    def flooded(self) -> None:
        self.engine.rejected += 1
        self._log("connection closed: too many HTTP/2 control frames")

    async def wait_turn(self) -> None:
        await self._turns.wait()

    def malformed(self, error: Exception) -> None:
        self._log("request rejected", reason=str(error)[:200])

    def overrun(self) -> None:
        self.engine.rejected += 1
        self._log("connection closed: too many requests at once")
        self.abort()

    def _log(self, event: str, **fields: str) -> None:
        self.engine.log_client(event, self._address, **fields)

    async def _linger(self) -> None:
        """Close our side, and drop the body that the client still sends for a moment.

        A close with unread bytes would be a reset, and the client would lose the last answer.
        """
        self._lingering = True
        self.group.disconnect()
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            await self.stream.send_eof()
        with trio.move_on_after(LINGER_TIME):
            await self._read_all.wait()

    async def _close(self) -> None:
        if self.reading and not self._lingering and self.host.tls is None and self.has_unread_body():
            await self._linger()
        with (
            trio.move_on_after(CLOSE_TIME),
            contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError),
        ):
            if self.host.tls is None:
                with contextlib.suppress(trio.BusyResourceError):
                    await self.stream.send_eof()
            else:
                with contextlib.suppress(trio.BusyResourceError):
                    await self.stream.aclose()
        self._drop()

    async def _idle_timeout(self) -> None:
        with trio.move_on_after(self.settings.idle_timeout):
            await self.context.terminated.wait()
        await send_goaway(self.protocol.protocol)
        with trio.move_on_after(CLOSE_TIME):
            await self.protocol.handle(Closed())
        await self._close()

    # WebSockets at a stop: Hypercorn itself would close the socket, which is 1006 in the browser.

    def _websockets(self) -> list[WSStream]:
        protocol = getattr(self, "protocol", None)
        return connected_websockets(protocol.protocol) if protocol is not None else []

    async def _close_websocket(self, stream: WSStream, code: int) -> None:
        await close_websocket(stream, code, timeout=CLOSE_HANDSHAKE_TIME)
        if not stream.closed:
            self.abort()
