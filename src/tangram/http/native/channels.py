"""A channel's WebSocket on the native engine: the socket feeds the session, the pump empties its outbox.

One task reads; nothing else runs for a connection that keeps up. Frames of one read are handled as a batch,
and what they are answered with goes out in one write.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import structlog
import trio
from websockets.protocol import OPEN

from tangram.asgi import Scope
from tangram.channels.disconnects import ABUSE, BUSY, CRASH, GONE, RESTART, SHUTDOWN, TOO_BIG, Refusal
from tangram.gateway.admission import connect_info
from tangram.gateway.channels import Channels
from tangram.gateway.pump import Pump
from tangram.gateway.session import Session
from tangram.http.native.connection import READ_SIZE, HttpConnection
from tangram.http.native.handshake import prepare_upgrade
from tangram.http.native.head import BadHead, RequestHead
from tangram.http.native.message_assembly import MessageAssembler

__all__ = ["ChannelSocket", "serve_channel"]

log = structlog.get_logger("tangram.http")

_RETRY: Final = b"retry-after: 1\r\n"

_wait_readable = trio.lowlevel.wait_readable


async def serve_channel(
    connection: HttpConnection,
    request: RequestHead,
    scope: Scope,
    channels: Channels | None,
    *,
    compression: bool,
    ping_interval: float,
) -> None:
    """Admit, accept, and hand the connection over to a task that serves it until it ends."""
    if channels is None:
        raise _refused(BUSY)
    upgrade = prepare_upgrade(request, max_message=channels.settings.max_message, compression=compression)
    info = connect_info(scope)
    admission = channels.admit(info, request.query, upgrade.subprotocols)
    if isinstance(admission, Refusal):
        raise _refused(admission)
    server = connection.server
    pump = Pump(
        connection,
        upgrade.protocol,
        spawn=server.spawn,
        write_timeout=server.settings.write_timeout,
        statistics=server.pumps,
    )
    try:
        session = channels.connect(info, admission, pump.wake)
    except Exception:
        # Before the handshake is over, so that the client hears of it.
        log.exception("a connection cannot be set up", address=info.address)
        raise BadHead(500, CRASH.reason) from None
    inbox = MessageAssembler(upgrade.protocol, channels.settings.max_message)
    socket = ChannelSocket(connection, inbox, session, pump, ping_interval)
    connection.upgraded = socket
    try:
        await connection.write(upgrade.response(admission.subprotocol))
    except BaseException:
        socket.end()
        raise
    pump.attach(session.outbox)
    connection.adopted = True
    server.engine.adopt(connection, connection.sock, connection.client, partial(_serve, connection, socket))


async def _serve(connection: HttpConnection, socket: ChannelSocket) -> None:
    engine = connection.server.engine
    engine.websockets += 1
    try:
        await socket.run()
    finally:
        engine.websockets -= 1
        socket.end()
        connection.abort()


def _refused(refusal: Refusal) -> BadHead:
    return BadHead(refusal.status, refusal.reason, _RETRY if refusal.retry else b"")


class ChannelSocket:
    """One accepted connection."""

    __slots__ = ("_connection", "_inbox", "_ping_interval", "_pinged", "_protocol", "_pump", "_session")

    def __init__(
        self,
        connection: HttpConnection,
        inbox: MessageAssembler,
        session: Session,
        pump: Pump,
        ping_interval: float,
    ) -> None:
        self._connection = connection
        self._inbox = inbox
        self._protocol = inbox.protocol
        self._session = session
        self._pump = pump
        self._ping_interval = ping_interval
        self._pinged = trio.current_time()

    # What the engine asks of it.

    def say_goodbye(self, code: int) -> None:
        """The server stops: what waits is sent, then the close frame."""
        self._session.outbox.close(SHUTDOWN if code == SHUTDOWN.code else RESTART)

    def tick(self, now: float) -> None:
        """Ping a client that has been quiet for the interval."""
        if now - max(self._pinged, self._session.last_seen) >= self._ping_interval:
            self._pinged = now
            self._pump.ping()

    # Its own task.

    async def run(self) -> None:
        """Send what waits, and read until either side closes."""
        connection = self._connection
        self._pump.attach(self._session.outbox)
        data, connection.buffer = connection.buffer, b""
        try:
            while True:
                if data and not self._take(data):
                    break
                if connection.closed:
                    return
                await _wait_readable(connection.sock)
                if self._session.congested:
                    await self._session.wait_uncongested()
                try:
                    data = connection.sock.recv(READ_SIZE)
                except BlockingIOError:
                    data = b""
                    continue
                if not data:
                    return
        except (OSError, trio.ClosedResourceError):
            return
        if self._protocol.parser_exc is not None and not connection.closed:
            # Our close frame is on its way, and the client is still sending: a reset would eat it.
            await connection.linger()

    def end(self) -> None:
        """The connection has ended, whoever ended it."""
        self._session.outbox.close(GONE)
        self._session.gone()

    def _take(self, data: bytes) -> bool:
        """The bytes of one read; answers whether to go on reading."""
        protocol, session, pump = self._protocol, self._session, self._pump
        inbox = self._inbox
        controls = inbox.controls
        messages = inbox.feed(data)
        if inbox.controls != controls:
            session.alive()
        pump.corked = True
        try:
            if messages:
                session.feed(messages)
        except Exception:
            log.exception("a connection crashed", conn=session.conn)
            session.outbox.close(CRASH)
        finally:
            pump.corked = False
        writes = protocol.data_to_send()
        if writes:
            pump.control(writes)
        if protocol.parser_exc is not None:
            sent = protocol.close_sent
            session.outbox.close(TOO_BIG if sent is not None and sent.code == TOO_BIG.code else ABUSE)
        elif protocol.close_rcvd is not None:
            session.outbox.close(GONE)
        pump.flush()
        return protocol.state is OPEN or (protocol.close_rcvd is None and protocol.parser_exc is None)


def channels_getter(
    channels: Callable[[], Channels | None] | Channels | None,
) -> Callable[[], Channels | None]:
    """Channels that may be made anew while the engine runs."""
    if channels is None or isinstance(channels, Channels):
        return lambda: channels
    return channels
